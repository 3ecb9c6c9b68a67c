"""Plants each bug in a copy of the tree and runs its tests there: all must fail.

`python -m tests.mutants [NAME…]` plants those whose name has one of the words in it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.planted import BUGS, Bug

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 180
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", ".*_cache", "demo-*")


def plant(bug: Bug, tree: Path) -> None:
    file = tree / "archiver" / bug.file
    text = file.read_text()
    if text.count(bug.old) != 1:
        raise SystemExit(f"{bug.name}: {bug.file} does not have that piece just once")
    file.write_text(text.replace(bug.old, bug.new))


@dataclass(frozen=True)
class Verdict:
    """What became of a bug; `told`: the test that failed, or what was said instead."""

    word: str
    seconds: float
    told: str

    @property
    def caught(self) -> bool:
        return self.word.startswith("caught")


def judge(bug: Bug) -> Verdict:
    """Plant it and run its tests."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        tree = Path(directory) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        plant(bug, tree)
        word, told = run(bug.tests.split(), tree)
    return Verdict(word, time.monotonic() - began, told)


def run(tests: list[str], tree: Path) -> tuple[str, str]:
    """A verdict's word and what it tells. Tests that do not come to an end have noticed it too."""
    # The copy is found first: it is where the command is run.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    process = subprocess.Popen(
        command, cwd=tree, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # the servers that it has started end with its fixtures
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=20)
        return "caught (hung)", f"after {TIMEOUT_SECONDS} s its tests had not ended"
    finally:
        with suppress(ProcessLookupError):  # and what its tests have started with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    failed = [line for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    # 1: tests failed. Anything else (no tests, a broken command line) is no catch.
    return "caught" if process.returncode == 1 else "MISSED", failed[0] if failed else out[-300:]


def main(words: list[str]) -> int:
    chosen = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    missed = []
    with ThreadPoolExecutor(2) as pool:
        for bug, verdict in zip(chosen, pool.map(judge, chosen), strict=True):
            print(f"{verdict.word}  {verdict.seconds:4.0f} s  {bug.name}", flush=True)
            print(f"        {verdict.told}")
            missed += [] if verdict.caught else [bug.name]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} bugs caught")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
