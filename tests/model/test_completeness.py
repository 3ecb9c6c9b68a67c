"""Nothing that was ever listed falls silent: properties of the whole pipeline, on fakes in memory.

The source inserts, completes, changes, moves, repeats and hides calls between the pages, passes and
requests of a listing; recordings and surveys come late, fail and heal; one thing may go bad for
ever; processes end, crash and race. Then drift stops, time goes on until all is at rest, and the
archive is held against what the source has ever shown.
"""

from __future__ import annotations

from typing import Any

from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from archiver.core.model import windows_between
from tests.fakes.memory_rig import HOUR, Times
from tests.model.ledger import Ledger
from tests.model.properties import examples, in_parts, seed_of
from tests.model.scene import POSITIONS, START, Audio, Bad, Place, Scene, When

MOST_CALLS = 15

TIMES = (
    Times(settle=HOUR, give_up=2 * HOUR, relist=(HOUR * 3 / 2, 3 * HOUR)),
    Times(settle=HOUR, give_up=3 * HOUR, relist=(2 * HOUR,)),
    Times(settle=HOUR / 2, give_up=HOUR, relist=()),
)
AUDIO: tuple[Audio, ...] = ("there", "none", "gone", "no blob", "url down", "blob down", "broken")

numbers = st.integers(0, MOST_CALLS - 1)
places = st.builds(Place, st.integers(0, 3), st.sampled_from(POSITIONS))
audio = st.sampled_from(AUDIO)
moments = st.sampled_from(("page", "page", "pass", "request"))
whens: st.SearchStrategy[When] = st.none() | st.tuples(moments, st.integers(1, 8))
states = st.sampled_from(("Completed", "Completed", "Completed", "InProgress"))

has_calls = precondition(lambda self: bool(self.scene.ids))
has_room = precondition(lambda self: len(self.scene.ids) < MOST_CALLS)
in_company = precondition(lambda self: not self.alone)


@st.composite
def sources(draw: st.DrawFn) -> dict[str, Any]:
    """How the platform reads what its documents leave open."""
    options: dict[str, Any] = {
        "sort": draw(st.sampled_from(("-startTime", "startTime", "id", "given"))),
        "page_size_cap": draw(st.sampled_from((2, 3, 5, 100))),
        "filter_field": draw(st.sampled_from(("startTime", "startTime", "createdAt", "endTime"))),
        "inclusive_end": draw(st.booleans()),
        "clamp_pages": draw(st.booleans()),
        "enveloped": draw(st.sampled_from((True, False, "mixed"))),
    }
    if draw(st.integers(0, 5)) == 5:
        options |= {"whole_days": True, "page_size_cap": 100}
    return options


@st.composite
def quirks(draw: st.DrawFn) -> dict[str, Any]:
    """What no document speaks of."""
    totals = draw(st.sampled_from(("right", "right", "absent", "less", "more", "page")))
    rare = draw(st.integers(0, 9))
    return {"totals": totals, "ignores_page": rare == 9, "ignores_filter": rare == 8}


class Completeness(RuleBasedStateMachine):
    """One archive, and a source that drifts under it."""

    scene: Scene

    @initialize(
        times=st.sampled_from(TIMES),
        source=sources(),
        odd=quirks(),
        part_bytes=st.sampled_from((8 << 20, 300)),
        alone=st.sampled_from((True, False, False)),
    )
    def begin(
        self,
        times: Times,
        source: dict[str, Any],
        odd: dict[str, Any],
        part_bytes: int,
        alone: bool,
    ) -> None:
        """`alone`: one writer, and no call that moves: where the most can be asked for."""
        self.alone = alone
        if odd["ignores_page"]:
            source = {**source, "page_size_cap": 100}
        self.scene = Scene(times, part_bytes, **source)
        for name, value in odd.items():
            setattr(self.scene.platform.quirks, name, value)

    # --- the source

    @has_room
    @rule(place=places, state=states, audio=audio, epa=st.booleans(), when=whens)
    def call(self, place: Place, state: str, audio: Audio, epa: bool, when: When) -> None:
        self.scene.call(place, state, audio, epa, when)

    @has_room
    @rule(place=places, count=st.integers(2, 4), when=whens)
    def calls(self, place: Place, count: int, when: When) -> None:
        for _ in range(count):
            self.scene.call(place, "Completed", "there", False, when)

    @has_room
    @rule(place=places, when=whens)
    def timeless_call(self, place: Place, when: When) -> None:
        self.scene.timeless(place, when)

    @has_room
    @rule(place=places, audio=audio, pages=st.integers(1, 4), gone=st.booleans(), when=whens)
    def flash(self, place: Place, audio: Audio, pages: int, gone: bool, when: When) -> None:
        self.scene.flash(place, audio, pages, gone, when)

    @has_calls
    @rule(number=numbers, passes=st.sampled_from((2, 5, 14, 40)))
    def storm(self, number: int, passes: int) -> None:
        self.scene.storm(number, passes)

    @has_calls
    @rule(number=numbers, when=whens)
    def complete(self, number: int, when: When) -> None:
        self.scene.complete(number, when)

    @has_calls
    @rule(
        number=numbers,
        fields=st.sampled_from(
            (
                {"durationSeconds": 2},
                {"durationSeconds": None},
                {"transcript": [{"role": "agent", "text": "changed"}]},
                {"transcript": None},
                {"state": "Failed"},
                {"epa": {"score": 5}},
                {"epa": None},
            )
        ),
        when=whens,
    )
    def change(self, number: int, fields: dict[str, Any], when: When) -> None:
        self.scene.set(number, when, **fields)

    @has_calls
    @in_company
    @rule(number=numbers, place=places, when=whens)
    def move(self, number: int, place: Place, when: When) -> None:
        self.scene.move(number, place, when)

    @has_calls
    @rule(number=numbers, gone=st.booleans(), when=whens)
    def hide(self, number: int, gone: bool, when: When) -> None:
        self.scene.hide(number, gone, when)

    @has_calls
    @rule(number=numbers, when=whens)
    def show(self, number: int, when: When) -> None:
        self.scene.show(number, when)

    @has_calls
    @rule(number=numbers, when=whens)
    def repeat(self, number: int, when: When) -> None:
        self.scene.repeat(number, when)

    @has_calls
    @rule(number=numbers, audio=audio, when=whens)
    def recording(self, number: int, audio: Audio, when: When) -> None:
        self.scene.set_audio(number, audio, when)

    @has_calls
    @rule(number=numbers, kind=st.sampled_from(("listing", "entry", "call", "survey", "url")))
    def spoil(self, number: int, kind: Bad) -> None:
        self.scene.spoil(number, kind)

    # --- the archiver

    @rule(minutes=st.sampled_from((0, 1, 5, 20, 61)))
    def round(self, minutes: int) -> None:
        self.scene.pass_time(minutes)
        self.scene.round()

    @rule(minutes=st.sampled_from((31, 90, 200)))
    def round_after_a_while(self, minutes: int) -> None:
        self.scene.pass_time(minutes)
        self.scene.round()

    @in_company
    @rule(when=whens)
    def round_of_a_second_writer(self, when: When) -> None:
        self.scene.second_round(when)

    @in_company
    @rule(place=places, hours=st.integers(1, 3), when=whens)
    def backfill(self, place: Place, hours: int, when: When) -> None:
        self.scene.backfill(place, hours, when)

    @rule()
    def restart(self) -> None:
        self.scene.restart()

    @rule(writes=st.integers(1, 30), moment=st.sampled_from(("before", "after")))
    def crash_later(self, writes: int, moment: Any) -> None:
        self.scene.crash(writes, moment)

    # --- what holds

    @invariant()
    def nobody_did_what_nobody_may(self) -> None:
        assert self.scene.world.store.violations == []
        assert self.scene.platform.violations == []

    def teardown(self) -> None:
        if not hasattr(self, "scene"):
            return
        scene, times = self.scene, self.scene.world.times
        scene.come_to_rest()
        ledger = scene.ledger()
        if scene.bad_window is None:
            self._check_silence(ledger)
        self._check_the_other_windows(ledger)
        scene.heal()
        # Windows whose source was out may have waited with their re-listing.
        scene.pass_time(16)
        scene.all_round()
        scene.backfill_all()
        ledger = scene.ledger()
        self._check_silence(ledger)
        # A window that settled while that round was under way is due in the next one.
        assert ledger.watermark >= scene.began - times.settle - times.window
        self._check_what_is_listed_now(ledger)
        for age in times.relist:
            ledger.check_listed_again(age, scene.clock.now() - HOUR)

    def _check_the_other_windows(self, ledger: Ledger) -> None:
        """What is bad for ever about one window, or one call, keeps no other window open that had
        settled when the last round began: tries at what is bad take their time."""
        scene, times = self.scene, self.scene.world.times
        sealed = {window.start for window in ledger.windows}
        due = windows_between(START, scene.began - times.settle - times.window, times.window)
        bad = scene.bad_window
        still = [window.start for window in due if window != bad and window.start not in sealed]
        assert not still, f"not sealed: {still}"

    def _check_silence(self, ledger: Ledger) -> None:
        assert not ledger.pending, f"pending for ever: {ledger.pending}"
        silent, orphans = self.scene.silent(ledger), self.scene.orphans(ledger)
        assert not silent, f"listed, and then silence: {silent}"
        assert not orphans, f"records that no segment carries: {orphans}"

    def _check_what_is_listed_now(self, ledger: Ledger) -> None:
        """What the source lists at the end, nothing of it drifting or failing any more, stands
        with its true outcome; what it does not list has vanished."""
        shown = {call.id: call for call in self.scene.platform.listable()}
        completed = {i for i, call in shown.items() if call.state == "Completed"}
        listed = ledger.listed
        assert listed.keys() <= completed, "said to be listed, and not listed"
        for call_id in completed:
            moment = self.scene.placed(call_id)
            if moment is None or not START <= moment < ledger.watermark:
                continue
            record = listed.get(call_id)
            assert record is not None, f"{call_id} is listed, and not told of as listed"
            sounds = [file for file in record["files"] if file["kind"] == "recording"]
            found = (record["outcome"], sounds[0]["sha256"] if sounds else None)
            assert found in self.scene.expected(call_id), call_id


@in_parts
def test_nothing_that_was_listed_falls_silent(part):
    machine = seed(seed_of(part))(type("Completeness", (Completeness,), {}))
    run_state_machine_as_test(machine, settings=examples())
