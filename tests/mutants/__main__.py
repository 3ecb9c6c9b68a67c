"""Plants each bug in a copy of the tree and runs its tests there: all must fail.

`python -m tests.mutants [NAME…]` plants those whose name has one of the words in it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.planted import BUGS, Bug

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 600
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", ".*_cache", "demo-*")


def plant(bug: Bug, tree: Path) -> None:
    file = tree / "archiver" / bug.file
    text = file.read_text()
    if text.count(bug.old) != 1:
        raise SystemExit(f"{bug.name}: {bug.file} does not have that piece just once")
    file.write_text(text.replace(bug.old, bug.new))


def is_caught(bug: Bug) -> tuple[bool, float, str]:
    """Whether the tests fail, after how many seconds, and which one did."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        tree = Path(directory) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        plant(bug, tree)
        # The copy is found first: it is where the command is run.
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                *bug.tests.split(),
            ],
            cwd=tree,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    # 1: tests failed. Anything else (no tests, a broken command line) is no catch.
    return (
        done.returncode == 1,
        time.monotonic() - began,
        failed[0] if failed else done.stdout[-300:],
    )


def main(words: list[str]) -> int:
    chosen = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    missed = []
    with ThreadPoolExecutor(2) as pool:
        for bug, (caught, seconds, told) in zip(chosen, pool.map(is_caught, chosen), strict=True):
            print(f"{'caught' if caught else 'MISSED'}  {seconds:4.0f} s  {bug.name}", flush=True)
            print(f"        {told}")
            missed += [] if caught else [bug.name]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} bugs caught")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
