"""Legal holds: an act sets or takes off the holds of whole calls, and is an entry on the ledger.

What the ledger calls held is held, always. So `add` sets every hold and looks whether it took, and
only then writes the act down; `remove` writes it down, seals it, and only then takes holds off. A
command that is cut off leaves holds that the ledger does not tell of (`verify` warns of them), and
never the reverse.

What a crash leaves, and who finishes it:
- holds without an act, or a removal that is sealed while holds are still on: the same command,
  given again, does the rest, as one more act;
- an act that is written and not sealed: an `add` is carried out and sealed by the next command,
  whichever it is; a `remove` only by the same command, given again. Nobody relies on a removal
  that has reported failure, and none may strike later on its own.

Commands that run at the same time meet at the chain. After its own act each one carries out what
the ledger says of its calls by then, until the ledger says nothing new: so the last act wins, in
the bucket as on the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from io import BytesIO
from typing import Protocol

from archiver.clock import Clock
from archiver.errors import FormatError, StoreError, UsageError
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Act, Action, Hold
from archiver.model import Retention
from archiver.pipeline.history import max_date
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.pipeline.sealing import Chain
from archiver.store.objects import CallObjects

NAMED = 5
"""Ids that an error names; of more it tells the number."""


class Told(Protocol):
    """What the archive tells of calls and holds (`audit/holds.py`). Raises `StoreError`, and
    `FormatError` where the ledger is damaged."""

    def acts(self) -> Sequence[Act]:
        """Every sealed act, oldest first, as of now."""

    def find(self, call_ids: Collection[str], now: datetime) -> Mapping[str, CallObjects]:
        """The objects of each call that has a record."""

    def beside(self, hold: Hold) -> CallObjects:
        """The objects that an act names, and those that its call has got since. Threads share
        it."""


@dataclass(frozen=True)
class Done:
    """One call's part of an act that is done, with the number of its seal; `taken_up` where it was
    another command's, which had left it unsealed."""

    hold: Hold
    seal: int
    gone: frozenset[str]
    """Keys of objects that are missing or damaged, and so could not be held."""
    taken_up: bool = False
    undone: bool = False
    """Whether another command, sealed behind it, has reversed it already."""


@dataclass(frozen=True)
class Result:
    """What a command did."""

    done: Sequence[Done]
    passed_by: Sequence[Hold]
    """Removals that it found unsealed, and left so."""
    ended: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    """By call id, the acts by which a call was held that is not held any more."""


@dataclass(frozen=True)
class _Written:
    """A segment of events that is written, or about to be."""

    key: str
    data: bytes
    events: Sequence[Hold]

    @property
    def says(self) -> list[tuple[object, ...]]:
        return [one.said for one in self.events]

    @property
    def adds(self) -> bool:
        return all(one.action == "add" for one in self.events)


@dataclass(frozen=True)
class _Entry:
    """A segment of events that waits for its seal."""

    entry: seal.SegmentEntry
    retain_until: datetime | None


class Holds:
    """Does the acts. One thread uses it."""

    def __init__(
        self,
        store: Store,
        chain: Chain,
        told: Told,
        workers: Workers,
        clock: Clock,
        retention: Retention,
    ) -> None:
        """`chain` is open."""
        self._store = store
        self._chain = chain
        self._told = told
        self._workers = workers
        self._clock = clock
        self._retention = retention

    def act(self, action: Action, call_ids: Sequence[str], by: str, reason: str) -> Result:
        """Put holds on calls, or take them off. Raises `UsageError`, with nothing done, where a
        call has no record or, for `remove`, no hold; `StoreError` where the store refuses."""
        wanted = list(dict.fromkeys(call_ids))
        found = self._told.find(wanted, self._clock.now())
        told = self._told.acts()
        before = _newest(told)
        _refuse(action, wanted, found, before)
        now = self._clock.now().replace(microsecond=0)
        own = [
            Hold(action, one, by, reason, now, _objects(action, found[one], before.get(one)))
            for one in wanted
        ]
        until = self._retention.until(now)
        for one in found.values():
            until = max_date(until, one.promised)
        try:
            result = self._carry_through(own, until)
        except StoreError as error:
            raise StoreError(
                f"{error}; the act is not finished: run the same command again",
                reason=error.reason,
                status=error.status,
            ) from None
        return replace(result, ended=_ended(own, told))

    def _carry_through(self, own: Sequence[Hold], until: datetime | None) -> Result:
        """From the first hold that is set to the last look."""
        waiting = self._unsealed()
        new = _Written(*event.segment(own), own)
        mine = next((one for one in waiting if one.says == new.says), new)
        others = [one for one in waiting if one is not mine and one.adds]
        passed_by = [e for one in waiting if one is not mine and not one.adds for e in one.events]
        todo = [*others, mine]
        self._set([e for one in todo for e in one.events if e.action == "add"])
        # A crash before this leaves holds, if any, that the ledger does not tell of; after it, an
        # act that is not sealed; and once it is sealed, at worst holds that are to be taken off.
        self._chain.append([self._write(one, until) for one in todo])
        acts, gone = self._settle({e.call_id for one in todo for e in one.events})
        newest = _newest(acts)
        sealed = {(act.segment, act.hold): act.seal for act in acts}
        done = [
            Done(
                e,
                sealed[one.key, e],
                gone[e.call_id],
                taken_up=one is not mine,
                undone=newest[e.call_id].hold.action != e.action,
            )
            for one in todo
            for e in one.events
        ]
        return Result(done, passed_by)

    # --- on the ledger

    def _unsealed(self) -> list[_Written]:
        """The segments of events without a pointer. What was sealed before the chain was opened
        has one; what is sealed meanwhile, the chain itself passes by."""
        stems: dict[str, set[str]] = {}
        for item in self._store.list(layout.EVENTS):
            if (parsed := layout.parse_event_key(item.key)) is not None:
                stems.setdefault(parsed[0], set()).add(parsed[1])
        open_ones = [
            stem for stem, parts in stems.items() if "jsonl" in parts and "seal" not in parts
        ]
        read = (self._read(stem + ".jsonl") for stem in sorted(open_ones))
        return [one for one in read if one is not None]

    def _read(self, key: str) -> _Written | None:
        """None for what is no act of ours: it stays as it is, for `verify` to tell of."""
        data = self._store.read(key, max_bytes=event.MAX_SEGMENT_BYTES) or b""
        try:
            events = event.parse_segment(data)
        except FormatError:
            return None
        ours = events and event.segment(events) == (key, data)
        return _Written(key, data, events) if ours else None

    def _write(self, one: _Written, until: datetime | None) -> _Entry:
        """Make a segment durable, with its companion; what is there already is adopted."""
        self._store.put_once(
            one.key, one.data, content_type="application/x-ndjson", retain_until=until
        )
        companion = event.companion(one.key, one.data)
        key = one.key.removesuffix(".jsonl") + ".sha256"
        self._store.put_once(key, companion, content_type="text/plain", retain_until=until)
        return _Entry(seal.describe(one.key, BytesIO(one.data), window_lines=0), until)

    # --- in the bucket

    def _set(self, holds: Iterable[Hold]) -> None:
        self._workers.map(self._carry_out, holds)

    def _settle(self, call_ids: set[str]) -> tuple[Sequence[Act], dict[str, frozenset[str]]]:
        """Carry out what the ledger says of these calls, also for objects that they have got
        meanwhile, until it says nothing new; all acts, and what is gone of each call."""
        acts = self._told.acts()
        while True:
            newest = _newest(acts)
            todo = [newest[call_id].hold for call_id in sorted(call_ids)]
            gone = self._workers.map(self._carry_out, todo)
            acts = self._told.acts()
            if all(_newest(acts)[one.call_id].hold == one for one in todo):
                return acts, dict(zip(sorted(call_ids), gone, strict=True))

    def _carry_out(self, hold: Hold) -> frozenset[str]:
        """Have all objects of a call held, or none; the keys of those that are not there."""
        found, add = self._told.beside(hold), hold.action == "add"
        for one in sorted(found.loose if add else found.held, key=lambda one: one.key):
            self._store.set_hold(one.key, one.version_id, add)
        return found.gone


def _newest(acts: Iterable[Act]) -> dict[str, Act]:
    return {act.hold.call_id: act for act in acts}


def _ended(own: Sequence[Hold], told: Sequence[Act]) -> dict[str, list[Act]]:
    """Of each removal, by call id, the acts that it has ended."""
    removed = [one.call_id for one in own if one.action == "remove"]
    about = {i: [act for act in told if act.hold.call_id == i] for i in removed}
    return {i: event.standing(a) for i, a in about.items() if a and a[-1].hold.action == "add"}


def _objects(action: Action, found: CallObjects, before: Act | None) -> tuple[event.ObjectRef, ...]:
    """What an act is about: all that the call has. A removal is also about what the hold before
    was put on, should the call's records name it no more."""
    held_before = before.hold.objects if action == "remove" and before is not None else ()
    return event.in_order({*found.all, *held_before})


def _refuse(
    action: Action,
    wanted: Sequence[str],
    found: Mapping[str, CallObjects],
    before: Mapping[str, Act],
) -> None:
    unknown = [one for one in wanted if one not in found]
    if unknown:
        raise UsageError(
            f"the archive has no record of {_names(unknown)}, so nothing was done: check the id; "
            "a call that is still pending can be held once it is archived"
        )
    if action == "add":
        return
    free = [
        one
        for one in wanted
        if not found[one].held and (one not in before or before[one].hold.action != "add")
    ]
    if free:
        raise UsageError(f"no hold is on {_names(free)}, so nothing was done")


def _names(call_ids: Sequence[str]) -> str:
    shown = ", ".join(ascii(one)[1:-1] for one in call_ids[:NAMED])
    more = len(call_ids) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown
