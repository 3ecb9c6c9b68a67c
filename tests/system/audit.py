"""The two audits that tests end with: the command's, and the script's with standard tools alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.system.command import Archiver

STANDARD_TOOLS = (
    *("bash", "jq", "openssl", "sha256sum"),
    # the rest of GNU coreutils that a script may well use
    *("basename", "cat", "comm", "cut", "dirname", "head", "ls", "mkdir", "mktemp", "paste"),
    *("rm", "seq", "sort", "stat", "tail", "tr", "uniq", "wc"),
)


def findings(archiver: Archiver, *options: str, code: int) -> set[str]:
    """The codes of errors and warnings that `verify --json` tells of.

    It is given the store's settings alone: it needs neither the source nor the private key.
    """
    settings = {name: value for name, value in archiver.settings.items() if name[:3] == "S3_"}
    auditor = Archiver(settings, archiver.environment)
    result = auditor.run("verify", *options, "--json").expect(code)
    report = json.loads(result.stdout)
    return {one["code"] for one in report["findings"] if one["severity"] != "info"}


def assert_clean(archiver: Archiver) -> None:
    """Every byte of the archive is what its seals promise."""
    assert findings(archiver, "--level", "bytes", code=0) == set()


def assert_script_clean(copy: Path, *options: str) -> None:
    """`sha256sum`, `openssl` and `jq` alone find nothing either."""
    script = run_script(copy, *options)
    assert script.returncode == 0, script.stdout[-2000:] + script.stderr[-2000:]


def run_script(copy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`verify.sh` out of the bucket on a copy of it, with nothing but standard tools to call."""
    tools = copy.parent / "standard-tools"
    if not tools.exists():
        tools.mkdir()
        for name in STANDARD_TOOLS:
            found = shutil.which(name)
            assert found, f"{name} is missing: run `make system-setup`"
            (tools / name).symlink_to(found)
    return subprocess.run(
        ["bash", str(copy / "manifest/keys/verify.sh"), *options, str(copy)],
        env={"PATH": str(tools), "LANG": "C.UTF-8", "TMPDIR": os.environ.get("TMPDIR", "/tmp")},
        capture_output=True,
        text=True,
        timeout=120,
    )
