"""An archive and the platform that misbehaves before it: the verbs of the properties' tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

from archiver.core.model import Window, window_of
from archiver.manifest import layout
from tests.fakes import harm
from tests.fakes.audio import wav
from tests.fakes.calls import BytesRecording
from tests.fakes.harm import Harms
from tests.fakes.memory_rig import HOUR, Crash, Times, World, Writer
from tests.fakes.memory_source import Change, Moment, Sighting
from tests.fakes.memory_store import Object
from tests.fakes.population import a_call, stamp
from tests.model.ledger import Ledger, moment

START = datetime(2024, 1, 15, 22, 0, tzinfo=UTC)
"""Where the archive begins: two windows before midnight, so that days meet."""
MINUTE = timedelta(minutes=1)
TICK = timedelta(milliseconds=1)
POSITIONS = (timedelta(0), TICK, 20 * MINUTE, HOUR - timedelta(seconds=1), HOUR - TICK)
"""Where in a window a call starts."""
MOST_ROUNDS = 30
"""Everything must have come to rest after so many rounds without drift."""

When = tuple[Moment, int] | None
"""Drift: so many pages, passes or requests from now; None for at once."""
Audio = Literal["there", "none", "gone", "no blob", "url down", "blob down", "broken"]
Bad = Literal["listing", "entry", "call", "survey", "url"]
"""What may be bad for ever: a window's listing, an entry of it, one request about a call."""
HEALTHY: tuple[Audio, ...] = ("there", "none", "gone")
"""What the source itself says of a recording; all else is trouble with it."""


@cache
def recording(number: int) -> BytesRecording:
    return BytesRecording(wav(0.05, seed=number))


BROKEN = BytesRecording(b"<html>this is no recording</html>")


@dataclass(frozen=True)
class Place:
    """A start time: `back` windows before the current one, and where in it."""

    back: int
    position: timedelta


class Scene:
    """A world with one writer, `main`, and maybe a `second`; calls are told by their number."""

    def __init__(self, times: Times, part_bytes: int = 8 << 20, **options: Any) -> None:
        self.world = World(START + 70 * MINUTE, START, times, **options)
        self.platform, self.clock = self.world.platform, self.world.clock
        self.audio: dict[str, Audio] = {}
        self.heard: dict[str, set[Audio]] = {}
        """call id → all that was ever true of its recording"""
        self.ids: list[str] = []
        self.ended: set[str] = set()
        self._part_bytes = part_bytes
        self.harms = Harms()
        """What is bad for ever: until `heal`."""
        self._spoilt: Window | None = None
        """The window that it befalls."""
        self.began = self.clock.now()
        """When the last `all_round` began."""
        self._busy: set[str] = set()
        self._moves = False
        self.main = self._writer("main")
        self.second: Writer | None = None

    # --- what happens at the source

    def at(self, place: Place) -> datetime:
        """The time of a place: not before the archive begins, not after now."""
        now = self.clock.now()
        hours = max((now - START) // HOUR - place.back, 0)
        return min(START + hours * HOUR + place.position, now)

    def call(self, place: Place, state: str, audio: Audio, epa: bool, when: When = None) -> None:
        number = len(self.ids)
        call_id = f"vc_{number}"
        self.ids.append(call_id)

        def comes() -> None:
            extra = {} if state == "Completed" else {"endTime": None, "durationSeconds": None}
            survey = {"score": number} if epa else None
            at = self.at(place)
            # No window of the archive's would list one that was made before it begins.
            created = stamp(max(START, at - timedelta(seconds=1)))
            call = a_call(
                call_id, at, audio=None, epa=survey, state=state, createdAt=created, **extra
            )
            self.platform.add(call)
            self._set_audio(call_id, audio)

        self._do(when, comes)

    def timeless(self, place: Place, when: When = None) -> None:
        """A call without any time of its own: the platform lists it where it likes."""
        call_id = f"vc_{len(self.ids)}"
        self.ids.append(call_id)

        def comes() -> None:
            call = a_call(call_id, audio=None, startTime=None, endTime=None, createdAt=None)
            call.listed_at = self.at(place)
            self.platform.add(call)
            self._set_audio(call_id, "there")

        self._do(when, comes)

    def flash(self, place: Place, audio: Audio, pages: int, gone: bool, when: When = None) -> None:
        """A call that is listed for so many pages, and never again."""
        call_id = f"vc_{len(self.ids)}"
        to = self.platform.gone if gone else self.platform.hidden
        self.call(place, "Completed", audio, False, when)
        self._do(when, lambda: self.platform.later("page", pages, lambda: to.add(call_id)))

    def storm(self, number: int, passes: int) -> None:
        """A call comes and goes with each pass: no two in a row agree."""

        def turns(call_id: str) -> None:
            self.platform.hidden.symmetric_difference_update({call_id})

        for later in range(passes):
            self._on(number, turns, ("pass", later))

    def complete(self, number: int, when: When = None) -> None:
        def completes(call_id: str) -> None:
            started = self._document(call_id)["startTime"] or stamp(START)
            end = moment(started) + timedelta(seconds=1)
            self._set(call_id, state="Completed", endTime=stamp(end), durationSeconds=1)

        self._on(number, completes, when)

    def set(self, number: int, when: When = None, **fields: Any) -> None:
        """Fields of the document change, or the survey (`epa`)."""
        self._on(number, lambda call_id: self._set(call_id, **fields), when)

    def move(self, number: int, place: Place, when: When = None) -> None:
        """The call turns out to have started at another time."""
        self._moves = True
        self._on(number, lambda i: self._set(i, startTime=stamp(self.at(place))), when)

    def hide(self, number: int, gone: bool, when: When = None) -> None:
        to = self.platform.gone if gone else self.platform.hidden
        self._on(number, to.add, when)

    def show(self, number: int, when: When = None) -> None:
        def shows(call_id: str) -> None:
            self.platform.hidden.discard(call_id)
            self.platform.gone.discard(call_id)

        self._on(number, shows, when)

    def repeat(self, number: int, when: When = None) -> None:
        self._on(number, self.platform.repeated.add, when)

    def set_audio(self, number: int, audio: Audio, when: When = None) -> None:
        self._on(number, lambda call_id: self._set_audio(call_id, audio), when)

    def spoil(self, number: int, kind: Bad) -> None:
        """Something about a call, or its window's listing, is bad from now on; one such thing."""
        if not self.ids or self.harms.all:
            return
        call_id = self.ids[number % len(self.ids)]
        if not self._known(call_id):
            return
        placed = self.placed(call_id) or START
        window = self._spoilt = window_of(placed, self.world.times.window)
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

    @property
    def bad_window(self) -> Window | None:
        """The window whose listing fails for ever."""
        bad = any(one.kind.startswith("listing") and not one.healed for one in self.harms.all)
        return self._spoilt if bad else None

    def _do(self, when: When, change: Change) -> None:
        if when is None:
            change()
        else:
            self.platform.later(*when, change)

    def _on(self, number: int, change: Callable[[str], None], when: When) -> None:
        """Do something to a call, if it is there by then."""
        if not self.ids:
            return
        call_id = self.ids[number % len(self.ids)]
        self._do(when, lambda: change(call_id) if self._known(call_id) else None)

    def _known(self, call_id: str) -> bool:
        return call_id in self.audio

    def _document(self, call_id: str) -> dict[str, Any]:
        return self.platform.all[call_id].document

    def _set(self, call_id: str, **fields: Any) -> None:
        self.platform.change(call_id, **fields)

    def _set_audio(self, call_id: str, audio: Audio) -> None:
        """How it stands with the recording; its bytes are always the same."""
        there = {"none": None, "broken": BROKEN}.get(audio, recording(int(call_id[3:]) % 16))
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

    # --- what the archiver does

    def pass_time(self, minutes: int) -> None:
        self.clock.forward(minutes * MINUTE)

    def round(self, when: When = None) -> None:
        self._do(when, lambda: self._run("main", lambda writer: writer.round()))

    def second_round(self, when: When = None) -> None:
        """Another writer's round, at once or in the middle of one of ours."""
        self._do(when, lambda: self._run("second", lambda writer: writer.round()))

    def all_round(self) -> None:
        """A round of each writer that is there."""
        self.began = self.clock.now()
        self.round()
        if self.second is not None:
            self.second_round()

    def backfill(self, place: Place, hours: int, when: When = None) -> None:
        """A process of its own: it begins, works at a range, and ends."""

        def run() -> None:
            start = self.at(place)
            writer = self._writer("backfill")
            self._guarded(writer, lambda: writer.backfill(start, start + hours * HOUR))
            self.end(writer)

        self._do(when, run)

    def restart(self) -> None:
        """`main` ends; another process takes its place, and knows only what the bucket tells."""
        self.end(self.main)
        self.main = self._writer("main")

    def crash(self, writes: int, moment: Literal["before", "after"]) -> None:
        """`main` will die in the middle of a later round."""
        self.main.dies(writes, moment)

    def end(self, writer: Writer) -> None:
        self.ended.add(writer.name)
        writer.close()

    def _writer(self, name: str) -> Writer:
        number = sum(one.startswith(name) for one in self.world.writers)
        return self.world.writer(f"{name}-{number}", self._part_bytes)

    def _run(self, who: Literal["main", "second"], work: Callable[[Writer], object]) -> None:
        if who == "second" and self.second is None:
            self.second = self._writer("second")
        writer = self.main if who == "main" else self.second
        assert writer is not None
        if writer.name in self._busy:
            return  # drift came while it was at work itself
        self._busy.add(writer.name)
        if not self._guarded(writer, lambda: work(writer)):
            setattr(self, who, self._writer(who))
        self._busy.discard(writer.name)

    def _guarded(self, writer: Writer, work: Callable[[], object]) -> bool:
        """Whether the process has survived. A death within another's round is no death of it."""
        try:
            work()
        except Crash:
            if not writer.died:
                raise
            self.end(writer)
            return False
        return True

    # --- how it ends

    def come_to_rest(self) -> None:
        """No drift any more; time goes on until nothing is left to do, and nothing is written but
        that nothing changed."""
        self.platform.calm()
        self.main.store.hooks.clear()
        times = self.world.times
        still = 0
        self.clock.forward(times.longest + times.window)
        for _ in range(MOST_ROUNDS):
            before = self._records()
            self.all_round()
            still = still + 1 if before == self._records() and not self._left() else 0
            if still == 2:
                return
            self.clock.forward(16 * MINUTE)
        raise AssertionError(f"no rest after {MOST_ROUNDS} rounds: {self._left()}")

    def _records(self) -> int:
        return sum(1 for _ in self.world.store.list("records/"))

    def _left(self) -> list[str]:
        """What is still to be done about sealed windows: calls that are pending, and windows that
        came of age and were not listed since. A window may wait with that where the source does not
        answer for one of its calls; what it knows by then, no segment tells before.

        Of a window whose listing is bad for ever no segment can tell anything more: there it is
        enough that what is pending has a record."""
        archived = {
            key.split("/")[2] for key in self.world.store.keys if key.startswith("records/")
        }
        ages, bad, left = self.world.times.relist, self.bad_window, []
        for line in self._newest_lines():
            end, listed_at = moment(line["to"]), moment(line["listed_at"])
            can_tell = bad is None or bad.start != moment(line["from"])
            left += [i for i in line["pending"] if can_tell or i not in archived]
            came = [end + age for age in ages if end + age <= self.began]
            if can_tell and any(listed_at < age for age in came):
                left.append(f"{end} has come of age")
        return left

    def _newest_lines(self) -> list[Any]:
        """The window lines of the newest revisions."""
        store = self.world.store
        newest: dict[str, tuple[int, str]] = {}
        for item in store.list("manifest/segments/"):
            stem, _, rest = item.key.rpartition(".r")
            if rest.endswith(".jsonl"):
                revision = int(rest.removesuffix(".jsonl"))
                newest[stem] = max(newest.get(stem, (0, "")), (revision, item.key))
        return [json.loads(store.object(key).data.splitlines()[-1]) for _, key in newest.values()]

    def heal(self) -> None:
        """Whatever was wrong with a recording is over, what has none has none; nothing is bad."""
        for one in self.harms.all:
            one.healed = True
        for call_id, audio in list(self.audio.items()):
            if audio not in HEALTHY:
                self._set_audio(call_id, "there")

    def backfill_all(self) -> Writer:
        """List every window once more, and try again what has no recording or has failed."""
        writer = self._writer("last")
        writer.backfill(START, self.clock.now())
        return writer

    # --- what must hold

    def placed(self, call_id: str) -> datetime | None:
        """The time by which the platform's filter places a call."""
        call, options = self.platform.all[call_id], self.platform.options
        for name in (options.filter_field, "startTime", "createdAt", "endTime"):
            if call.document.get(name):
                return moment(call.document[name])
        return call.listed_at

    def ledger(self) -> Ledger:
        """The bucket, held against the rules of its format."""
        self.world.finish()
        store = self.world.store
        ledger = Ledger(store.objects, self.world.key.public)
        ledger.check_tiling(START)
        assert len(store.keys) == len(list(store.versions(""))), "something was overwritten"
        return ledger

    def silent(self, ledger: Ledger) -> dict[str, list[str]]:
        """The ids that were listed as completed and of which the archive tells nothing, with who
        saw them in which window; without those that nobody can know of (`is_unknowable`)."""
        told = ledger.recorded | ledger.pending
        return {
            call_id: [f"{one.at:%H:%M:%S} {one.client} {one.asked['dateFrom']}" for one in seen]
            for call_id, seen in self.platform.listed.items()
            if call_id not in told
            and not is_unknowable(call_id, seen, self.ended, self.world.store.objects)
        }

    def orphans(self, ledger: Ledger) -> set[str]:
        """Keys of records that no segment carries, though somebody could have told of them."""
        return {key for key in ledger.unsealed if not self._may_be_untold(key, ledger)}

    def _may_be_untold(self, key: str, ledger: Ledger) -> bool:
        """Whether a record may stand in no segment. Its call is told of by another one, after it
        moved or after a crash; or its writer has ended, and no process that began later can be
        held to look for it: others were alive then, who had looked before, or it does not say in
        which window the source listed the call."""
        record = json.loads(self.world.store.object(key).data)
        ended = self.world.store.object(key).writer in self.ended
        if record["call_id"] in ledger.recorded:
            return ended or self._moves
        others = any(not name.startswith("main") for name in self.world.writers)
        return ended and (others or self._listed_elsewhere or record["started_at"] is None)

    @property
    def _listed_elsewhere(self) -> bool:
        """Whether a call may be listed in another window than that of its start."""
        options = self.platform.options
        return options.whole_days or options.filter_field != "startTime" or self._moves

    def expected(self, call_id: str) -> set[tuple[str, str | None]]:
        """What a call may come to once its faults have healed: outcome and digest of its recording.

        What was archived stays so, and a recording that there was once can't be said to be none.
        """
        archived = ("archived", recording(int(call_id[3:]) % 16).sha256())
        if self.audio[call_id] == "there":
            return {archived}
        past = self.heard[call_id]
        found: set[tuple[str, str | None]] = {("no_recording", None)}
        found |= {archived} if "there" in past else set()
        return found | ({("failed", None)} if past - {*HEALTHY} else set())


def is_unknowable(
    call_id: str, seen: list[Sighting], ended: set[str], objects: list[Object]
) -> bool:
    """Whether only processes saw the call that ended before they could write down that they had:
    they wrote nothing any more, but sightings that do not name it."""
    last = {
        made.writer: made.number for made in objects if not made.key.startswith(layout.SIGHTINGS)
    }
    if any(one.client not in ended or last.get(one.client, 0) > one.number for one in seen):
        return False
    named = (json.loads(made.data) for made in objects if made.key.startswith(layout.SIGHTINGS))
    return not any(call_id in document["ids"] for document in named)
