"""Legal holds: an act sets or takes off the holds of whole calls, and is an event on the ledger.

What the ledger calls held is held, always. So `add` sets every hold and checks that it took, and
only then writes the act down; `remove` writes it down, seals it, and only then takes holds off. A
command that is cut off leaves holds that the ledger does not have (`verify` warns of them), and
never the reverse.

- The same command, given again, does the rest, as an act of its own with its own time. An act that
  a crash left unsealed is nobody's: anybody who can write to the bucket may have put it there, in
  anybody's name. No command seals it; `verify` and `hold list` report it.
- What is wrong with the objects of one call keeps no other call waiting: it is left, the others are
  done, and the command says which one it was. A store that is out ends the command.
- Commands that run at the same time meet at the chain. A removal is sealed only behind the acts
  that it was decided on. After its own act each command carries out what the ledger says of its
  calls by then, until the ledger says nothing new: so the last act wins, in the bucket as on the
  ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from io import BytesIO
from typing import Protocol

from archiver.core.clock import Clock, Interrupted
from archiver.core.concurrency import Workers
from archiver.core.errors import ArchiverError, KeyTaken, StoreError, UsageError
from archiver.core.model import Retention, format_second
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Act, Action, Hold
from archiver.pipeline.bucket_state import UnsealedSegment
from archiver.pipeline.chain import Chain
from archiver.pipeline.retention import latest_date
from archiver.store.bucket import Bucket, is_of_one_object
from archiver.store.types import CallObjects

KEY_TRIES = 5
"""How often an act takes another key, where its own holds other bytes: 32 bits of a hash collide
once in 4 billion acts of one second, and anybody who can write to the bucket may have put them
there."""
NAMED = 5
"""Ids that an error names; of more it states the number."""
AGAIN = "; the act is not finished: run the same command again"


class HoldLedger(Protocol):
    """What the archive has of calls and holds (`audit/hold_ledger.py`). Raises `StoreError`."""

    @property
    def damaged(self) -> Sequence[str]:
        """What is wrong with acts that cannot be read, as of the last reading."""

    def acts(self) -> Sequence[Act]:
        """Every sealed act, oldest first, as of now; an error where one is damaged."""

    def readable(self) -> Sequence[Act]:
        """The same without what is damaged."""

    def find(
        self, call_ids: Collection[str]
    ) -> tuple[dict[str, CallObjects], dict[str, StoreError]]:
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
class ActResult:
    """What a command did."""

    done: Sequence[Done]
    damaged: Sequence[str] = ()
    """What of the ledger could not be read."""
    left: Mapping[str, ArchiverError] = field(default_factory=dict)
    """The calls that are not done, each with what is in the way: on the ledger or not."""


class Holds:
    """Does the acts. One thread uses it."""

    def __init__(
        self,
        store: Bucket,
        chain: Chain,
        ledger: HoldLedger,
        workers: Workers,
        clock: Clock,
        retention: Retention,
    ) -> None:
        """`chain` is open."""
        self._store = store
        self._chain = chain
        self._ledger = ledger
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
    ) -> ActResult:
        """Put holds on calls, or take them off; `every` takes off what several acts have put on.

        1. Find the calls' objects, and refuse what cannot be done as a whole.
        2. Set the holds (`add` only), and go on with the calls where all took.
        3. Make the act durable, under a key that is free.
        4. Seal it: from here on it counts.
        5. Carry out what the ledger says by then, which takes the holds off (`remove`), also of
           objects that the calls have got meanwhile, until the ledger says nothing new.

        Raises `UsageError`, with nothing done, where a call has no record or, for `remove`, no
        hold, or several; `StoreError` where the store is out or refuses all calls, or the ledger is
        damaged and must be known: an `add` holds all the same.
        """
        # 1.
        wanted, now = list(dict.fromkeys(call_ids)), self._clock.now().replace(microsecond=0)
        calls, refused = self._ledger.find(wanted)
        left: dict[str, ArchiverError] = {**refused}
        _refuse_unknown(wanted, {*calls, *left})
        wanted = [call_id for call_id in wanted if call_id in calls]
        if not wanted:
            raise next(iter(left.values()))
        by_call = event.by_call(self._acts(action))
        in_force = {call_id: event.standing(by_call.get(call_id, ())) for call_id in wanted}
        if action == "remove":
            _refuse_removal(calls, in_force, every=every)
        own = [Hold(action, i, by, reason, now, event.in_order(calls[i].named)) for i in wanted]
        with _saying_what_to_do():
            # The act is locked no shorter than what it is about, nor than the archive's newest
            # seal, whatever the settings of whoever acts.
            head = self._store.head(layout.seal_key(self._chain.head.seq))
            until = latest_date(
                self._retention.until(now),
                head.lock_until if head else None,
                *(one.locked_until for one in calls.values()),
            )
            # 2.
            if action == "add":
                refused = _refused(self._carry_out_all(own))
                left |= refused
                own = [one for one in own if one.call_id not in refused]
                if not own:
                    raise next(iter(refused.values()))
            # 3. A crash before this leaves holds, if any, that the ledger does not have; after it,
            #    an act that will never be sealed.
            own, unsealed = self._write(own, until)
            # 4. A crash after this leaves, at worst, holds to be taken off.
            check = None if action == "add" else lambda: self._refuse_if_outdated(in_force)
            self._chain.append([unsealed], check=check)
            number = self._chain.head.seq
            # 5.
            newest, before = self._newest(own), list[Hold]()
            while newest != before:
                outcomes = self._carry_out_all(newest)
                before, newest = newest, self._newest(own)
            refused = _refused(outcomes)
            left |= refused
            if len(refused) == len(own):
                raise next(iter(refused.values()))
        done = []
        for one, last in zip(own, newest, strict=True):
            if not isinstance(gone := outcomes[one.call_id], StoreError):
                done.append(Done(one, number, gone, undone=last.action != one.action))
        return ActResult(done, self._ledger.damaged, left)

    def _acts(self, action: Action) -> Sequence[Act]:
        """To hold what is held does no harm; to take off a hold that cannot be seen does."""
        return self._ledger.readable() if action == "add" else self._ledger.acts()

    def _refuse_if_outdated(self, in_force: Mapping[str, Sequence[Act]]) -> None:
        """Refuse to seal a removal once there is an act that it was not decided on."""
        by_call = event.by_call(self._ledger.acts())
        for call_id, seen in in_force.items():
            newest = by_call.get(call_id, [])[-1:]
            if newest != list(seen[-1:]):
                raise UsageError(
                    f"nothing was taken off: meanwhile there is an act about {call_id!a} by "
                    f"{_who(newest)}: look at hold list, and decide anew"
                )

    def _write(
        self, acts: Sequence[Hold], until: datetime | None
    ) -> tuple[list[Hold], UnsealedSegment]:
        """Make a segment durable, with its `.sha256`; the acts as they stand in it."""
        for number in range(KEY_TRIES):
            own = [replace(one, id=event.random_id()) for one in acts]
            key, data = event.segment(own)
            sha256 = (layout.companion_key(key), event.companion(key, data), "text/plain")
            try:
                for at, content, kind in ((key, data, "application/x-ndjson"), sha256):
                    self._store.put_once(at, content, content_type=kind, retain_until=until)
                break
            except KeyTaken:
                if number == KEY_TRIES - 1:
                    raise
        return own, UnsealedSegment(seal.describe(key, BytesIO(data), window_lines=0), until)

    def _newest(self, own: Sequence[Hold]) -> list[Hold]:
        """What the ledger says of our act's calls; our act where that cannot be read any more."""
        by_call = event.by_call(self._acts(own[0].action))
        return [by_call[one.call_id][-1].hold if one.call_id in by_call else one for one in own]

    def _carry_out_all(self, acts: Sequence[Hold]) -> dict[str, frozenset[str] | StoreError]:
        """By call the keys of objects that are not there, or what is in the way."""
        outcomes = self._workers.map(self._carry_out, acts)
        return {act.call_id: outcome for act, outcome in zip(acts, outcomes, strict=True)}

    def _carry_out(self, hold: Hold) -> frozenset[str] | StoreError:
        """Have all objects of a call held, or none. Returns the keys of those that are not there,
        or the error where the store refuses one; raises where the store is out."""
        refused, adds = list[StoreError](), hold.action == "add"
        try:
            found = self._ledger.beside(hold)
        except StoreError as error:
            return self._about_one_call(error)
        for one in sorted(found.loose if adds else found.held, key=lambda one: one.key):
            try:
                self._store.set_hold(one.key, one.version_id, adds)
            except StoreError as error:
                refused.append(self._about_one_call(error))
        return refused[0] if refused else found.gone

    def _about_one_call(self, error: StoreError) -> StoreError:
        if not is_of_one_object(self._store, error):
            raise error
        return error


@contextmanager
def _saying_what_to_do() -> Iterator[None]:
    """Whoever was cut off is to run the same command again."""
    try:
        yield
    except StoreError as error:
        message = f"{error}{AGAIN}"
        raise StoreError(message, reason=error.reason, status=error.status) from None
    except Interrupted:
        raise Interrupted(AGAIN) from None


def _refused(outcomes: Mapping[str, frozenset[str] | StoreError]) -> dict[str, StoreError]:
    return {i: outcome for i, outcome in outcomes.items() if isinstance(outcome, StoreError)}


def _is_held(in_force: Sequence[Act]) -> bool:
    return bool(in_force) and in_force[-1].hold.action == "add"


def _refuse_unknown(wanted: Sequence[str], found: Collection[str]) -> None:
    if unknown := [one for one in wanted if one not in found]:
        raise UsageError(
            f"the archive has no record of {_names(unknown)}, so nothing was done: check the id; "
            "a call that is still pending can be held once it is archived"
        )


def _refuse_removal(
    found: Mapping[str, CallObjects], in_force: Mapping[str, Sequence[Act]], *, every: bool
) -> None:
    free = [i for i, acts in in_force.items() if not found[i].held and not _is_held(acts)]
    # What this very command took off before it was cut off must not keep it from the rest.
    if len(free) == len(in_force) or any(not in_force[one] for one in free):
        raise UsageError(f"no hold is on {_names(free)}, so nothing was done")
    for call_id, acts in () if every else in_force.items():
        # The same command given again is no other matter.
        if _is_held(acts) and len({(act.hold.by, act.hold.reason) for act in acts}) > 1:
            raise UsageError(
                f"{call_id!a} is held by {len(acts)} acts, so nothing was done: {_who(acts)}. "
                "A removal ends them all: if that is meant, say --all"
            )


def _who(acts: Sequence[Act]) -> str:
    """By whom, why and when, for people."""
    named = [
        f"{_plain(act.hold.by)} ({_plain(act.hold.reason)}, {format_second(act.hold.at)})"
        for act in acts[:NAMED]
    ]
    more = len(acts) - NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _plain(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _names(call_ids: Sequence[str]) -> str:
    """Ids in quotes, for people; of more than some the number."""
    shown = ", ".join(ascii(one) for one in call_ids[:NAMED])
    more = len(call_ids) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown
