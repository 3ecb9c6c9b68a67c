"""A signal that comes while a command starts is heard, also where a library swallows it; one that
comes when the command is done changes nothing."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.fakes.command import Command, Done

SPAN = ["--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T14:00:00Z"]

SWALLOWING = """
import os, sys

class Victim:
    def __del__(self):  # Python ignores what is raised here, as in many callbacks from C
        os.kill(os.getpid(), {number})
        for _ in range(1000):
            pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            Victim()

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("module", ["archiver.settings", "archiver.wiring"])
@pytest.mark.parametrize(
    ("verb", "number", "code"),
    [
        (["backfill", *SPAN], signal.SIGTERM, 130),
        (["backfill", *SPAN], signal.SIGINT, 130),
        (["run"], signal.SIGTERM, 0),
        (["verify"], signal.SIGTERM, 130),
        (["reconcile", *SPAN], signal.SIGINT, 130),
        (["hold", "list"], signal.SIGTERM, 130),
    ],
)
def test_a_signal_that_a_library_swallows_is_heard(
    command: Command, platform, tmp_path: Path, verb, number, code, module
):
    """It was lost before: `run` went on until it was killed, a backfill to its end."""
    (tmp_path / "sitecustomize.py").write_text(SWALLOWING.format(number=int(number), module=module))
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    done: Done = command.fresh(*verb, PYTHONPATH=path, ARCHIVER_METRICS_PORT="0")
    assert "Exception ignored in" in done.err, "it came at the moment that is meant"
    assert done.code == code, done.err
    assert done.err.splitlines()[-1] == "archiver: interrupted" or verb == ["run"]
    assert not platform.served("blob")


LATE = """
import os, sys

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid()):  # Python tears its modules down
        kill(pid, {number})

sys.late = Late()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("verb", "code"), [(["--version"], 0), (["verfy"], 2), (["run"], 0)])
def test_a_signal_after_the_end_changes_nothing(
    command: Command, tmp_path: Path, verb, code, number
):
    """A supervisor that repeats SIGTERM saw the process killed by it, instead of its exit code."""
    (tmp_path / "sitecustomize.py").write_text(LATE.format(number=int(number)))
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    once = ["--once"] if verb == ["run"] else []
    done = command.fresh(*verb, *once, PYTHONPATH=path, ARCHIVER_METRICS_PORT="0")
    assert done.code == code, done.err


STUCK = """
import threading

threading.Thread(target=threading.Event().wait).start()
"""


def test_a_signal_ends_a_command_that_does_not_come_to_its_end(command: Command, tmp_path: Path):
    """A thread that is left keeps Python from shutting down."""
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    process = command.start("--version", PYTHONPATH=path)
    try:
        assert process.stdout.readline().startswith("archiver")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
