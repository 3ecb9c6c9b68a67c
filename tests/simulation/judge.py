"""What must hold at the end of every history, whatever has befallen it: the ten invariants.

The bucket is read twice, by programs that share nothing: the properties' ledger, and the package's
own audit. What the source tells at the end is reckoned here anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from archiver.audit.findings import Report
from archiver.audit.safe_reader import Reader
from archiver.audit.verify import Options, verify
from archiver.core.model import Window
from archiver.manifest import layout
from archiver.manifest.signing import PublicKey
from tests.fakes.calls import SimulatedCall
from tests.fakes.harm import names_of
from tests.fakes.log_lines import SECRETS
from tests.fakes.store_rules import STRANGER
from tests.model.ledger import Ledger, is_unknowable
from tests.simulation.harms import Aim, Spoilt
from tests.simulation.plot import CallPlan
from tests.simulation.story import LINES, Story
from tests.simulation.wire import STOP
from tests.simulation.world import SimWorld

Committed = dict[str, tuple[str, dict[str, str]]]
"""call id → outcome, and the digest of each file by its kind"""
LAST_WORDS = 3
"""Requests that a process may still send once it was told to end."""


class Once:
    """A public key that looks at each signature once: the bucket is read twice."""

    def __init__(self, key: PublicKey) -> None:
        self._key = key

    def verifies(self, data: bytes, signature: bytes) -> bool:
        return _verifies(self._key, data, signature)


@lru_cache(maxsize=64)
def _verifies(key: PublicKey, data: bytes, signature: bytes) -> bool:
    return key.verifies(data, signature)


def check(story: Story) -> None:
    """Raises `AssertionError` where anything does not hold."""
    world = story.world
    ledger = read(world)
    check_time(story, ledger)
    check_silence(story, ledger)
    story.last()
    ledger = read(world)
    check_silence(story, ledger)
    check_committed(story, ledger)
    check_manners(story)
    report = check_audit(world, story.spoilt.values())
    check_told(story, ledger, report)
    if story.plot.seed % 8 == 0 and report.ok:
        check_tampering(world, story.plot.seed)


def read(world: SimWorld) -> Ledger:
    """Invariants 1, 2, 3, 5 and 7, as far as the bucket alone tells; without what somebody else has
    put there, and without segments that wait for their seal where something is bad for ever."""
    world.finish()
    assert len(world.store.keys) == len(list(world.store.versions(""))), "overwritten"
    objects, foreign = {one.key: one for one in world.store.objects}, set[str]()
    for harm in world.wire.harms.all:
        for key, data in harm.objects.items():
            assert harm.healed or objects[key].data == data, f"{key} was overwritten"
            # Once somebody has taken it away, its key may be empty for ever, or hold what is ours.
            if key not in objects or objects[key].writer == STRANGER:
                foreign.add(key)
    if world.wire.harms.all:
        sealed = {entry["key"] for seal in seals_of(world) for entry in seal["segments"]}
        for key in list(objects):
            if key.startswith(layout.SEGMENTS) and key.endswith(".jsonl") and key not in sealed:
                del objects[key]
    ledger = Ledger(objects.values(), Once(world.key.public), foreign)
    ledger.check_tiling(world.watermark)
    return ledger


def seals_of(world: SimWorld) -> list[dict[str, Any]]:
    """The seals, in their order."""
    named = ((layout.parse_seal_key(one.key), one.data) for one in world.store.objects)
    found = [json.loads(data) for parsed, data in named if parsed is not None and not parsed[1]]
    return sorted(found, key=lambda one: int(one["seq"]))


def check_time(story: Story, ledger: Ledger) -> None:
    """Invariants 3 and 10: sealed as far as it must be, nothing pending for ever; but for what is
    bad for ever."""
    now, times = story.world.clock.now(), story.world.times
    reach = sealed_to(story.world, ledger, story)
    assert reach + times.window + times.settle > now, f"sealed to {reach} only, at {now}"
    harmed = harmed_calls(story)
    pending = ledger.pending - harmed - (story.platform.gone if story.plot.is_patient else set())
    assert not pending, f"pending for ever: {pending}"
    for age in times.relist:
        ledger.check_listed_again(age, now, [w.start for w in open_windows(story, ledger)])
    if story.plot.is_patient:
        failed = {i for i, one in ledger.listed.items() if one and one["outcome"] == "failed"}
        assert failed <= _unsteady(story) | harmed, f"given up too early: {failed}"


def sealed_to(world: SimWorld, ledger: Ledger, story: Story | None = None) -> datetime:
    """The end of the unbroken run of sealed windows, those that may stay open passed over. The
    watermark follows with the next seal that the loop has a reason to write."""
    reach = world.watermark
    sealed = {window.start: window.end for window in ledger.windows}
    while True:
        window = Window(reach, reach + world.times.window)
        may_open = story is not None and any(one.opens(window) for one in story.spoilt.values())
        if reach not in sealed and not (may_open and window.end <= world.clock.now()):
            return reach
        reach = window.end


def harmed_calls(story: Story) -> set[str]:
    """The calls that may come to something else than they would."""
    spoilt = story.spoilt.values()
    return {plan.id for plan in story.plot.calls if any(one.suffers(plan) for one in spoilt)}


def open_windows(story: Story, ledger: Ledger) -> list[Window]:
    """The windows that may stay open, sealed or not."""
    windows = [Window(window.start, window.end) for window in ledger.windows]
    spoilt = story.spoilt.values()
    return [window for window in windows if any(one.opens(window) for one in spoilt)]


def check_silence(story: Story, ledger: Ledger) -> None:
    """Invariant 2: what was listed has a record or is pending; no record falls between chairs."""
    told = ledger.recorded | ledger.pending
    for call_id, seen in story.platform.listed.items():
        if call_id not in told and not _in_open_window(story, call_id):
            unknowable = is_unknowable(call_id, seen, story.ended, story.world.store.objects)
            assert unknowable, f"listed, then silence: {call_id} {seen}"
    for key in sorted(ledger.unsealed):
        is_open = _in_open_window(story, key.split("/")[2])
        assert is_open or _may_be_untold(story, ledger, key), f"{key} stands in no segment"


def _may_be_untold(story: Story, ledger: Ledger, key: str) -> bool:
    """One that was amended before anybody told of it. Of a process that ended: where the call is
    told of by another record, or others were alive who cannot be held to look for it."""
    made = story.world.store.object(key)
    record = json.loads(made.data)
    told = [window.newest.records.get(record["call_id"]) for window in ledger.windows]
    if any(one is not None and one["revision"] > record["revision"] for one in told):
        return True
    others = any(not name.startswith("main") for name in story.world.processes)
    return made.writer in story.ended and (any(told) or others)


def check_committed(story: Story, ledger: Ledger) -> None:
    """Invariants 1 and 4: what the source lists stands in the archive as it would without faults,
    and nothing else does."""
    found, reach = committed(ledger), sealed_to(story.world, ledger, story)
    passed = harmed_calls(story) | story.platform.gone | story.platform.hidden
    for plan in story.plot.calls:
        at = plan.start
        if plan.id in passed or at >= reach:
            continue
        assert plan.id in found, f"{plan.id} is listed, and not told of"
        assert found[plan.id] in _expected(story, plan, ledger), f"{plan.id}: {found[plan.id]}"
    assert found.keys() <= {plan.id for plan in story.plot.calls}


def committed(ledger: Ledger) -> Committed:
    """What the archive vouches for, whatever the keys."""
    return {
        call_id: (one["outcome"], {file["kind"]: file["sha256"] for file in one["files"]})
        for call_id, one in ledger.listed.items()
        if one is not None
    }


def _expected(story: Story, plan: CallPlan, ledger: Ledger) -> list[tuple[str, dict[str, str]]]:
    """What a call may have come to. A change counts where the window was listed again after it."""
    now = truth(story.world, plan.id)
    if plan.event not in ("changes", "survey") or _must_be_seen(story, plan, ledger):
        return [now]
    before = plan.call
    return [now, (now[0], _files(before, plan.recording))]


def truth(world: SimWorld, call_id: str) -> tuple[str, dict[str, str]]:
    """What the source tells of a call at the end."""
    call = world.platform.all[call_id]
    outcome = "no_recording" if call.recording is None else "archived"
    return outcome, _files(call, call.recording)


def _files(call: SimulatedCall, recording: Any) -> dict[str, str]:
    own = {name: value for name, value in call.detail().items() if name != "epaResults"}
    files = {kind: _sidecar(one) for kind, one in {"transcript": own, **call.apart()}.items()}
    return files | ({"recording": recording.sha256()} if recording is not None else {})


def _sidecar(document: object) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(f"{text}\n".encode()).hexdigest()


def _must_be_seen(story: Story, plan: CallPlan, ledger: Ledger) -> bool:
    """Whether the window came of an age after the change. Where it was closed only then, nobody but
    who closed it knows that it is to be looked at again (docs/adr/0011)."""
    ages = story.world.times.relist
    [window] = [one for one in ledger.windows if one.start <= plan.start < one.end]
    if not ages or story.changed[plan.id] > window.end + ages[-1]:
        return False
    first = window.revisions[0]
    return first.listed_at < window.end + ages[-1] or first.writer not in story.ended


def _unsteady(story: Story) -> set[str]:
    """The calls that the source itself has lost."""
    return {plan.id for plan in story.plot.calls if plan.event == "gone"}


def check_manners(story: Story) -> None:
    """Invariants 8 and 9: nothing tells a secret, nothing is left lying, who has to end does."""
    world = story.world
    for key in world.store.keys:
        assert not any(secret in key for secret in SECRETS), f"a key tells: {key}"
    left = [one for one in world.uploads.open.values() if one.key.startswith("recordings/")]
    assert not left, f"uploads left open: {left}"
    told: dict[str, int] = {}
    for one in story.wire.trace:
        name = one.exchange.process
        if name in told:
            told[name] += 1
            assert told[name] <= LAST_WORDS, f"{name} goes on after it was told to end"
        if one.fault == STOP:
            told[name] = 0


def check_audit(world: SimWorld, spoilt: Iterable[Spoilt] = ()) -> Report:
    """The package's own audit of the bucket, down to every byte, has nothing to say; but of what is
    bad for ever."""
    report = audit(world.store, world.clock.now())
    findings = [one for one in report.findings if one.severity != "info"]
    names = {name for harm in world.wire.harms.all for name in harm.names}
    names |= {name for one in spoilt for name in (one.aim.plan.id, *names_of(one.aim.window))}
    odd = [one for one in findings if not any(name in f"{one.key} {one.detail}" for name in names)]
    assert not odd, f"verify: {[vars(one) for one in odd]}"
    return report


def check_told(story: Story, ledger: Ledger, report: Report) -> None:
    """Of everything that is bad, and that somebody met, the log tells, or the archive."""
    named = {one.key for one in report.findings}
    sealed = {window.start for window in ledger.windows}
    for kind, one in story.spoilt.items():
        for key in one.harm.objects:
            there = one.harm in story.wire.harms.all
            assert key in named or not there, f"{kind}: verify does not name {key}"
        if not one.harm.met:
            continue
        said = any(name in str(line) for line in LINES for name in one.harm.names)
        found = ledger.listed.get(one.aim.plan.id)
        said = said or bool(found and found["findings"])
        assert said, f"{kind}: no line of the log names {one.harm.names}"
        # Of two harms of one window's listing, the source answers with one alone.
        others = [other for other in story.spoilt.values() if other is not one]
        if one.must_open and all(other.aim.window != one.aim.window for other in others):
            assert one.aim.window.start not in sealed, f"{kind}: {one.aim.window} was sealed"
        if not one.window and kind != "entry null":
            _check_told_of_call(story, ledger, kind, one.aim.plan)


def _check_told_of_call(story: Story, ledger: Ledger, kind: str, plan: CallPlan) -> None:
    """A harmed call that the source lists is pending, or its record says what it lacks."""
    hidden = plan.id in story.platform.gone | story.platform.hidden
    if hidden or plan.event not in ("none", "late", "changes") or _in_open_window(story, plan.id):
        return
    if plan.id in ledger.pending:
        return
    found = ledger.listed.get(plan.id)
    assert found is not None, f"{kind}: {plan.id} was listed, then silence"
    whole = committed(ledger)[plan.id] == truth(story.world, plan.id)
    says = found["outcome"] != "archived" or bool(found["findings"])
    assert says or whole, f"{kind}: {plan.id} lacks something, and nobody says so: {found}"


def _in_open_window(story: Story, call_id: str) -> bool:
    """Whether a call's window may stay open."""
    plans = [plan for plan in story.plot.calls if plan.id == call_id]
    spoilt = story.spoilt.values()
    return any(one.opens(Aim(plan).window) for plan in plans for one in spoilt)


def audit(reader: Reader, now: datetime, **options: Any) -> Report:
    return verify(reader, Options(level="bytes", workers=1, **options), now=now)


def check_tampering(world: SimWorld, seed: int) -> None:
    """Invariant 6: whatever is changed or lost of what counts, the audit finds it."""
    shelf = world.store._shelf
    named = sorted(_named(world) - {"manifest/probe"})
    key = named[seed // 8 % len(named)]
    whole = shelf.objects[key]
    at = seed % len(whole.data)
    changed = whole.data[:at] + bytes([whole.data[at] ^ 1]) + whole.data[at + 1 :]
    shelf.objects[key] = replace(whole, data=changed)
    try:
        assert not audit(world.store, world.clock.now()).ok, f"{key} was changed unnoticed"
    finally:
        shelf.objects[key] = whole


def _named(world: SimWorld) -> set[str]:
    """Everything that the archive vouches for, and all of the manifest that is sealed."""
    store = world.store
    found = {key for key in store.keys if key.startswith("manifest/")}
    found -= {key for key in found if key.startswith("manifest/sightings/")}
    for key in [key for key in found if key.endswith(".jsonl")]:
        for line in store.object(key).data.splitlines():
            document = json.loads(line)
            if document["type"] == "call":
                found |= {document["record"], *(file["key"] for file in document["files"])}
    return found
