"""What must hold where one thing is bad: all else is archived and sealed, and the archive tells of
what is not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from archiver.audit.findings import Report
from archiver.audit.verify import Options, verify
from archiver.manifest import layout
from tests.fakes.calls import APART
from tests.fakes.harm import Harm
from tests.fakes.store_rules import sha256_hex
from tests.model.ledger import Ledger
from tests.permanent.places import Place
from tests.permanent.scene import (
    AT_ONCE,
    CALLS,
    END,
    LOCK_DAYS,
    START,
    WINDOWS,
    PlaceWorld,
    Run,
)
from tests.simulation.judge import read, truth

MOST_REQUESTS = 3500
"""Nobody hammers at what is bad."""
AFTERWARDS = tuple(f"{kind}_malformed" for kind in ("transcript", *APART))
"""Kinds of files that a call may have kept from the time when something was bad."""


@dataclass(frozen=True)
class Result:
    """What the archive vouches for, whatever the keys."""

    calls: dict[str, tuple[Any, ...]]
    """call id → outcome, reason, findings, digests of its files by kind; None where pending"""
    sealed: frozenset[datetime]


def result(run: Run) -> Result:
    ledger = read(run.world)
    calls: dict[str, tuple[Any, ...]] = {}
    for call_id, one in ledger.listed.items():
        calls[call_id] = (None,)
        if one is not None:
            findings = tuple(sorted(one["findings"]))
            calls[call_id] = (one["outcome"], one["reason"], findings, files(one))
    return Result(calls, frozenset(window.start for window in ledger.windows))


def files(found: dict[str, Any]) -> dict[str, str]:
    """kind → digest"""
    return {file["kind"]: file["sha256"] for file in found["files"]}


# --- while it is bad


def judge(place: Place, run: Run, *, loop: bool) -> None:
    """Raises `AssertionError` where what is bad has harmed something else, or nobody tells."""
    world, harm = run.world, run.spoilt
    assert harm.met or not place.always_met, "nobody has met it"
    calls, may_open = _reach(place, run)
    ledger = read(run.world)
    _unharmed_calls(run, ledger, calls, loop)
    _unharmed_windows(run, ledger, may_open, loop)
    _must_be_open(place, ledger)
    if not loop:
        assert run.exits[-1] in place.exits, f"exit {run.exits[-1]}: {run.failed}"
    assert len(world.wire.trace) < MOST_REQUESTS, f"{len(world.wire.trace)} requests"
    told(place, run, ledger, harm)
    if place.locked:
        _locks(world)


def _reach(place: Place, run: Run) -> tuple[frozenset[str], set[datetime]]:
    """The calls that may suffer, and the starts of the windows that may stay open."""
    calls = place.calls
    if place.ordered:
        calls = _on_page_two(run, place)
    windows = {place.window.start} if place.window and place.open != "no" else set()
    if place.name.startswith("LIST of"):
        windows = {CALLS[call_id][0].start for call_id in calls}
    return calls, windows


def _on_page_two(run: Run, place: Place) -> frozenset[str]:
    """The calls that stand on the page that never comes."""
    reverse = run.world.platform.options.sort == "-startTime"
    ids = sorted(place.calls, key=lambda call_id: CALLS[call_id][1], reverse=reverse)
    return frozenset(ids[2:4])


def _unharmed_calls(run: Run, ledger: Ledger, harmed: frozenset[str], loop: bool) -> None:
    open_ids = {
        call_id
        for call_id, row in CALLS.items()
        if row[0].start not in {window.start for window in ledger.windows}
    }
    for call_id in CALLS.keys() - harmed:
        outcome, digests = truth(run.world, call_id)
        # Where its window is open, it has a record all the same.
        is_open = call_id in open_ids
        found = _record(run, call_id) if is_open else ledger.listed.get(call_id)
        assert found is not None, f"{call_id} is unharmed, and not archived: {run.failed[:2]}"
        assert (found["outcome"], files(found)) == (outcome, digests), f"{call_id}: {found}"
        if loop and outcome == "archived":
            assert call_id in run.at_once, f"{call_id} was not archived within {AT_ONCE} rounds"


def _record(run: Run, call_id: str) -> dict[str, Any] | None:
    """The newest record of a call, sealed or not."""
    foreign = run.harm.objects if run.harm else {}
    found = None
    for one in run.world.store.objects:
        parsed = layout.parse_record_key(one.key)
        if parsed is not None and parsed[1] == call_id and one.key not in foreign:
            found = json.loads(one.data)
    return found


def _unharmed_windows(run: Run, ledger: Ledger, may_open: set[datetime], loop: bool) -> None:
    sealed = {window.start: window for window in ledger.windows}
    reach = START
    for window in WINDOWS:
        if window.start in may_open:
            if window.start in sealed and reach == window.start:
                reach = window.end
            continue
        why = f"{window} is unharmed, and not sealed: {run.failed[:2]}"
        assert window.start in sealed, why
        if reach == window.start:
            reach = window.end
        if loop:
            for age in run.world.times.relist:
                seen = sealed[window.start].newest.listed_at
                assert seen >= window.end + age, f"{window} was listed last at {seen}"
    mark = reach if loop else START
    assert ledger.watermark == mark, f"the watermark is {ledger.watermark}, not {mark}"


def _must_be_open(place: Place, ledger: Ledger) -> None:
    if place.open == "yes" and place.window is not None:
        sealed = {window.start for window in ledger.windows}
        assert place.window.start not in sealed, f"{place.window} was sealed without its calls"


def _locks(world: PlaceWorld) -> None:
    """Nothing is locked for longer than the policy from the time of listing, and a day."""
    latest = world.clock.now() + timedelta(days=LOCK_DAYS + 1)
    for one in world.store.objects:
        assert one.lock_until is None or one.lock_until <= latest, f"{one.key}: {one.lock_until}"


# --- who tells


def told(place: Place, run: Run, ledger: Ledger, harm: Harm) -> None:
    """What is bad is told of, as its row says."""
    how = place.told
    if how.log:
        lines = [event for event in run.events if any(name in str(event) for name in harm.names)]
        assert lines, f"no line of the log names {harm.names}: {run.events[:3]}"
    for call_id in place.calls:
        found = ledger.listed.get(call_id)
        if how.left is not None:
            _left(call_id, found, ledger, how.left)
        if how.findings is not None:
            assert found is not None, f"{call_id} has no record"
            assert set(found["findings"]) & set(how.findings), f"{call_id}: {found['findings']}"
        if how.outcome is not None:
            assert found is not None
            assert found["outcome"] in how.outcome, f"{call_id}: {found['outcome']}"
        if place.recorded:
            assert found is not None, f"{call_id} has no record"
            right = truth(run.world, call_id)[1].get("recording")
            assert files(found).get("recording") == right, f"{call_id}: {found['reason']}"
        if place.kept is not None:
            assert found is not None
            assert sha256_hex(place.kept) in files(found).values(), f"{call_id}: bytes were dropped"
    if how.unreadable:
        lines = [window.newest.line.get("unreadable", 0) for window in ledger.windows]
        assert sum(lines) == 1, f"unreadable: {lines}"
    if how.verify is not None:
        _verified(place, run, harm, how.verify)


def _left(
    call_id: str, found: dict[str, Any] | None, ledger: Ledger, reasons: tuple[str, ...]
) -> None:
    if found is not None:
        told = (found["outcome"], found["reason"])
        assert found["outcome"] == "failed", f"{call_id}: {told}"
        assert found["reason"] in reasons, f"{call_id}: {told}"
    else:
        assert call_id in ledger.pending, f"{call_id} was listed, then silence"


def _verified(place: Place, run: Run, harm: Harm, codes: tuple[str, ...]) -> None:
    report = audit(run)
    findings = [(one.code, one.key) for one in report.findings]
    if codes:
        assert set(report.totals) & set(codes), f"verify does not say {codes}: {findings}"
    if harm.objects:
        named = harm.objects.keys() & {key for _, key in findings}
        assert named, f"verify does not name {list(harm.objects)}: {findings}"


def audit(run: Run) -> Report:
    """`verify`, down to every byte. It meets what the store refuses too."""
    world, harm = run.world, run.harm
    reader: Any = world.store
    if harm is not None and harm.refuse is not None and not harm.healed:
        name = f"auditor-{len(world.processes)}"
        world.start(name).close()
        reader = world.store_of(name)
    return verify(
        reader, Options(level="bytes", workers=1), now=world.clock.now(), pause=lambda seconds: None
    )


# --- once it is well again


def judge_healed(place: Place, run: Run, *, loop: bool) -> None:
    """The archive is as if nothing had ever been wrong."""
    ledger = read(run.world)
    for call_id in CALLS:
        found = ledger.listed.get(call_id)
        assert found is not None, f"{call_id} is not archived: {run.failed[-2:]}"
        digests = {kind: sha for kind, sha in files(found).items() if kind not in AFTERWARDS}
        assert (found["outcome"], digests) == truth(run.world, call_id), f"{call_id}: {found}"
    assert not ledger.pending
    assert {window.start for window in WINDOWS} <= {window.start for window in ledger.windows}
    assert ledger.watermark == (END if loop else START)
    report = audit(run)
    odd = [one for one in report.findings if one.severity != "info" and one.code not in place.scars]
    assert not odd, f"verify: {[vars(one) for one in odd]}"
    if not loop:
        assert run.exits[-1] == 0, f"exit {run.exits[-1]}: {run.failed}"
