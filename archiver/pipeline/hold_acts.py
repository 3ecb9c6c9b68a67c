"""Legal holds: an act sets or removes the holds of whole calls, and is an event on the ledger.

A call that the ledger shows as held must be held at all times. So `add` sets every hold and checks
it, and only then writes the act; `remove` writes the act, seals it, and only then removes the
holds. An interrupted command may leave holds that the ledger does not have (`verify` warns of
them), and never the reverse.

- Running the same command again does the rest, as a new act with its own time. An act that a crash
  left unsealed proves nothing, because anybody who can write to the bucket may have put it there in
  any name. No command seals it; `verify` and `hold list` report it.
- A failure with the objects of one call stops no other call: the command does the others and names
  the call that is left. If the store is out, the command ends.
- Concurrent commands are ordered by the chain. A removal is sealed only if no newer act about its
  calls exists than it was decided on. After sealing its act, each command applies what the ledger
  says of its calls by then, and repeats this until nothing changes. So the last act wins in the
  bucket, as it does on the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from archiver.manifest.event import Action, HoldEvent, SealedHold
from archiver.pipeline.bucket_state import UnsealedSegment
from archiver.pipeline.chain import Chain
from archiver.pipeline.retention import latest_date
from archiver.store.bucket import Bucket, is_of_one_object
from archiver.store.types import CallObjects

KEY_TRIES = 5
"""How many keys an act tries if other bytes have its key. 32 bits of a hash collide once in 4
billion acts of the same second, and anybody who can write to the bucket can put other bytes there.
"""
NAMED = 5
"""How many ids an error message names; for more it gives the number."""
AGAIN = "; the act is not finished: run the same command again"


class HoldLedger(Protocol):
    """What the archive knows of calls and holds (`audit/hold_ledger.py`). Raises `StoreError`."""

    @property
    def damaged(self) -> Sequence[str]:
        """What was wrong with unreadable acts at the last reading."""

    def acts(self) -> Sequence[SealedHold]:
        """Every sealed act, oldest first, read now. Raises `StoreError` if one is damaged."""

    def readable(self) -> Sequence[SealedHold]:
        """As `acts`, without the damaged ones."""

    def find(
        self, call_ids: Collection[str]
    ) -> tuple[dict[str, CallObjects], dict[str, StoreError]]:
        """The objects of each call that has a record, and the calls whose objects cannot be
        read."""

    def current_objects(self, hold: HoldEvent) -> CallObjects:
        """What lies now in the directories of an act's call. Thread-safe."""


@dataclass(frozen=True)
class Done:
    """One call of an act that is done, with the number of its seal."""

    hold: HoldEvent
    seal: int
    gone: frozenset[str]
    """Keys of objects that are missing, hidden or damaged."""
    undone: bool = False
    """Whether another command, sealed later, has already reversed it."""


@dataclass(frozen=True)
class ActResult:
    """The result of a command."""

    done: Sequence[Done]
    damaged: Sequence[str] = ()
    """Parts of the ledger that could not be read."""
    left: Mapping[str, ArchiverError] = field(default_factory=dict)
    """The calls that are not done, each with its error. Their act may be on the ledger or not."""


@dataclass(eq=False, repr=False)
class Holds:
    """Executes acts; `chain` must be open. Not thread-safe."""

    store: Bucket
    chain: Chain
    ledger: HoldLedger
    workers: Workers
    clock: Clock
    retention: Retention

    def act(
        self,
        action: Action,
        call_ids: Sequence[str],
        by: str,
        reason: str,
        *,
        every: bool = False,
    ) -> ActResult:
        """Put legal holds on calls, or remove them. `every` allows removing holds that several acts
        have put.

        1. Find the calls' objects, and refuse an impossible command as a whole.
        2. Set the holds (`add` only). Go on with the calls whose objects all took them.
        3. Make the act durable, under a free key.
        4. Seal it: from here on it counts.
        5. Apply what the ledger says by then, until it says nothing new. This removes the holds
           (`remove`), and covers objects that the calls have got meanwhile.

        Raises `UsageError`, with nothing done, if a call has no record or, for `remove`, no hold or
        holds of several acts. Raises `StoreError` if the store is out or refuses all calls, or if
        the ledger is damaged and `remove` must know it; `add` goes on.
        """
        # 1.
        wanted, now = list(dict.fromkeys(call_ids)), self.clock.now().replace(microsecond=0)
        calls, refused = self.ledger.find(wanted)
        left: dict[str, ArchiverError] = {**refused}
        if unknown := [one for one in wanted if one not in calls and one not in left]:
            raise UsageError(
                f"the archive has no record of {_some(map(ascii, unknown))}, so nothing was done: "
                "check the id; a call that is still pending can be held once it is archived"
            )
        wanted = [call_id for call_id in wanted if call_id in calls]
        if not wanted:
            raise next(iter(left.values()))
        by_call = event.by_call(self._acts(action))
        in_force = {call_id: event.deciding_acts(by_call.get(call_id, ())) for call_id in wanted}
        if action == "remove":
            _refuse_removal(calls, in_force, every=every)
        own = [
            HoldEvent(action, i, by, reason, now, event.in_order(calls[i].named)) for i in wanted
        ]
        with _with_retry_hint():
            # The act is locked at least as long as the objects that it covers and as the newest
            # seal, whatever the settings of this command.
            head = self.store.head(layout.seal_key(self.chain.head.seq))
            until = latest_date(
                self.retention.until(now),
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
            # 3. A crash before this leaves at most holds that the ledger does not have. A crash
            #    after it leaves an act that will never be sealed.
            own, unsealed = self._write(own, until)
            # 4. A crash after this leaves, at worst, holds that should be removed.
            check = None if action == "add" else lambda: self._refuse_if_outdated(in_force)
            self.chain.append([unsealed], check=check)
            number = self.chain.head.seq
            # 5.
            newest, before = self._newest(own), list[HoldEvent]()
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
        return ActResult(done, self.ledger.damaged, left)

    def _acts(self, action: Action) -> Sequence[SealedHold]:
        """Read the ledger. `add` tolerates damage, because a second hold is harmless. `remove` does
        not: an unreadable act may be a hold that must stay."""
        return self.ledger.readable() if action == "add" else self.ledger.acts()

    def _refuse_if_outdated(self, in_force: Mapping[str, Sequence[SealedHold]]) -> None:
        """Raise `UsageError` if the ledger has an act about the calls that this removal did not
        see."""
        by_call = event.by_call(self.ledger.acts())
        for call_id, seen in in_force.items():
            newest = by_call.get(call_id, [])[-1:]
            if newest != list(seen[-1:]):
                raise UsageError(
                    f"nothing was taken off: meanwhile there is an act about {call_id!a} by "
                    f"{_who(newest)}: look at hold list, and decide anew"
                )

    def _write(
        self, acts: Sequence[HoldEvent], until: datetime | None
    ) -> tuple[list[HoldEvent], UnsealedSegment]:
        """Make a segment with the acts durable, with its checksum list. Adds ids to the acts."""
        for number in range(KEY_TRIES):
            own = [replace(one, id=event.random_id()) for one in acts]
            key, data = event.segment(own)
            sha256 = (layout.checksum_list_key(key), event.checksum_list(key, data), "text/plain")
            try:
                for at, content, kind in ((key, data, "application/x-ndjson"), sha256):
                    self.store.put_once(at, content, content_type=kind, retain_until=until)
                break
            except KeyTaken:
                if number == KEY_TRIES - 1:
                    raise
        return own, UnsealedSegment(seal.segment_entry(key, BytesIO(data), window_lines=0), until)

    def _newest(self, own: Sequence[HoldEvent]) -> list[HoldEvent]:
        """The newest act about each call of ours; our own act if the ledger is unreadable now."""
        by_call = event.by_call(self._acts(own[0].action))
        return [by_call[one.call_id][-1].hold if one.call_id in by_call else one for one in own]

    def _carry_out_all(self, acts: Sequence[HoldEvent]) -> dict[str, frozenset[str] | StoreError]:
        """For each call, the keys of the missing objects, or the error that stopped it."""
        outcomes = self.workers.map(self._carry_out, acts)
        return {act.call_id: outcome for act, outcome in zip(acts, outcomes, strict=True)}

    def _carry_out(self, hold: HoldEvent) -> frozenset[str] | StoreError:
        """Set the holds on all objects of a call, or remove them. Returns the keys of missing
        objects, or the error if the store refuses one; raises `StoreError` if the store is out."""
        refused, adds = list[StoreError](), hold.action == "add"
        try:
            found = self.ledger.current_objects(hold)
        except StoreError as error:
            return self._about_one_call(error)
        for one in sorted(found.loose if adds else found.held, key=lambda one: one.key):
            try:
                self.store.set_hold(one.key, one.version_id, adds)
            except StoreError as error:
                refused.append(self._about_one_call(error))
        return refused[0] if refused else found.gone

    def _about_one_call(self, error: StoreError) -> StoreError:
        if not is_of_one_object(self.store, error):
            raise error
        return error


@contextmanager
def _with_retry_hint() -> Iterator[None]:
    """Add to an error that the same command must be run again."""
    try:
        yield
    except StoreError as error:
        message = f"{error}{AGAIN}"
        raise StoreError(message, reason=error.reason, status=error.status) from None
    except Interrupted:
        raise Interrupted(AGAIN) from None


def _refused(outcomes: Mapping[str, frozenset[str] | StoreError]) -> dict[str, StoreError]:
    return {i: outcome for i, outcome in outcomes.items() if isinstance(outcome, StoreError)}


def _is_held(in_force: Sequence[SealedHold]) -> bool:
    return bool(in_force) and in_force[-1].hold.action == "add"


def _refuse_removal(
    found: Mapping[str, CallObjects], in_force: Mapping[str, Sequence[SealedHold]], *, every: bool
) -> None:
    free = [i for i, acts in in_force.items() if not found[i].held and not _is_held(acts)]
    # An interrupted run of this command may have removed some holds; that must not block the rest.
    if len(free) == len(in_force) or any(not in_force[one] for one in free):
        raise UsageError(f"no hold is on {_some(map(ascii, free))}, so nothing was done")
    for call_id, acts in () if every else in_force.items():
        # The same command given twice counts as one act.
        if _is_held(acts) and len({(act.hold.by, act.hold.reason) for act in acts}) > 1:
            raise UsageError(
                f"{call_id!a} is held by {len(acts)} acts, so nothing was done: {_who(acts)}. "
                "A removal ends them all: if that is meant, say --all"
            )


def _who(acts: Sequence[SealedHold]) -> str:
    """Who acted, why and when, for people."""
    return _some(
        f"{_plain(act.hold.by)} ({_plain(act.hold.reason)}, {format_second(act.hold.at)})"
        for act in acts
    )


def _plain(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _some(texts: Iterable[str]) -> str:
    """At most `NAMED` of these, then the number of the others."""
    all_texts = list(texts)
    more = len(all_texts) - NAMED
    return ", ".join(all_texts[:NAMED]) + (f" and {more} more" if more > 0 else "")
