"""What a newer release leaves behind that was rolled back: records, segments, events of `v: 2`.

It has the archive's key, so all of it is hashed, sealed and signed as it must be. Each function
returns the keys that `verify` has to name.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import datetime

from archiver.core.model import Window
from archiver.manifest import canonical, event, layout, seal
from tests.fakes.harm import put_there
from tests.fakes.store_rules import sha256_hex
from tests.permanent.scene import CALLS, PlaceWorld, record_key, segment_name
from tests.simulation.judge import seals_of

HOLD = b'{"action":"add","at":"2024-01-15T13:00:00Z","id":"0123456789abcdef","type":"hold","v":2}\n'
EVENTS = f"{layout.EVENTS}dt=2024-01-15/130000-0123abcd.jsonl"


def sealed_window(world: PlaceWorld, window: Window) -> list[str]:
    """A window that is sealed, records and all; the chain is made anew from there. The key of its
    segment, which tells of the others."""
    name = segment_name(window)
    store = world.store
    lines, keys = [], []
    for line in store.object(name.jsonl).data.splitlines(keepends=True):
        newer = _newer(line)
        lines.append(newer)
        document = json.loads(newer)
        if document["type"] == "call":
            _write(world, document["record"], newer)
            keys.append(document["record"])
    _write(world, name.jsonl, b"".join(lines))
    rows = store.object(name.sha256).data.decode().splitlines()
    told = {row.partition("  ")[2]: row.partition("  ")[0] for row in rows}
    for key in (name.jsonl, *keys):
        told[key] = store.object(key).sha256
    _write(world, name.sha256, "".join(f"{sha}  {key}\n" for key, sha in told.items()).encode())
    _seal_anew(world)
    return [name.jsonl]


def unsealed_record(world: PlaceWorld, call_id: str) -> list[str]:
    """A record that no segment tells of yet."""
    key = record_key(call_id)
    _write(world, key, _newer(world.store.object(key).data))
    return [key]


def unsealed_segment(world: PlaceWorld, window: Window) -> list[str]:
    """A segment that waits for its seal, of a window that has nothing else yet."""
    key = segment_name(window).jsonl
    call_ids = [call_id for call_id, row in CALLS.items() if row[0] == window]
    records = [world.store.object(record_key(call_id)).data for call_id in sorted(call_ids)]
    line = {"from": _time(window.start), "to": _time(window.end), "type": "window", "v": 2}
    put_there(world.store, key, b"".join([*map(_newer, records), canonical.dump(line)]))
    return [key]


def sealed_events(world: PlaceWorld) -> list[str]:
    """An act about a call, with a seal of its own."""
    unsealed_events(world)
    seals = seals_of(world)
    before = seal.parse_seal(world.store.object(layout.seal_key(len(seals) - 1)).data)
    made = seal.next_seal(
        before,
        [seal.segment_entry(EVENTS, io.BytesIO(HOLD), window_lines=0)],
        key_id=world.key.public.key_id,
        sealed_at=world.clock.now(),
        watermark=before.watermark,
    )
    put_there(world.store, layout.seal_key(len(seals)), made)
    put_there(world.store, layout.signature_key(len(seals)), world.key.sign(made))
    put_there(world.store, layout.seal_pointer_key(EVENTS), f"{len(seals)}\n".encode())
    return [EVENTS]


def unsealed_events(world: PlaceWorld) -> list[str]:
    put_there(world.store, EVENTS, HOLD)
    put_there(world.store, layout.checksum_list_key(EVENTS), event.checksum_list(EVENTS, HOLD))
    return [EVENTS]


def _newer(line: bytes) -> bytes:
    return canonical.dump({**json.loads(line), "v": 2, "words_of_the_future": ["x"]})


def _seal_anew(world: PlaceWorld) -> None:
    """The seals, in their order, over the segments as they are now."""
    before = "0" * 64
    for document in seals_of(world):
        number = document["seq"]
        entries = [
            vars(seal.segment_entry(one["key"], io.BytesIO(world.store.object(one["key"]).data)))
            for one in document["segments"]
        ]
        made = canonical.dump({**document, "prev": before, "segments": entries})
        _write(world, layout.seal_key(number), made)
        _write(world, layout.signature_key(number), world.key.sign(made))
        before = sha256_hex(made)


def _write(world: PlaceWorld, key: str, data: bytes) -> None:
    """As if it had always been so."""
    shelf = world.store._shelf
    shelf.objects[key] = replace(shelf.objects[key], data=data, sha256=sha256_hex(data))


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
