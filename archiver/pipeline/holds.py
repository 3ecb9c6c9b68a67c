"""Legal holds: an act sets or takes off the holds of whole calls, and is an entry on the ledger.

What the ledger calls held is held, always. So `add` sets every hold and looks whether it took, and
only then writes the act down; `remove` writes it down, seals it, and only then takes holds off. A
command that is cut off leaves holds that the ledger does not tell of (`verify` warns of them), and
never the reverse.

The same command, given again, does the rest, as an act of its own with its own time. An act that a
crash left unsealed is nobody's: anybody who can write to the bucket may have put it there, in
whosever name. No command seals it; `verify` and `hold list` tell of it.

Commands that run at the same time meet at the chain. A removal is sealed only behind the acts that
it was decided on. After its own act each command carries out what the ledger says of its calls by
then, until the ledger says nothing new: so the last act wins, in the bucket as on the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Protocol

from archiver.clock import Clock, Interrupted
from archiver.errors import StoreError, UsageError
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Act, Action, Hold
from archiver.model import Retention, format_second
from archiver.pipeline.history import max_date
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.pipeline.sealing import Chain
from archiver.store.objects import CallObjects

NAMED = 5
"""Ids that an error names; of more it tells the number."""
AGAIN = "; the act is not finished: run the same command again"


class Told(Protocol):
    """What the archive tells of calls and holds (`audit/holds.py`). Raises `StoreError`."""

    @property
    def damaged(self) -> Sequence[str]:
        """What is wrong with acts that cannot be read, as of the last look."""

    def acts(self) -> Sequence[Act]:
        """Every sealed act, oldest first, as of now; an error where one is damaged."""

    def readable(self) -> Sequence[Act]:
        """The same without what is damaged."""

    def find(self, call_ids: Collection[str], now: datetime) -> Mapping[str, CallObjects]:
        """The objects of each call that has a record."""

    def beside(self, hold: Hold) -> CallObjects:
        """What lies by now where an act's objects lie. Threads share it."""


@dataclass(frozen=True)
class Done:
    """One call's part of an act that is done, with the number of its seal."""

    hold: Hold
    seal: int
    gone: frozenset[str]
    """Keys of objects that are missing, hidden or damaged."""
    undone: bool = False
    """Whether another command, sealed behind it, has reversed it already."""


@dataclass(frozen=True)
class Result:
    """What a command did."""

    done: Sequence[Done]
    damaged: Sequence[str] = ()
    """What of the ledger could not be read."""


@dataclass(frozen=True)
class _Entry:
    """A segment of events that waits for its seal."""

    entry: seal.SegmentEntry
    retain_until: datetime | None
    found_since: datetime | None = None


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

    def act(
        self,
        action: Action,
        call_ids: Sequence[str],
        by: str,
        reason: str,
        *,
        every: bool = False,
    ) -> Result:
        """Put holds on calls, or take them off; `every` takes off what several acts have put on.

        Raises `UsageError`, with nothing done, where a call has no record or, for `remove`, no
        hold, or several; `StoreError` where the store refuses, or the ledger is damaged and must
        be known: an `add` holds all the same.
        """
        wanted, now = list(dict.fromkeys(call_ids)), self._clock.now().replace(microsecond=0)
        found = self._told.find(wanted, now)
        _refuse_unknown(wanted, found)
        told = self._acts(action)
        by_call = event.by_call(told)
        standing = {one: event.standing(by_call.get(one, ())) for one in wanted}
        if action == "remove":
            _refuse_removal(found, standing, every=every)
        own = [
            Hold(action, one, by, reason, now, event.in_order(found[one].named)) for one in wanted
        ]
        until = self._until(found.values(), now)
        check = None if action == "add" else self._check(standing)
        try:
            done = self._carry_through(own, until, check)
        except StoreError as error:
            message = f"{error}{AGAIN}"
            raise StoreError(message, reason=error.reason, status=error.status) from None
        except Interrupted:
            raise Interrupted(AGAIN) from None
        return Result(done, self._told.damaged)

    def _acts(self, action: Action) -> Sequence[Act]:
        """To hold what is held does no harm; to take off a hold that cannot be seen does."""
        return self._told.readable() if action == "add" else self._told.acts()

    def _until(self, found: Iterable[CallObjects], now: datetime) -> datetime | None:
        """How long the act is locked: no shorter than what it is about, nor than the archive's
        newest seal, whatever the settings of whoever acts."""
        head = self._store.head(layout.seal_key(self._chain.head.seq))
        until = max_date(self._retention.until(now), head.lock_until if head else None)
        for one in found:
            until = max_date(until, one.locked_until)
        return until

    def _check(self, before: Mapping[str, Sequence[Act]]) -> Callable[[], None]:
        """Refuses to seal a removal once there is an act that it was not decided on."""

        def check() -> None:
            by_call = event.by_call(self._told.acts())
            for call_id, seen in before.items():
                newest = by_call.get(call_id, [])[-1:]
                if newest != list(seen[-1:]):
                    raise UsageError(
                        f"nothing was taken off: meanwhile there is an act about {call_id!a} by "
                        f"{_who(newest)}: look at hold list, and decide anew"
                    )

        return check

    def _carry_through(
        self, own: Sequence[Hold], until: datetime | None, check: Callable[[], None] | None
    ) -> list[Done]:
        """From the first hold that is set to the last look."""
        if check is None:
            self._workers.map(self._carry_out, own)
        key, data = event.segment(own)
        # A crash before this leaves holds, if any, that the ledger does not tell of; after it, an
        # act that is not sealed, ever; and once it is sealed, at worst holds to be taken off.
        self._chain.append([self._write(key, data, until)], check=check)
        number = self._chain.head.seq
        return [
            Done(one, number, gone, undone=newest.action != one.action)
            for one, newest, gone in self._settle(own)
        ]

    def _write(self, key: str, data: bytes, until: datetime | None) -> _Entry:
        """Make a segment durable, with its companion."""
        self._store.put_once(key, data, content_type="application/x-ndjson", retain_until=until)
        self._store.put_once(
            layout.companion_key(key),
            event.companion(key, data),
            content_type="text/plain",
            retain_until=until,
        )
        return _Entry(seal.describe(key, BytesIO(data), window_lines=0), until)

    def _settle(self, own: Sequence[Hold]) -> list[tuple[Hold, Hold, frozenset[str]]]:
        """Carry out what the ledger says of these calls, also for objects that they have got
        meanwhile, until it says nothing new. Of each call our act, the newest one, and what is
        gone."""
        todo = self._newest(own)
        while True:
            gone = self._workers.map(self._carry_out, todo)
            before, todo = todo, self._newest(own)
            if todo == before:
                return list(zip(own, todo, gone, strict=True))

    def _newest(self, own: Sequence[Hold]) -> list[Hold]:
        """What the ledger says of our act's calls; our act where that cannot be read any more."""
        by_call = event.by_call(self._acts(own[0].action))
        return [by_call[one.call_id][-1].hold if one.call_id in by_call else one for one in own]

    def _carry_out(self, hold: Hold) -> frozenset[str]:
        """Have all objects of a call held, or none; the keys of those that are not there."""
        found, add = self._told.beside(hold), hold.action == "add"
        for one in sorted(found.loose if add else found.held, key=lambda one: one.key):
            self._store.set_hold(one.key, one.version_id, add)
        return found.gone


def _is_held(standing: Sequence[Act]) -> bool:
    return bool(standing) and standing[-1].hold.action == "add"


def _refuse_unknown(wanted: Sequence[str], found: Mapping[str, CallObjects]) -> None:
    if unknown := [one for one in wanted if one not in found]:
        raise UsageError(
            f"the archive has no record of {_names(unknown)}, so nothing was done: check the id; "
            "a call that is still pending can be held once it is archived"
        )


def _refuse_removal(
    found: Mapping[str, CallObjects], standing: Mapping[str, Sequence[Act]], *, every: bool
) -> None:
    free = [i for i, acts in standing.items() if not found[i].held and not _is_held(acts)]
    # What this very command took off before it was cut off must not keep it from the rest.
    if len(free) == len(standing) or any(not standing[one] for one in free):
        raise UsageError(f"no hold is on {_names(free)}, so nothing was done")
    for call_id, acts in () if every else standing.items():
        # The same command given again is no other matter.
        if _is_held(acts) and len({(act.hold.by, act.hold.reason) for act in acts}) > 1:
            raise UsageError(
                f"{call_id!a} is held by {len(acts)} acts, so nothing was done: {_who(acts)}. "
                "A removal ends them all: if that is meant, say --all"
            )


def _who(acts: Sequence[Act]) -> str:
    """By whom, why and when, for people."""
    told = [
        f"{_plain(act.hold.by)} ({_plain(act.hold.reason)}, {format_second(act.hold.at)})"
        for act in acts[:NAMED]
    ]
    more = len(acts) - NAMED
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")


def _plain(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _names(call_ids: Sequence[str]) -> str:
    """Ids in quotes, for people; of more than some the number."""
    shown = ", ".join(ascii(one) for one in call_ids[:NAMED])
    more = len(call_ids) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown
