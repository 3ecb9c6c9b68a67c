"""The speed comparison runs: a few calls, against its own source and store."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.command import ROOT, clean_environment

pytestmark = pytest.mark.system


def test_the_comparison_runs() -> None:
    missing = [name for name in ("nginx", "gcc") if not shutil.which(name)]
    if missing or not Path("/usr/include/openssl/ssl.h").exists():
        pytest.skip(f"make bench brings {', '.join(missing) or 'OpenSSL’s headers'}")
    subprocess.run([ROOT / "bench" / "build.sh"], check=True)
    small = ["--only", "tls-tiny-8", "--calls", "20", "--runs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *small, "--who", "archiver"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    assert "| **archiver backfill** | whole calls, ledger |" in done.stdout
