"""Nothing that was ever listed falls silent: properties of the whole pipeline, on fakes in memory.

The source inserts, completes, changes, moves, repeats and hides calls between the pages, passes and
requests of a listing; recordings and surveys come late, fail and heal; one thing may go bad for
ever; processes end, crash and race. Then drift stops, time goes on until all is at rest, and the
archive is held against what the source has ever shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

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

from archiver.core.model import Window, window_of, windows_between
from tests.fakes import harm
from tests.fakes.audio import wav
from tests.fakes.calls import BytesRecording
from tests.fakes.harm import Harms
from tests.fakes.memory_rig import HOUR, Crash, Times, World, Writer
from tests.fakes.memory_source import Change, Moment
from tests.fakes.population import a_call, stamp
from tests.model.ledger import Ledger, is_unknowable, moment
from tests.model.properties import examples, in_parts, seed_of

START = datetime(2024, 1, 15, 22, 0, tzinfo=UTC)
"""Where the archive begins: two windows before midnight, so that days meet."""
MINUTE = timedelta(minutes=1)
TICK = timedelta(milliseconds=1)
POSITIONS = (timedelta(0), TICK, 20 * MINUTE, HOUR - timedelta(seconds=1), HOUR - TICK)
"""Where in a window a call starts."""
MOST_ROUNDS = 30
"""Everything must have come to rest after so many rounds without drift."""
MOST_CALLS = 15
TIMES = (
    Times(settle=HOUR, give_up=2 * HOUR, relist=(HOUR * 3 / 2, 3 * HOUR)),
    Times(settle=HOUR, give_up=3 * HOUR, relist=(2 * HOUR,)),
    Times(settle=HOUR / 2, give_up=HOUR, relist=()),
)

When = tuple[Moment, int] | None
"""Drift: so many pages, passes or requests from now; None for at once."""
Audio = Literal["there", "none", "gone", "no blob", "url down", "blob down", "broken"]
AUDIO: tuple[Audio, ...] = ("there", "none", "gone", "no blob", "url down", "blob down", "broken")
HEALTHY: tuple[Audio, ...] = ("there", "none", "gone")
"""What the source itself says of a recording; all else is trouble with it."""
BROKEN = BytesRecording(b"<html>this is no recording</html>")


@cache
def recording_of(call_id: str) -> BytesRecording:
    return BytesRecording(wav(0.05, seed=int(call_id[3:]) % 16))


@dataclass(frozen=True)
class Place:
    """A start time: `back` windows before the current one, and where in it."""

    back: int
    position: timedelta


numbers = st.integers(0, MOST_CALLS - 1)
places = st.builds(Place, st.integers(0, 3), st.sampled_from(POSITIONS))
audio = st.sampled_from(AUDIO)
moments = st.sampled_from(("page", "page", "pass", "request"))
whens: st.SearchStrategy[When] = st.none() | st.tuples(moments, st.integers(1, 8))
states = st.sampled_from(("Completed", "Completed", "Completed", "InProgress"))
changes = st.sampled_from(
    (
        {"durationSeconds": 2},
        {"durationSeconds": None},
        {"transcript": [{"role": "agent", "text": "changed"}]},
        {"transcript": None},
        {"state": "Failed"},
        {"epa": {"score": 5}},
        {"epa": None},
    )
)

has_calls = precondition(lambda self: bool(self.ids))
has_room = precondition(lambda self: len(self.ids) < MOST_CALLS)
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
    """One archive, and a source that drifts under it. One writer, `main`, and maybe a `second`;
    calls are told by their number."""

    @initialize(
        times=st.sampled_from(TIMES),
        source=sources(),
        odd=quirks(),
        part_bytes=st.sampled_from((8 << 20, 300)),
        alone=st.sampled_from((True, False, False)),
    )
    def begin(self, times, source, odd, part_bytes, alone):
        """`alone`: one writer, and no call that moves: where the most can be asked for."""
        self.alone = alone
        if odd["ignores_page"]:
            source = {**source, "page_size_cap": 100}
        self.world = World(START + 70 * MINUTE, START, times, **source)
        self.platform, self.clock, self.times = self.world.platform, self.world.clock, times
        for name, value in odd.items():
            setattr(self.platform.quirks, name, value)
        self.audio: dict[str, Audio] = {}
        self.heard: dict[str, set[Audio]] = {}
        """call id → all that was ever true of its recording"""
        self.ids: list[str] = []
        self.ended: set[str] = set()
        self.harms = Harms()
        """What is bad for ever: until `_heal`."""
        self.spoilt: Window | None = None
        """The window that it befalls."""
        self.began = self.clock.now()
        """When the last `_all_round` began."""
        self.part_bytes = part_bytes
        self.busy: set[str] = set()
        self.moved = False
        self.main = self._writer("main")
        self.second: Writer | None = None

    # --- the source

    @has_room
    @rule(place=places, state=states, audio=audio, epa=st.booleans(), when=whens)
    def call(self, place, state, audio, epa, when):
        self._call(place, state, audio, epa, when)

    @has_room
    @rule(place=places, count=st.integers(2, 4), when=whens)
    def calls(self, place, count, when):
        for _ in range(count):
            self._call(place, "Completed", "there", False, when)

    @has_room
    @rule(place=places, when=whens)
    def timeless_call(self, place, when):
        """A call without any time of its own: the platform lists it where it likes."""
        call_id = f"vc_{len(self.ids)}"
        self.ids.append(call_id)

        def comes() -> None:
            call = a_call(call_id, audio=None, startTime=None, endTime=None, createdAt=None)
            call.listed_at = self._at(place)
            self.platform.add(call)
            self._set_audio(call_id, "there")

        self._do(when, comes)

    @has_room
    @rule(place=places, audio=audio, pages=st.integers(1, 4), gone=st.booleans(), when=whens)
    def flash(self, place, audio, pages, gone, when):
        """A call that is listed for so many pages, and never again."""
        call_id = f"vc_{len(self.ids)}"
        to = self.platform.gone if gone else self.platform.hidden
        self._call(place, "Completed", audio, False, when)
        self._do(when, lambda: self.platform.later("page", pages, lambda: to.add(call_id)))

    @has_calls
    @rule(number=numbers, passes=st.sampled_from((2, 5, 14, 40)))
    def storm(self, number, passes):
        """A call comes and goes with each pass: no two in a row agree."""
        for later in range(passes):
            self._on(
                number,
                lambda call_id: self.platform.hidden.symmetric_difference_update({call_id}),
                ("pass", later),
            )

    @has_calls
    @rule(number=numbers, when=whens)
    def complete(self, number, when):
        def completes(call_id: str) -> None:
            started = self.platform.all[call_id].document["startTime"] or stamp(START)
            end = stamp(moment(started) + timedelta(seconds=1))
            self.platform.change(call_id, state="Completed", endTime=end, durationSeconds=1)

        self._on(number, completes, when)

    @has_calls
    @rule(number=numbers, fields=changes, when=whens)
    def change(self, number, fields, when):
        """Fields of the document change, or the survey (`epa`)."""
        self._on(number, lambda call_id: self.platform.change(call_id, **fields), when)

    @has_calls
    @in_company
    @rule(number=numbers, place=places, when=whens)
    def move(self, number, place, when):
        """The call turns out to have started at another time."""
        self.moved = True

        def moves(call_id: str) -> None:
            self.platform.change(call_id, startTime=stamp(self._at(place)))

        self._on(number, moves, when)

    @has_calls
    @rule(number=numbers, gone=st.booleans(), when=whens)
    def hide(self, number, gone, when):
        self._on(number, (self.platform.gone if gone else self.platform.hidden).add, when)

    @has_calls
    @rule(number=numbers, when=whens)
    def show(self, number, when):
        def shows(call_id: str) -> None:
            self.platform.hidden.discard(call_id)
            self.platform.gone.discard(call_id)

        self._on(number, shows, when)

    @has_calls
    @rule(number=numbers, when=whens)
    def repeat(self, number, when):
        self._on(number, self.platform.repeated.add, when)

    @has_calls
    @rule(number=numbers, audio=audio, when=whens)
    def recording(self, number, audio, when):
        self._on(number, lambda call_id: self._set_audio(call_id, audio), when)

    @has_calls
    @rule(number=numbers, kind=st.sampled_from(("listing", "entry", "call", "survey", "url")))
    def spoil(self, number, kind):
        """Something about a call, or its window's listing, is bad from now on; one such thing."""
        call_id = self.ids[number % len(self.ids)]
        if self.harms.all or call_id not in self.audio:
            return
        window = self.spoilt = window_of(self._placed(call_id) or START, self.times.window)
        self.harms.all.append(
            {
                "listing": lambda: harm.listing(window, harm.status(500), "500"),
                "entry": lambda: harm.entry(call_id, window, lambda row: None, "null"),
                "call": lambda: harm.of_call(call_id, "call", harm.status(500), "500"),
                "survey": lambda: harm.of_call(call_id, "epa", harm.status(403), "403"),
                "url": lambda: harm.of_call(call_id, "url", harm.status(403), "403"),
            }[kind]()
        )
        self.platform.spoilt = self.harms.answer

    # --- the archiver

    @rule(minutes=st.sampled_from((0, 1, 5, 20, 61)))
    def round(self, minutes):
        self._pass_time(minutes)
        self._round("main")

    @rule(minutes=st.sampled_from((31, 90, 200)))
    def round_after_a_while(self, minutes):
        self._pass_time(minutes)
        self._round("main")

    @in_company
    @rule(when=whens)
    def round_of_a_second_writer(self, when):
        """At once or in the middle of one of ours."""
        self._do(when, lambda: self._round("second"))

    @in_company
    @rule(place=places, hours=st.integers(1, 3), when=whens)
    def backfill(self, place, hours, when):
        """A process of its own: it begins, works at a range, and ends."""

        def run() -> None:
            start, writer = self._at(place), self._writer("backfill")
            self._survives(writer, lambda: writer.backfill(start, start + hours * HOUR))
            self._end(writer)

        self._do(when, run)

    @rule()
    def restart(self):
        """`main` ends; another process takes its place, and knows only what the bucket tells."""
        self._end(self.main)
        self.main = self._writer("main")

    @rule(writes=st.integers(1, 30), at=st.sampled_from(("before", "after")))
    def crash_later(self, writes, at):
        """`main` will die in the middle of a later round."""
        self.main.dies(writes, at)

    # --- what holds

    @invariant()
    def nobody_did_what_nobody_may(self):
        assert self.world.store.violations == []
        assert self.platform.violations == []

    def teardown(self) -> None:
        if not hasattr(self, "main"):
            return
        self._come_to_rest()
        ledger = self._ledger()
        if self._bad_window is None:
            self._check_silence(ledger)
        self._check_the_other_windows(ledger)
        # Nothing is bad any more: what has no recording has none.
        for one in self.harms.all:
            one.healed = True
        for call_id, audio in list(self.audio.items()):
            if audio not in HEALTHY:
                self._set_audio(call_id, "there")
        # Windows whose source was out may have waited with their re-listing.
        self._pass_time(16)
        self._all_round()
        self._writer("last").backfill(START, self.clock.now())
        ledger = self._ledger()
        self._check_silence(ledger)
        # A window that settled while that round was under way is due in the next one.
        assert ledger.watermark >= self.began - self.times.settle - self.times.window
        self._check_what_is_listed_now(ledger)
        for age in self.times.relist:
            ledger.check_listed_again(age, self.clock.now() - HOUR)

    def _check_the_other_windows(self, ledger: Ledger) -> None:
        """What is bad for ever about one window, or one call, keeps no other window open that had
        settled when the last round began: tries at what is bad take their time."""
        sealed = {window.start for window in ledger.windows}
        end = self.began - self.times.settle - self.times.window
        due = windows_between(START, end, self.times.window)
        still = [one.start for one in due if one != self._bad_window and one.start not in sealed]
        assert not still, f"not sealed: {still}"

    def _check_silence(self, ledger: Ledger) -> None:
        """Of what was listed as completed, the archive tells; without the ids that nobody can know
        of (`is_unknowable`)."""
        assert not ledger.pending, f"pending for ever: {ledger.pending}"
        told, objects = ledger.recorded | ledger.pending, self.world.store.objects
        silent = {
            call_id: [f"{one.at:%H:%M:%S} {one.client} {one.asked['dateFrom']}" for one in seen]
            for call_id, seen in self.platform.listed.items()
            if call_id not in told and not is_unknowable(call_id, seen, self.ended, objects)
        }
        assert not silent, f"listed, and then silence: {silent}"
        orphans = {key for key in ledger.unsealed if not self._may_be_orphan(key, ledger)}
        assert not orphans, f"records that no segment carries: {orphans}"

    def _may_be_orphan(self, key: str, ledger: Ledger) -> bool:
        """Whether a record may stand in no segment. Its call is told of by another one, after it
        moved or after a crash; or its writer has ended, and no process that began later can be
        held to look for it: others were alive then, who had looked before, or it does not say in
        which window the source listed the call."""
        record = json.loads(self.world.store.object(key).data)
        ended = self.world.store.object(key).writer in self.ended
        if record["call_id"] in ledger.recorded:
            return ended or self.moved
        others = any(not name.startswith("main") for name in self.world.writers)
        options = self.platform.options
        elsewhere = options.whole_days or options.filter_field != "startTime" or self.moved
        return ended and (others or elsewhere or record["started_at"] is None)

    def _check_what_is_listed_now(self, ledger: Ledger) -> None:
        """What the source lists at the end, nothing of it drifting or failing any more, stands
        with its true outcome; what it does not list has vanished."""
        shown = {call.id: call for call in self.platform.listable()}
        completed = {i for i, call in shown.items() if call.state == "Completed"}
        listed = ledger.listed
        assert listed.keys() <= completed, "said to be listed, and not listed"
        for call_id in completed:
            placed = self._placed(call_id)
            if placed is None or not START <= placed < ledger.watermark:
                continue
            record = listed.get(call_id)
            assert record is not None, f"{call_id} is listed, and not told of as listed"
            sounds = [file for file in record["files"] if file["kind"] == "recording"]
            found = (record["outcome"], sounds[0]["sha256"] if sounds else None)
            assert found in self._expected(call_id), call_id

    def _expected(self, call_id: str) -> set[tuple[str, str | None]]:
        """What a call may come to once its faults have healed: outcome and digest of its recording.

        What was archived stays so, and a recording that there was once can't be said to be none.
        """
        archived = ("archived", recording_of(call_id).sha256())
        if self.audio[call_id] == "there":
            return {archived}
        past = self.heard[call_id]
        found: set[tuple[str, str | None]] = {("no_recording", None)}
        found |= {archived} if "there" in past else set()
        return found | ({("failed", None)} if past - {*HEALTHY} else set())

    # --- how it comes to rest

    def _come_to_rest(self) -> None:
        """No drift any more; time goes on until nothing is left to do, and nothing is written but
        that nothing changed."""
        self.platform.calm()
        self.main.store.hooks.clear()
        still = 0
        self.clock.forward(self.times.longest + self.times.window)
        for _ in range(MOST_ROUNDS):
            before = sum(1 for _ in self.world.store.list("records/"))
            self._all_round()
            is_same = before == sum(1 for _ in self.world.store.list("records/"))
            still = still + 1 if is_same and not self._left() else 0
            if still == 2:
                return
            self.clock.forward(16 * MINUTE)
        raise AssertionError(f"no rest after {MOST_ROUNDS} rounds: {self._left()}")

    def _left(self) -> list[str]:
        """What is still to be done about sealed windows: calls that are pending, and windows that
        came of age and were not listed since. A window may wait with that where the source does not
        answer for one of its calls; what it knows by then, no segment tells before.

        Of a window whose listing is bad for ever no segment can tell anything more: there it is
        enough that what is pending has a record."""
        store = self.world.store
        archived = {key.split("/")[2] for key in store.keys if key.startswith("records/")}
        newest: dict[str, tuple[int, str]] = {}
        for item in store.list("manifest/segments/"):
            stem, _, rest = item.key.rpartition(".r")
            if rest.endswith(".jsonl"):
                revision = int(rest.removesuffix(".jsonl"))
                newest[stem] = max(newest.get(stem, (0, "")), (revision, item.key))
        left, bad = [], self._bad_window
        for _, key in newest.values():
            line = json.loads(store.object(key).data.splitlines()[-1])
            end, listed_at = moment(line["to"]), moment(line["listed_at"])
            can_tell = bad is None or bad.start != moment(line["from"])
            left += [i for i in line["pending"] if can_tell or i not in archived]
            came = [end + age for age in self.times.relist if end + age <= self.began]
            if can_tell and any(listed_at < age for age in came):
                left.append(f"{end} has come of age")
        return left

    @property
    def _bad_window(self) -> Window | None:
        """The window whose listing fails for ever."""
        bad = any(one.kind.startswith("listing") and not one.healed for one in self.harms.all)
        return self.spoilt if bad else None

    def _ledger(self) -> Ledger:
        """The bucket, held against the rules of its format."""
        self.world.finish()
        store = self.world.store
        ledger = Ledger(store.objects, self.world.key.public)
        ledger.check_tiling(START)
        assert len(store.keys) == len(list(store.versions(""))), "something was overwritten"
        return ledger

    # --- the verbs of the rules

    def _at(self, place: Place) -> datetime:
        """The time of a place: not before the archive begins, not after now."""
        now = self.clock.now()
        hours = max((now - START) // HOUR - place.back, 0)
        return min(START + hours * HOUR + place.position, now)

    def _placed(self, call_id: str) -> datetime | None:
        """The time by which the platform's filter places a call."""
        call, options = self.platform.all[call_id], self.platform.options
        for name in (options.filter_field, "startTime", "createdAt", "endTime"):
            if call.document.get(name):
                return moment(call.document[name])
        return call.listed_at

    def _call(self, place: Place, state: str, audio: Audio, epa: bool, when: When) -> None:
        number = len(self.ids)
        call_id = f"vc_{number}"
        self.ids.append(call_id)

        def comes() -> None:
            extra = {} if state == "Completed" else {"endTime": None, "durationSeconds": None}
            survey, at = {"score": number} if epa else None, self._at(place)
            # No window of the archive's would list one that was made before it begins.
            created = stamp(max(START, at - timedelta(seconds=1)))
            self.platform.add(
                a_call(call_id, at, audio=None, epa=survey, state=state, createdAt=created, **extra)
            )
            self._set_audio(call_id, audio)

        self._do(when, comes)

    def _set_audio(self, call_id: str, audio: Audio) -> None:
        """How it stands with the recording; its bytes are always the same."""
        there = {"none": None, "broken": BROKEN}.get(audio, recording_of(call_id))
        self.platform.change(call_id, recording=there)
        url, blob = self.platform.status["url"], self.platform.status["blob"]
        url.pop(call_id, None)
        blob.pop(call_id, None)
        if audio in ("gone", "url down"):
            url[call_id] = 410 if audio == "gone" else 503
        if audio in ("no blob", "blob down"):
            blob[call_id] = 404 if audio == "no blob" else 503
        self.audio[call_id] = audio
        self.heard.setdefault(call_id, set()).add(audio)

    def _do(self, when: When, change: Change) -> None:
        if when is None:
            change()
        else:
            self.platform.later(*when, change)

    def _on(self, number: int, change: Callable[[str], object], when: When) -> None:
        """Do something to a call, if it is there by then."""
        call_id = self.ids[number % len(self.ids)]
        self._do(when, lambda: change(call_id) if call_id in self.audio else None)

    def _pass_time(self, minutes: int) -> None:
        self.clock.forward(minutes * MINUTE)

    def _all_round(self) -> None:
        """A round of each writer that is there."""
        self.began = self.clock.now()
        self._round("main")
        if self.second is not None:
            self._round("second")

    def _round(self, who: Literal["main", "second"]) -> None:
        if who == "second" and self.second is None:
            self.second = self._writer("second")
        writer = self.main if who == "main" else self.second
        if writer.name in self.busy:
            return  # drift came while it was at work itself
        self.busy.add(writer.name)
        if not self._survives(writer, writer.round):
            setattr(self, who, self._writer(who))
        self.busy.discard(writer.name)

    def _survives(self, writer: Writer, work: Callable[[], object]) -> bool:
        """Whether the process has survived. A death within another's round is no death of it."""
        try:
            work()
        except Crash:
            if not writer.died:
                raise
            self._end(writer)
            return False
        return True

    def _end(self, writer: Writer) -> None:
        self.ended.add(writer.name)
        writer.close()

    def _writer(self, name: str) -> Writer:
        number = sum(one.startswith(name) for one in self.world.writers)
        return self.world.writer(f"{name}-{number}", self.part_bytes)


@in_parts
def test_nothing_that_was_listed_falls_silent(part):
    machine = seed(seed_of(part))(type("Completeness", (Completeness,), {}))
    run_state_machine_as_test(machine, settings=examples())
