"""Things that are bad for ever, each bound to one thing: a listing, an entry, a request, an object.

A `Harm` says what it spoils and how. It holds until it is `healed`, whatever else befalls the
requests, and counts how often it was `met`. `Harms` are what a world has: the fakes of the source
and of the store ask it about each request.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from archiver.core.model import Window
from archiver.manifest.layout import SegmentName
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_s3 import refusal
from tests.fakes.memory_source import Drip
from tests.fakes.memory_store import MemoryStore, Object
from tests.fakes.platform import subject
from tests.fakes.store_rules import STRANGER, sha256_hex

Answer = Callable[[Reply], Reply]
"""What is answered instead of what should have been."""
Bend = Callable[[Request, Callable[[], Reply]], Reply | None]
"""The answer to a request, given the right one; None where the request is about other things."""
Refuse = Callable[[str, str], Exception | None]
"""What the store raises for an operation on a key, or None."""

JSON = {"Content-Type": "application/json"}
HTML = b"<html><body>Please sign in</body></html>"
SILENT = -1
"""`close_after` of a reply that ends before its first byte."""
WRITES = frozenset({"put", "begin", "part", "complete"})


@dataclass
class Harm:
    """One thing that is bad. `kind` is what to count it under, `names` are the words of which a
    log line that tells of it must hold one."""

    kind: str
    names: tuple[str, ...] = ()
    bend: Bend | None = None
    refuse: Refuse | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    """Foreign objects, by key: they lie in the bucket from the beginning."""
    healed: bool = False
    met: int = 0


class Harms:
    """All that is bad in a world."""

    def __init__(self) -> None:
        self.all: list[Harm] = []
        self.last: Harm | None = None
        """What was met last; who has told of it clears it."""

    def answer(self, request: Request, right: Callable[[], Reply]) -> Reply:
        """What the source answers, in place of `right`."""
        for harm in self._active():
            reply = harm.bend(request, right) if harm.bend else None
            if reply is not None:
                self._meet(harm)
                return reply
        return right()

    def refusal(self, operation: str, key: str) -> Exception | None:
        """What the store raises."""
        for harm in self._active():
            error = harm.refuse(operation, key) if harm.refuse else None
            if error is not None or key in harm.objects:
                self._meet(harm)
            if error is not None:
                return error
        return None

    def _meet(self, harm: Harm) -> None:
        harm.met += 1
        self.last = harm

    def _active(self) -> Iterable[Harm]:
        return (harm for harm in self.all if not harm.healed)


# --- what is answered


def status(code: int, body: bytes = b"{}") -> Answer:
    return lambda right: Reply(code, JSON, body)


def body(data: bytes, content_type: str = "application/json") -> Answer:
    """These bytes, with status 200."""
    return lambda right: Reply(200, {"Content-Type": content_type}, data)


def document(value: object) -> Answer:
    return body(json.dumps(value).encode())


html = body(HTML, "text/html")


def resets(right: Reply) -> Reply:
    """The connection breaks before the first byte of the answer."""
    return Reply(0, close_after=SILENT, reset=True)


def silent(right: Reply) -> Reply:
    """No answer ever comes: the client gives up waiting."""
    return Reply(-1)


def truncated(right: Reply) -> Reply:
    """Half of the JSON, and a length that agrees with it."""
    whole = whole_body(right)
    return Reply(200, JSON, whole[: len(whole) // 2])


def broken_off(right: Reply) -> Reply:
    """The connection breaks with the first byte, each time."""
    data = whole_body(right)
    return replace(right, body=data, content_length=len(data), close_after=0)


def changed(change: Callable[[dict[str, Any]], object]) -> Answer:
    """The JSON document that should have come, with `change` made to it."""

    def answer(right: Reply) -> Reply:
        if right.status != 200:
            return right
        told = json.loads(whole_body(right))
        inner = told["data"] if isinstance(told, dict) and "data" in told else told
        change(inner)
        return replace(right, body=json.dumps(told).encode(), content_length=None)

    return answer


def spliced(before: bytes, after: bytes) -> Answer:
    """The bytes of the answer with one place in them changed."""

    def answer(right: Reply) -> Reply:
        data = whole_body(right)
        assert before in data
        return replace(right, body=data.replace(before, after, 1), content_length=None)

    return answer


def unmeasured(right: Reply) -> Reply:
    """Half a body without a length: the end of the connection looks like its end."""
    whole = whole_body(right)
    return replace(right, headers={}, body=[whole[: len(whole) // 2]], content_length=None)


def endless(wait: Callable[[float], object]) -> Answer:
    """A recording that goes on for ever, slower than anybody waits for; `wait` passes the time."""
    return lambda right: replace(right, body=Drip(wait), content_length=1 << 20)


def whole_body(reply: Reply) -> bytes:
    """The body, whichever way it is kept."""
    return reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)


# --- what of the source is bad


def listing(window: Window, answer: Answer, kind: str) -> Harm:
    """Every page of one window's listing."""

    def bend(request: Request, right: Callable[[], Reply]) -> Reply | None:
        return answer(right()) if _lists(request, window) else None

    return Harm(f"listing {kind}", names_of(window), bend)


def page(window: Window, number: int, answer: Answer, kind: str) -> Harm:
    """One page of one window's listing."""

    def bend(request: Request, right: Callable[[], Reply]) -> Reply | None:
        if _lists(request, window) and request.query.get("page", "1") == str(number):
            return answer(right())
        return None

    return Harm(f"page {kind}", names_of(window), bend)


def entry(call_id: str, window: Window, change: Callable[[dict[str, Any]], Any], kind: str) -> Harm:
    """One entry of every listing that shows it."""

    def bend(request: Request, right: Callable[[], Reply]) -> Reply | None:
        if subject(request)[0] != "list":
            return None
        reply = right()
        if reply.status != 200:
            return None
        told = json.loads(whole_body(reply))
        rows = told if isinstance(told, list) else told["data"]
        at = [n for n, row in enumerate(rows) if isinstance(row, dict) and row["id"] == call_id]
        if not at:
            return None
        rows[at[0]] = change(dict(rows[at[0]]))
        return replace(reply, body=json.dumps(told).encode(), content_length=None)

    return Harm(f"entry {kind}", names_of(window), bend)


def of_call(call_id: str, operation: str, answer: Answer, kind: str) -> Harm:
    """One request about one call: `call`, `epa`, `url`, or `blob`."""

    def bend(request: Request, right: Callable[[], Reply]) -> Reply | None:
        return answer(right()) if subject(request) == (operation, call_id) else None

    return Harm(f"{operation} {kind}", (call_id,), bend)


def fields(call_id: str, kind: str, **changes: Any) -> Harm:
    """Fields of a call, wherever the source tells of them."""

    def bend(request: Request, right: Callable[[], Reply]) -> Reply | None:
        operation, key = subject(request)
        if (operation, key) == ("call", call_id):
            return changed(lambda told: told.update(changes))(right())
        if operation != "list":
            return None
        reply, found = right(), []

        def change(rows: Any) -> None:
            for row in rows:
                if row["id"] == call_id:
                    row.update(changes)
                    found.append(row)

        reply = changed(change)(reply)
        return reply if found else None

    return Harm(f"fields {kind}", (call_id,), bend)


# --- what of the store is bad

REFUSALS = {400: "InvalidArgument", 403: "AccessDenied", 500: "InternalError"}


def refused(
    kind: str, code: int, operations: Iterable[str], prefix: str, names: tuple[str, ...]
) -> Harm:
    """Requests for the keys that begin so; for a listing, of this very prefix."""
    wanted = frozenset(operations)

    def refuse(operation: str, key: str) -> Exception | None:
        if operation not in wanted:
            return None
        hit = key == prefix if operation in ("list", "versions") else key.startswith(prefix)
        return _error(code, operation) if hit else None

    return Harm(f"store {kind}", names, refuse=refuse)


def foreign(key: str, data: bytes, kind: str, *names: str) -> Harm:
    """Bytes in the bucket that the archiver has not written."""
    return Harm(f"object {kind}", (key, *names), objects={key: data})


def put_there(store: MemoryStore, key: str, data: bytes, number: int = 0) -> None:
    """Put an object into the bucket past all rules, as somebody else would."""
    shelf = store._shelf
    assert key not in shelf.objects
    version = f"foreign-{len(shelf.keys)}"
    made = Object(key, data, sha256_hex(data), version, "text/plain", STRANGER, number)
    shelf.objects[key] = made
    bisect.insort(shelf.keys, key)


def take_away(store: MemoryStore, key: str) -> None:
    """Somebody who may has deleted an object, with all of its versions."""
    shelf = store._shelf
    shelf.keys.remove(key)
    del shelf.objects[key]


def names_of(window: Window) -> tuple[str, ...]:
    """What tells of a window: itself, or a key of its segments."""
    return (str(window), SegmentName(window.start, 1).jsonl.removesuffix("1.jsonl"))


def _lists(request: Request, window: Window) -> bool:
    operation, start = subject(request)
    return operation == "list" and bool(start) and datetime.fromisoformat(start) in window


def _error(code: int, operation: str) -> ClientError:
    # boto3 has no code of the body's for a HEAD: the status takes its place.
    name = str(code) if operation == "head" else REFUSALS[code]
    return refusal(name, code, operation)
