"""Legal holds: what the ledger calls held is held, whatever cuts a command off or runs beside."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest

from archiver.audit.hold_ledger import ArchivedHolds, CallFinder, HoldEvents, holds_by_call
from archiver.audit.verify import Options, verify
from archiver.core.clock import Interrupted
from archiver.core.errors import FormatError, StoreError, UsageError
from archiver.core.model import Retention
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Action
from archiver.pipeline.bucket_state import UnsealedSegment
from archiver.pipeline.chain import Chain
from archiver.pipeline.hold_acts import ActResult, Holds
from tests.fakes.clock import HandClock
from tests.fakes.memory_rig import HOUR, Crash, SerialWorkers, World
from tests.fakes.memory_store import MemoryStore, Request
from tests.fakes.population import TEN, a_call
from tests.fakes.relisting import stranger

pytestmark = pytest.mark.usefixtures("any_order")

MINUTE = timedelta(minutes=1)
DAY_DIR = "dt=2024-01-15"
RECORD = f"records/{DAY_DIR}/vc_1/r1.json"


class Officer:
    """One hold command after the other, each a process of its own, on one archive."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = HandClock(world.clock.now())
        self._number = 0

    def open(self) -> tuple[Holds, MemoryStore]:
        """A process that has opened the archive."""
        self._number += 1
        store = self.world.store.by(f"officer {self._number}", self.clock)
        chain = Chain(store, self.world.key, self.clock, Retention())
        assert chain.open()
        told = ArchivedHolds(store, 1)
        return Holds(store, chain, told, SerialWorkers(), self.clock, Retention()), store

    def act(
        self,
        action: Action,
        *call_ids: str,
        reason: str = "Case 1",
        every: bool = False,
        hook: Callable[[Request], None] | None = None,
    ) -> ActResult:
        """`hook` is one of this command's own store."""
        self.clock.forward(MINUTE)
        holds, store = self.open()
        store.hooks += [hook] if hook else []
        return holds.act(action, call_ids, "J. Doe", reason, every=every)

    def add(self, *call_ids: str, **options: Any) -> ActResult:
        return self.act("add", *call_ids, **options)

    def remove(self, *call_ids: str, **options: Any) -> ActResult:
        return self.act("remove", *call_ids, **options)

    # --- what stands

    @property
    def held(self) -> dict[str, bool]:
        """Call id → whether all objects of the call are held; fails where some are."""
        found: dict[str, set[bool]] = {}
        for one in self.world.store.objects:
            if one.key.startswith(("recordings/", "records/")):
                found.setdefault(one.key.split("/")[2], set()).add(one.held)
        assert all(len(states) == 1 for states in found.values()), "some of a call are held"
        return {call_id: states == {True} for call_id, states in found.items()}

    @property
    def ledger(self) -> dict[str, list[str]]:
        """Call id → its acts in the chain's order."""
        found = holds_by_call(HoldEvents(self.world.store).acts())
        return {i: [act.hold.action for act in one.acts] for i, one in found.items()}

    @property
    def unsealed(self) -> list[str]:
        ledger = HoldEvents(self.world.store)
        ledger.acts()
        return ledger.unsealed

    def check_promise(self) -> None:
        """What the ledger calls held is held, to the last object."""
        for call_id, acts in self.ledger.items():
            if acts[-1] == "add":
                objects = [o for o in self.world.store.objects if f"/{call_id}/" in o.key]
                assert all(one.held for one in objects), f"{call_id} is not held"


@pytest.fixture
def world() -> Iterator[World]:
    made = World(TEN + 4 * HOUR, TEN)
    made.platform.add(a_call("vc_1", epa={"score": 1}), a_call("vc_2"), a_call("vc_3"))
    made.writer("loop").backfill(TEN, TEN + HOUR)
    yield made
    made.store.finish(frozenset(f"officer {n}" for n in range(9)))


@pytest.fixture
def officer(world: World) -> Officer:
    return Officer(world)


def document(store: MemoryStore, key: str) -> Any:
    return json.loads(store.object(key).data)


# --- one command


def test_an_act_holds_every_object_and_stands_on_the_ledger(world, officer):
    done = officer.add("vc_1", "vc_2", "vc_1").done
    assert officer.held == {"vc_1": True, "vc_2": True, "vc_3": False}
    assert [(one.hold.call_id, one.seal, one.gone) for one in done] == [
        ("vc_1", 2, frozenset()), ("vc_2", 2, frozenset())
    ]  # fmt: skip
    [key] = [k for k in world.store.keys if k.startswith("manifest/events") and "jsonl" in k]
    data = world.store.object(key).data
    first, second = map(json.loads, data.splitlines())
    assert re.fullmatch("[0-9a-f]{16}", first.pop("id"))
    assert first == {
        "action": "add",
        "at": "2024-01-15T14:01:00Z",
        "by": "J. Doe",
        "call_id": "vc_1",
        "objects": [
            {"key": one.key, "version_id": one.version_id}
            for one in sorted(world.store.objects, key=lambda o: o.key)
            if "/vc_1/" in one.key
        ],
        "reason": "Case 1",
        "type": "hold",
        "v": 1,
    }
    assert len(first["objects"]) == 4
    assert second["call_id"] == "vc_2"
    stem = key.removesuffix(".jsonl")
    assert stem.startswith("manifest/events/dt=2024-01-15/140100-")
    sha256 = world.store.object(key).sha256
    assert world.store.object(stem + ".sha256").data == f"{sha256}  {key}\n".encode()
    assert world.store.object(stem + ".seal").data == b"2\n"
    [entry] = document(world.store, layout.seal_key(2))["segments"]
    assert (entry["key"], entry["sha256"], entry["records"]) == (key, sha256, 2)


def test_a_removal_frees_the_call_and_both_acts_stand(world, officer):
    officer.add("vc_1")
    officer.add("vc_1", reason="Case 2")
    assert officer.ledger == {"vc_1": ["add", "add"]}
    with pytest.raises(UsageError, match=r"Case 1.*Case 2.*--all"):
        officer.remove("vc_1")
    assert officer.ledger == {"vc_1": ["add", "add"]}
    assert officer.held["vc_1"]
    officer.remove("vc_1", every=True)
    assert officer.ledger == {"vc_1": ["add", "add", "remove"]}
    assert not any(officer.held.values())
    assert verify(world.store, Options()).findings == []


@pytest.mark.parametrize(
    ("action", "call_ids"),
    [
        ("add", ["vc_1", "vc_none"]),
        ("add", ["vc_1", ""]),
        ("add", ["vc_1", "\udc80"]),
        ("add", [f"vc_{n}" for n in range(1, 30)]),
        ("remove", ["vc_none", "vc_2"]),
        ("remove", ["vc_2", "vc_1"]),
    ],
)
def test_what_cannot_be_done_is_not_begun(world, officer, action, call_ids):
    officer.add("vc_2")
    before = world.store.objects
    with pytest.raises(UsageError) as refused:
        officer.act(action, *call_ids)
    assert world.store.objects == before
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def test_a_hold_that_the_ledger_does_not_tell_of_can_be_taken_off(world, officer):
    """Somebody set it with another tool, or a command was cut off."""
    record = f"records/{DAY_DIR}/vc_1/r1.json"
    world.store.set_hold(record, None, True)
    officer.remove("vc_1")
    assert officer.ledger == {"vc_1": ["remove"]}
    assert not any(officer.held.values())


def test_a_call_with_records_on_two_days_is_held_on_both(world, officer):
    """Its source moved it before the archive knew it there."""
    told = document(world.store, f"records/{DAY_DIR}/vc_1/r1.json")
    for day, call_id in (("2023-11-02", "vc_1"), ("2023-11-02", "vc_2"), ("2024-03-01", "vc_1")):
        key = f"records/dt={day}/{call_id}/r1.json"
        other = {**told, "call_id": call_id, "record": key, "outcome": "no_recording", "files": []}
        other |= {"attempts": 1, "status": 404, "reason": "not_found"}
        world.store.put_once(key, canonical(other))
    officer.add("vc_1")
    assert officer.held == {"vc_1": True, "vc_2": False, "vc_3": False}
    officer.add("vc_3", "vc_2")
    assert all(officer.held.values())
    officer.remove("vc_1")
    assert officer.held == {"vc_1": False, "vc_2": True, "vc_3": True}


def test_a_large_day_is_not_listed_for_few_calls(world):
    finder = CallFinder(world.store, 1, page=1)
    asked: list[Request] = []
    world.store.hooks.append(asked.append)
    calls, _ = finder.find(["vc_2", "vc_3"])
    assert {i: len(one.named) for i, one in calls.items()} == {"vc_2": 3, "vc_3": 3}
    listed = {one.key for one in asked if one.operation == "list"}
    assert {f"records/{DAY_DIR}/", f"records/{DAY_DIR}/vc_3/"} <= listed


def canonical(told: dict[str, Any]) -> bytes:
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode() + b"\n"


# --- commands that are cut off


def cut_off(officer: Officer, action: Action, number: int, moment: str) -> bool:
    """Run a command that dies at its n-th write; False where it has no so many."""
    left = number

    def die(request: Request) -> None:
        nonlocal left
        if left < 0:
            raise Crash
        left -= request.writes and request.moment == moment
        if left < 0:
            raise Crash

    try:
        officer.act(action, "vc_1", hook=die)
    except Crash:
        return True
    return False


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("action", ["add", "remove"])
def test_the_same_command_again_finishes_what_was_cut_off(action, moment):
    for number in range(100):
        world = World(TEN + 4 * HOUR, TEN)
        world.platform.add(a_call("vc_1"), a_call("vc_2"))
        world.writer("loop").backfill(TEN, TEN + HOUR)
        officer = Officer(world)
        if action == "remove":
            officer.add("vc_1")
        if not cut_off(officer, action, number, moment):
            break
        officer.check_promise()
        left = officer.unsealed
        try:
            [done] = officer.act(action, "vc_1").done
            assert done.hold.at == officer.clock.now(), "an act has the time of its own command"
        except UsageError:  # it had only to tell of it
            assert action == "remove"
            assert officer.ledger["vc_1"] == ["add", "remove"]
        assert officer.ledger["vc_1"][-1] == action
        assert officer.held == {"vc_1": action == "add", "vc_2": False}
        assert officer.unsealed == left, "what was cut off is never sealed later"
        assert verify(world.store, Options()).exit_code == 0
        world.store.finish(frozenset(f"officer {n}" for n in range(9)))
    assert number > 6, "a command has more writes than that"


@pytest.mark.parametrize("action", ["add", "remove"])
def test_no_command_seals_what_another_left(world, officer, action):
    """Nobody relies on an act that reported failure; and anybody may have put it there."""
    if action == "remove":
        officer.add("vc_1")
    for number in range(100):
        assert cut_off(officer, action, number, "after")
        if officer.unsealed:
            break
    before, left = officer.ledger, officer.unsealed
    officer.add("vc_2", reason="Case 2")
    officer.remove("vc_2")
    assert officer.ledger == {**before, "vc_2": ["add", "remove"]}
    assert officer.unsealed == left
    officer.act(action, "vc_1")
    assert officer.ledger["vc_1"] == [*before.get("vc_1", []), action]
    assert officer.held["vc_1"] == (action == "add")


def test_an_interrupted_act_says_to_run_it_again(world, officer):
    stop = once(lambda r: r.operation == "hold", officer.clock.stop)
    with pytest.raises(Interrupted, match="run the same command again"):
        officer.add("vc_1", hook=stop)
    assert officer.ledger == {}


def test_a_store_that_refuses_is_told_with_what_to_do(world, officer):
    with pytest.raises(StoreError, match="run the same command again"):
        officer.add("vc_1", hook=refuses("hold", lambda _: True))
    assert (officer.ledger, any(officer.held.values())) == ({}, False)


def test_what_is_no_act_is_left_alone(world, officer):
    """Whoever can write to the bucket can put a segment there; only what an act could have left is
    taken up."""
    junk = f"{layout.EVENTS}{DAY_DIR}/100000-00000000.jsonl"
    world.store.put_once(junk, b'{"at":"2024-01-15T10:00:00Z","type":"hold","v":1}\n')
    future = f"{layout.EVENTS}{DAY_DIR}/100000-11111111.jsonl"
    world.store.put_once(future, b'{"at":"2024-01-15T10:00:00Z","type":"new","v":1}\n')
    officer.add("vc_1")
    assert sorted(officer.unsealed) == [junk, future]
    assert officer.ledger == {"vc_1": ["add"]}


# --- what is wrong with one call


def refuses(operation: str, key: Callable[[str], bool], **error: Any) -> Callable[[Request], None]:
    """A hook: the store answers requests of a kind about some keys with an error, for ever."""

    def hook(request: Request) -> None:
        if request.operation == operation and request.moment == "before" and key(request.key):
            raise StoreError(
                "the store answered 403", **{"reason": "denied", "status": 403, **error}
            )

    return hook


BROKEN: dict[str, Any] = {"reason": "status_5xx", "status": 500, "retryable": True}


@pytest.mark.parametrize("error", [{}, BROKEN], ids=["denied", "broken"])
@pytest.mark.parametrize("operation", ["head", "get", "hold"])
@pytest.mark.parametrize("action", ["add", "remove"])
def test_a_call_whose_objects_the_store_refuses_keeps_no_other_waiting(
    world, officer, action, operation, error
):
    adds, calls = action == "add", ["vc_1", "vc_2", "vc_3"]
    before = [] if adds else ["add"]
    if not adds:
        officer.add(*calls)
    result = officer.act(
        action, *calls, hook=refuses(operation, lambda key: "/vc_2/" in key, **error)
    )
    assert [one.hold.call_id for one in result.done] == ["vc_1", "vc_3"]
    assert list(result.left) == ["vc_2"]
    assert officer.ledger["vc_1"] == officer.ledger["vc_3"] == [*before, action]
    officer.check_promise()
    if adds:
        assert "vc_2" not in officer.ledger
        assert verify(world.store, Options()).exit_code == 0
    else:
        assert officer.held == {"vc_1": False, "vc_2": True, "vc_3": False}
    officer.act(action, "vc_2")
    assert officer.held == dict.fromkeys(calls, adds)
    assert verify(world.store, Options()).findings == []


def test_of_a_call_with_a_refused_object_the_others_are_held(world, officer):
    officer.add(
        "vc_1", "vc_2", hook=refuses("hold", lambda key: key.endswith("vc_2/recording.wav"))
    )
    loose = [one.key for one in world.store.objects if "/vc_2/" in one.key and not one.held]
    assert loose == [f"recordings/{DAY_DIR}/vc_2/recording.wav"]


def test_a_store_that_is_out_ends_a_command(world, officer):
    holds, store = officer.open()

    def go_out() -> None:
        for operation in ("hold", "head", "get", "put", "list"):
            store.hooks.append(refuses(operation, lambda _: True, **BROKEN))

    store.hooks.append(once(lambda r: r.operation == "hold", go_out))
    with pytest.raises(StoreError, match="run the same command again"):
        holds.act("add", ["vc_1", "vc_2", "vc_3"], "J. Doe", "Case 1")
    assert officer.ledger == {}


@pytest.mark.parametrize("data", [b"", b"\x00\xff", b'{"v":1}\n', b"newer"])
def test_a_record_that_cannot_be_read_is_held_with_its_call(world, officer, data):
    odd = f"records/{DAY_DIR}/vc_2/r2.json"
    if data == b"newer":
        data = canonical({**document(world.store, odd.replace("r2", "r1")), "v": 2})
    stranger(world.store).put_once(odd, data or b" ")
    result = officer.add("vc_1", "vc_2")
    assert {one.hold.call_id: sorted(one.gone) for one in result.done} == {
        "vc_1": [],
        "vc_2": [odd],
    }
    assert officer.held == {"vc_1": True, "vc_2": True, "vc_3": False}


EVENT = f"{layout.EVENTS}dt=2024-01-15/140100-"


@pytest.mark.parametrize("what", [".jsonl", ".seal", "newer", "foreign"])
def test_an_event_that_cannot_be_read_stops_neither_a_hold_nor_the_archiver(world, officer, what):
    officer.add("vc_1")
    if what == "newer":
        data = canonical({"at": "2024-01-15T14:01:00Z", "type": "hold", "v": 2})
        seal_events(world, data)
    elif what == "foreign":
        stranger(world.store).put_once(f"{EVENT}00000000.jsonl", b"\x00\xff")
    else:
        harm = refuses("get", lambda key: key.startswith(layout.EVENTS) and key.endswith(what))
        harm_too = refuses(
            "get", lambda key: key.startswith(EVENT) and key.endswith(what), **BROKEN
        )
        world.store.hooks += [harm, harm_too]
    result = officer.add("vc_2", reason="Case 2")
    assert [one.hold.call_id for one in result.done] == ["vc_2"]
    assert officer.held["vc_2"]
    world.platform.add(a_call("vc_4", TEN + HOUR))
    later = world.writer("later")
    later.backfill(TEN + HOUR, TEN + 2 * HOUR)
    later.round()
    assert any("/vc_4/" in key for key in world.store.keys)


def seal_events(world: World, data: bytes) -> None:
    """A segment of events as a newer release would write and seal it."""
    digest = hashlib.sha256(data).hexdigest()
    key = f"{EVENT}{digest[:8]}.jsonl"
    stranger(world.store).put_once(key, data)
    stranger(world.store).put_once(layout.checksum_list_key(key), event.checksum_list(key, data))
    chain = Chain(world.store, world.key, world.clock, Retention())
    assert chain.open()
    chain.append([UnsealedSegment(seal.segment_entry(key, BytesIO(data), window_lines=0), None)])


# --- beside others


def once(when: Callable[[Request], bool], act: Callable[[], None]) -> Callable[[Request], None]:
    """A hook that acts at the first request of that kind."""
    todo = [act]

    def hook(request: Request) -> None:
        if todo and when(request):
            todo.pop()()

    return hook


def seals(request: Request) -> bool:
    return request.operation == "put" and layout.parse_seal_key(request.key) is not None


def test_a_revision_that_comes_meanwhile_is_held_too(world, officer):

    def amend() -> None:
        first = f"records/{DAY_DIR}/vc_1/r1.json"
        second = first.replace("r1", "r2")
        told = {**document(world.store, first), "record": second, "revision": 2}
        world.store.put_once(second, canonical(told))

    officer.add("vc_1", hook=once(lambda r: seals(r) and r.moment == "before", amend))
    assert officer.held["vc_1"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("first", "second"), [("add", "remove"), ("remove", "add")])
def test_of_two_commands_at_a_time_the_one_sealed_last_holds(world, officer, first, second, moment):
    officer.add("vc_1")
    officer.clock.forward(MINUTE)
    (holds, store), (other, _) = officer.open(), officer.open()

    def meanwhile() -> None:
        other.act(second, ["vc_1"], "M. Roe", "Case 2")

    store.hooks.append(once(lambda r: seals(r) and r.moment == moment, meanwhile))
    if (first, moment) == ("remove", "before"):
        with pytest.raises(UsageError, match=r"M\. Roe.*Case 2"):
            holds.act(first, ["vc_1"], "J. Doe", "Case 1")
        assert officer.ledger["vc_1"] == ["add", "add"], "it never saw the second hold"
        assert officer.held["vc_1"]
        return
    [done] = holds.act(first, ["vc_1"], "J. Doe", "Case 1").done
    assert sorted(officer.ledger["vc_1"]) == ["add", "add", "remove"]
    last = officer.ledger["vc_1"][-1]
    # Whoever writes first before the other's seal is sealed first.
    assert last == (first if moment == "before" else second)
    assert officer.held["vc_1"] == (last == "add")
    assert done.undone == (last != first)


@pytest.mark.parametrize("acts", [("add", "add"), ("add", "remove"), ("remove", "remove")])
def test_acts_of_the_same_words_in_one_second_are_two(world, officer, acts):
    """Two people, or one script, give the same command twice: each has a segment of its own."""
    before = ["add"] * (acts[0] == "remove")
    if before:
        officer.add("vc_1")
        officer.clock.forward(MINUTE)
    (holds, store), (other, _) = officer.open(), officer.open()
    inner: list[ActResult] = []

    def meanwhile() -> None:
        inner.append(other.act(acts[1], ["vc_1"], "J. Doe", "Case 1"))

    store.hooks.append(once(lambda r: seals(r) and r.moment == "after", meanwhile))
    [done] = holds.act(acts[0], ["vc_1"], "J. Doe", "Case 1").done
    assert done.hold.at == inner[0].done[0].hold.at
    assert done.hold.line != inner[0].done[0].hold.line
    assert officer.ledger["vc_1"] == [*before, *acts]
    assert officer.held["vc_1"] == (officer.ledger["vc_1"][-1] == "add")
    assert verify(world.store, Options()).findings == []


def test_an_act_whose_key_holds_other_bytes_takes_another(world, officer):
    """Eight digits of a hash may meet; whoever can write to the bucket may put anything there."""
    for suffix in (".jsonl", ".sha256"):
        taken: list[str] = []

        def take(request: Request, suffix: str = suffix, taken: list[str] = taken) -> None:
            mine = request.operation == "put" and request.key.startswith(layout.EVENTS)
            if mine and request.key.endswith(suffix) and request.moment == "before" and not taken:
                taken.append(request.key)
                world.store.put_once(request.key, b"other bytes\n")

        officer.add("vc_1", hook=take)
        assert taken
    assert officer.ledger["vc_1"] == ["add", "add"]
    assert officer.held["vc_1"]


def test_it_runs_beside_the_loop(world, officer):
    world.platform.add(a_call("vc_4", TEN + HOUR))

    def meanwhile() -> None:
        world.writers["loop"].backfill(TEN + HOUR, TEN + 2 * HOUR)

    hook = once(lambda r: seals(r) and r.moment == "before", meanwhile)
    [done] = officer.add("vc_1", hook=hook).done
    assert done.seal == 3, "the loop's seal came first"
    world.platform.add(a_call("vc_5", TEN - HOUR))
    world.writers["loop"].backfill(TEN - HOUR, TEN)
    assert verify(world.store, Options()).findings == []


# --- the ledger


def test_each_seal_and_each_act_is_read_once(world, officer):
    for _ in range(3):
        officer.add("vc_1", "vc_2")
    asked: list[Request] = []
    world.store.hooks.append(asked.append)
    ledger = HoldEvents(world.store)
    assert len(ledger.acts()) == 6
    read = [one.key for one in asked if one.operation == "get" and one.moment == "before"]
    assert len(read) == len(set(read)) == 3 + 3 + 3
    ledger.acts()
    assert len([one for one in asked if one.operation == "get"]) == 2 * len(read)


def test_a_damaged_ledger_is_one_clear_line(world, officer):
    officer.add("vc_1")

    class Damaged(MemoryStore):
        def read(
            self, key: str, version_id: str | None = None, max_bytes: int = 1 << 20
        ) -> bytes | None:
            return b"x" if key.endswith("jsonl") else super().read(key, version_id, max_bytes)

    damaged = Damaged(officer.clock, shelf=world.store._shelf)
    with pytest.raises(StoreError, match="run archiver verify"):
        HoldEvents(damaged).acts()


@pytest.mark.parametrize(
    "change",
    [
        {"action": "keep"}, {"by": None}, {"objects": None}, {"objects": [{"key": 1}]},
        {"objects": [{"key": "manifest/seals/000000000001.json", "version_id": None}]},
        {"objects": [{"key": RECORD, "version_id": ""}]}, {"at": "today"}, {"v": 2},
        {"objects": [{"key": RECORD, "version_id": "a b"}]}, {"call_id": 7}, {"type": None},
        {"call_id": "vc_2"}, {"id": ""}, {"id": "X" * 16}, {"id": "0" * 17}, {"id": 7},
        {"id": None},
    ],
)  # fmt: skip
def test_a_malformed_event_is_refused(change):
    told = {
        "action": "add", "at": "2024-01-15T10:00:00Z", "by": "a", "call_id": "vc_1", "reason": "b",
        "objects": [{"key": RECORD, "version_id": None}], "type": "hold", "v": 1,
    }  # fmt: skip
    parsed = event.parse(canonical(told))
    assert parsed is not None
    assert parsed.line == canonical(told)
    with pytest.raises(FormatError):
        event.parse(canonical({**told, **change}))


@pytest.mark.parametrize("text", ["", " ", "a\nb", "\x1b[2J", "a\u202eb", "\udc80", "x" * 501])
def test_who_and_why_are_one_printable_line(text):
    assert not event.is_text(text)
    assert event.is_text("Ü. Özil, Legal: “Case 4711”")
