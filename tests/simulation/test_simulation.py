"""The whole pipeline under seeded faults; here a few dozens of seeds, `make simulate` for more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.memory_s3 import S3Upload
from tests.simulation.__main__ import tell
from tests.simulation.judge import check, check_tampering
from tests.simulation.story import Story

ROOT = Path(__file__).parents[2]
CHUNK = 12
SAME = (3, 111, 185)
"""Seeds that are told twice."""


@pytest.mark.parametrize("first", range(1, 5 * CHUNK, CHUNK))
def test_whatever_happens_all_is_well_in_the_end(first):
    for seed in range(first, first + CHUNK):
        try:
            tell(seed)
        except Exception as error:
            error.add_note(f"make simulate SEED={seed}")
            raise


def test_the_same_seed_makes_the_same_history():
    """Down to the last request, whatever order this process has its sets in."""
    script = (
        "import json, structlog; from tests.simulation.__main__ import tell;"
        "from tests.fakes.log_lines import quiet; structlog.configure(**quiet([]));"
        f"print(json.dumps([tell(seed).wire.digest() for seed in {SAME}]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    here = [tell(seed).wire.digest() for seed in SAME]
    assert json.loads(told.stdout) == here
    assert len(set(here)) == len(SAME)


def test_processes_take_turns_in_the_midst_of_their_work():
    stories = [tell(seed) for seed in range(1, 12)]
    assert sum(story.wire.turns.passed for story in stories) > 50


# --- it can fail


def a_transcript(story: Story) -> str:
    """One that a record names."""
    records = (one for one in story.world.store.objects if one.key.startswith("records/"))
    files = (file for one in records for file in json.loads(one.data)["files"])
    return next(str(file["key"]) for file in files if file["kind"] == "transcript")


def lose_a_file(story: Story) -> None:
    shelf, key = story.world.store._shelf, a_transcript(story)
    shelf.keys.remove(key)
    del shelf.objects[key]


def change_a_file(story: Story) -> None:
    shelf, key = story.world.store._shelf, a_transcript(story)
    shelf.objects[key] = replace(shelf.objects[key], data=b"{}\n", sha256="0" * 64)


def forget_a_call(story: Story) -> None:
    """The source has listed it, and nobody knows of it."""
    sightings = next(iter(story.platform.listed.values()))
    alive = next(one.name for one in story._loops.values() if one is not None)
    story.platform.listed["vc_forgotten"] = [replace(sightings[0], client=alive)]


def change_a_recording(story: Story) -> None:
    """The source has another one than what was archived."""
    for plan in story.plot.calls:
        story.platform.change(plan.id, recording=replace(plan, number=99, audio="whole").recording)


def leave_an_upload(story: Story) -> None:
    """Of one that has begun just now nobody takes care."""
    key = "recordings/dt=2024-01-15/vc_0/recording-0123456789abcdef.wav"
    began = story.world.clock.now() + timedelta(days=2)
    story.world.uploads.open["left"] = S3Upload(key, "nobody", began, {})


DAMAGE = (
    (lose_a_file, "transcript.json"),
    (change_a_file, "sha256"),
    (forget_a_call, "listed, then silence: vc_forgotten"),
    (change_a_recording, "vc_"),
    (leave_an_upload, "uploads left open"),
)


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_what_is_wrong_is_found(damage, words):
    story = Story(3)
    story.run()
    damage(story)
    with pytest.raises((AssertionError, KeyError), match=words):
        check(story)


def test_what_is_changed_afterwards_is_found_by_the_audit():
    story = tell(4)
    for number in range(12):
        check_tampering(story.world, number * 8)
