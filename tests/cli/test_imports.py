"""Each verb loads what it needs and no more: that is what makes a command start fast."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.fakes.command import Command

LIBRARIES = {
    "boto3", "botocore", "cryptography", "prometheus_client", "pydantic",
    "pydantic_settings", "structlog", "tenacity", "urllib3",
}  # fmt: skip
HOUR = ["--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T11:00:00Z"]


def loaded(command: Command, *arguments: str) -> set[str]:
    """The modules that a command which ends well has loaded, whole packages by their name too."""
    done = command.fresh(*arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.code in (0, 1), done.err
    return set(re.findall(r"^import time:[ \d|]+\| +([\w.]+)$", done.err, re.MULTILINE))


def test_a_command_ends_without_taking_the_interpreter_apart() -> None:
    """What would run then may crash, long after everything was said and closed."""
    code = (
        "import atexit, sys; atexit.register(print, 'late'); sys.argv = ['archiver', '--version'];"
        "from archiver.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("archiver, version")
    assert "late" not in done.stdout


def test_help_and_keys_need_next_to_nothing(command: Command) -> None:
    for arguments in (["--help"], ["backfill", "--help"], ["--version"]):
        found = loaded(command, *arguments)
        assert "click" in found
        assert not found & LIBRARIES
        assert not any(name.startswith(("archiver.store", "archiver.model")) for name in found)
    assert loaded(command, "keygen", "--out", "new.pem") & LIBRARIES == {"cryptography"}


HTTP = "archiver.source.http"
WRITING = {"archiver.app", "archiver.pipeline", "archiver.source"}
UNNEEDED: list[tuple[list[str], set[str]]] = [
    (["verify"], WRITING),
    (["manifest", "list", *HOUR], WRITING),
    (["hold", "list"], WRITING),
    (["hold", "add", "vc_1", "--by", "w", "--reason", "w"], {"archiver.app", HTTP}),
    (["reconcile", *HOUR], {"archiver.app", "archiver.pipeline"}),
    (
        ["backfill", *HOUR],
        {
            "archiver.audit.holds",
            "archiver.demo",
            "archiver.pipeline.holds",
            "archiver.preflight",
            "archiver.shares",
        },
    ),
]


def test_a_verb_leaves_alone_what_is_for_others(command: Command) -> None:
    # The names are real: else nothing would be found, whatever a verb loads.
    writing = loaded(command, "backfill", *HOUR)
    assert writing >= {*WRITING, "urllib3"}
    assert "httpx" not in writing, "one HTTP client is enough (docs/adr/0012)"
    assert "boto3" not in writing, "botocore is what it is made of (docs/adr/0013)"
    for arguments, unneeded in UNNEEDED:
        found = loaded(command, *arguments)
        assert {"archiver.settings", "archiver.store.bucket"} <= found
        assert found & unneeded == set(), arguments


COLLECTOR = """
import gc, os, sys
from archiver.cli import main
end = os._exit
def tell(code):
    print(*gc.get_threshold(), gc.get_freeze_count(), file=sys.stderr)
    end(code)
os._exit = tell
main()
"""
LASTING = [
    ["run", "--once"],
    ["backfill", *HOUR],
    ["backfill", *HOUR, "--dry-run"],
    ["backfill", "--from", "2024-01-15", "--to", "2024-01-16", "--processes", "2"],
    ["reconcile", *HOUR],
    ["verify"],
    ["manifest", "list", *HOUR],
    ["hold", "list"],
]


@pytest.mark.parametrize("arguments", LASTING, ids=" ".join)
def test_the_collector_rests_while_a_verb_starts_and_no_longer(
    command: Command, arguments: list[str]
) -> None:
    assert command.run("init").code == 0
    told = subprocess.run(
        [sys.executable, "-c", COLLECTOR, *arguments],
        cwd=command.directory, env=command.full_environment({}),
        capture_output=True, text=True, timeout=60,
    ).stderr  # fmt: skip
    *threshold, frozen = map(int, told.splitlines()[-1].split())
    assert threshold[0] < 100_000, "it rests only while modules come"
    assert frozen > 10_000
