"""Legal holds: an act sets or takes off the holds of whole calls, and is an entry on the ledger.

What the ledger calls held is held, always. So `add` sets every hold and looks whether it took, and
only then writes the act down; `remove` writes it down, seals it, and only then takes holds off. A
command that is cut off leaves holds that the ledger does not tell of (`verify` warns of them), and
never the reverse.

The same command, given again, does the rest, as an act of its own with its own time. An act that a
crash left unsealed is nobody's: anybody who can write to the bucket may have put it there, in
whosever name. No command seals it; `verify` and `hold list` tell of it.

What is wrong with the objects of one call keeps no other call waiting: it is left, the others are
done, and the command says which one it was. A store that is out ends the command.

Commands that run at the same time meet at the chain. A removal is sealed only behind the acts that
it was decided on. After its own act each command carries out what the ledger says of its calls by
then, until the ledger says nothing new: so the last act wins, in the bucket as on the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from io import BytesIO
from typing import Protocol

from archiver.clock import Clock, Interrupted
from archiver.errors import ArchiverError, KeyTaken, StoreError, UsageError
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Act, Action, Hold
from archiver.model import Retention, format_second
from archiver.pipeline.history import max_date
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.pipeline.sealing import Chain
from archiver.store.control import is_of_one_object
from archiver.store.objects import CallObjects

KEY_TRIES = 5
"""How often an act takes another key, where its own holds other bytes: 32 bits of a hash meet once
in 4 billion acts of one second, and anybody who can write to the bucket may have put them there."""
NAMED = 5
"""Ids that an error names; of more it tells the number."""
AGAIN = "; the act is not finished: run the same command again"


class Found(Protocol):
    """What there is of calls."""

    @property
    def calls(self) -> Mapping[str, CallObjects]: ...

    @property
    def left(self) -> Mapping[str, ArchiverError]: ...


class Told(Protocol):
    """What the archive tells of calls and holds (`audit/holds.py`). Raises `StoreError`."""

    @property
    def damaged(self) -> Sequence[str]:
        """What is wrong with acts that cannot be read, as of the last look."""

    def acts(self) -> Sequence[Act]:
        """Every sealed act, oldest first, as of now; an error where one is damaged."""

    def readable(self) -> Sequence[Act]:
        """The same without what is damaged."""

    def find(self, call_ids: Collection[str]) -> Found:
        """The objects of each call that has a record, and the calls whose objects cannot be asked
        for."""

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
    left: Mapping[str, ArchiverError] = field(default_factory=dict)
    """The calls that are not done, each with what is in the way: on the ledger or not."""


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
        hold, or several; `StoreError` where the store is out or refuses all calls, or the ledger is
        damaged and must be known: an `add` holds all the same.
        """
        wanted, now = list(dict.fromkeys(call_ids)), self._clock.now().replace(microsecond=0)
        looked = self._told.find(wanted)
        found, left = looked.calls, dict(looked.left)
        _refuse_unknown(wanted, {*found, *left})
        wanted = [one for one in wanted if one in found]
        if not wanted:
            raise next(iter(left.values()))
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
            done = self._carry_through(own, until, check, left)
        except StoreError as error:
            message = f"{error}{AGAIN}"
            raise StoreError(message, reason=error.reason, status=error.status) from None
        except Interrupted:
            raise Interrupted(AGAIN) from None
        return Result(done, self._told.damaged, left)

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
        self,
        own: Sequence[Hold],
        until: datetime | None,
        check: Callable[[], None] | None,
        left: dict[str, ArchiverError],
    ) -> list[Done]:
        """From the first hold that is set to the last look:

        1. set the holds (`add` only), and go on with the calls of which all took;
        2. make the act durable, under a key that is free;
        3. seal it: from here on it counts;
        4. carry out what the ledger says by then, which takes the holds off (`remove`).

        What cannot be done about a call is `left`. Raises the first such error where that is so of
        all calls.
        """
        if check is None:  # 1.
            refused = self._carry_out_all(own)[1]
            left |= refused
            own = [one for one in own if one.call_id not in refused]
            if not own:
                raise next(iter(refused.values()))
        # A crash before 2. leaves holds, if any, that the ledger does not tell of; after it, an
        # act that is not sealed, ever; and once it is sealed, at worst holds to be taken off.
        own, entry = self._write(own, until)
        self._chain.append([entry], check=check)
        number = self._chain.head.seq
        newest, gone, refused = self._settle(own)
        left |= refused
        if len(refused) == len(own):
            raise next(iter(refused.values()))
        return [
            Done(one, number, gone[one.call_id], undone=new.action != one.action)
            for one, new in zip(own, newest, strict=True)
            if one.call_id not in refused
        ]

    def _write(self, acts: Sequence[Hold], until: datetime | None) -> tuple[list[Hold], _Entry]:
        """Make a segment durable, with its companion; the acts as they stand in it."""
        for number in range(KEY_TRIES):
            own = [replace(one, id=event.random_id()) for one in acts]
            key, data = event.segment(own)
            try:
                self._store.put_once(
                    key, data, content_type="application/x-ndjson", retain_until=until
                )
                self._store.put_once(
                    layout.companion_key(key),
                    event.companion(key, data),
                    content_type="text/plain",
                    retain_until=until,
                )
            except KeyTaken:
                if number == KEY_TRIES - 1:
                    raise
                continue
            return own, _Entry(seal.describe(key, BytesIO(data), window_lines=0), until)
        raise AssertionError

    def _settle(
        self, own: Sequence[Hold]
    ) -> tuple[list[Hold], dict[str, frozenset[str]], dict[str, ArchiverError]]:
        """Carry out what the ledger says of these calls, also for objects that they have got
        meanwhile, until it says nothing new. Of each call the newest act; and what is gone, or in
        the way."""
        todo = self._newest(own)
        while True:
            gone, refused = self._carry_out_all(todo)
            before, todo = todo, self._newest(own)
            if todo == before:
                return todo, gone, refused

    def _newest(self, own: Sequence[Hold]) -> list[Hold]:
        """What the ledger says of our act's calls; our act where that cannot be read any more."""
        by_call = event.by_call(self._acts(own[0].action))
        return [by_call[one.call_id][-1].hold if one.call_id in by_call else one for one in own]

    def _carry_out_all(
        self, acts: Sequence[Hold]
    ) -> tuple[dict[str, frozenset[str]], dict[str, ArchiverError]]:
        """Of each call the keys of objects that are not there, or what is in the way."""
        results = dict(
            zip(
                (one.call_id for one in acts), self._workers.map(self._carry_out, acts), strict=True
            )
        )
        refused: dict[str, ArchiverError] = {}
        gone: dict[str, frozenset[str]] = {}
        for call_id, one in results.items():
            if isinstance(one, StoreError):
                refused[call_id] = one
            else:
                gone[call_id] = one
        return gone, refused

    def _carry_out(self, hold: Hold) -> frozenset[str] | StoreError:
        """Have all objects of a call held, or none; the keys of those that are not there. An object
        that the store refuses is passed by, and the error returned; a store that is out raises."""
        refused: StoreError | None = None
        try:
            found, add = self._told.beside(hold), hold.action == "add"
        except StoreError as error:
            return self._of_one_call(error)
        for one in sorted(found.loose if add else found.held, key=lambda one: one.key):
            try:
                self._store.set_hold(one.key, one.version_id, add)
            except StoreError as error:
                refused = refused or self._of_one_call(error)
        return refused or found.gone

    def _of_one_call(self, error: StoreError) -> StoreError:
        if not is_of_one_object(self._store, error):
            raise error
        return error


def _is_held(standing: Sequence[Act]) -> bool:
    return bool(standing) and standing[-1].hold.action == "add"


def _refuse_unknown(wanted: Sequence[str], found: Collection[str]) -> None:
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
