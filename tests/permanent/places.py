"""The places of the matrix: one row each, with what is bad, what may suffer of it, who tells of it.

`calls` are those that may come to something else than they would; all others must be archived as if
nothing were wrong. `window` may stay open; all others must be sealed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from archiver.core.model import Window
from archiver.manifest import layout, record
from tests.fakes import harm
from tests.fakes.calls import APART
from tests.fakes.harm import Answer, Harm
from tests.permanent.scene import (
    CALLS,
    FIRST,
    SECOND,
    THIRD,
    PlaceWorld,
    file_key,
    ids_of,
    record_key,
    segment_name,
)

Make = Callable[[PlaceWorld], Harm]


@dataclass(frozen=True)
class Told:
    """How the archive tells of what is bad; each that is given must hold.

    `left`: the harmed calls are pending, or failed for one of these reasons. `findings`: their
    records hold one of these. `outcome` is theirs. `verify`: it has a finding with one of these
    codes, or, where it is empty, any that names the object. `unreadable`: the window line counts an
    entry. `log`: a line of the level warning or above names it.
    """

    left: tuple[str, ...] | None = None
    findings: tuple[str, ...] | None = None
    outcome: tuple[str, ...] | None = None
    verify: tuple[str, ...] | None = None
    unreadable: bool = False
    log: bool = True


@dataclass(frozen=True)
class Place:
    """A row. `exits` is what a backfill may answer while it is bad; `open`: whether `window` has to
    stay open, may do so, or is sealed all the same."""

    name: str
    make: Make
    told: Told
    calls: frozenset[str] = frozenset()
    window: Window | None = None
    open: Literal["yes", "maybe", "no"] = "no"
    exits: frozenset[int] = frozenset({1})
    recorded: bool = False
    """Whether the recordings of the harmed calls are archived all the same."""
    kept: bytes | None = None
    """Bytes that a file of the record must hold: what came instead of a document."""
    locked: bool = False
    ordered: bool = False
    """Whether it depends on the order of the listing which calls are harmed."""
    always_met: bool = True
    scars: frozenset[str] = frozenset()
    """What `verify` goes on to say once it is well again."""
    comes_late: bool = True
    """Whether a backfill sees that it is well again; else only the loop does, at the ages of
    RELIST."""


PLACES: dict[str, Place] = {}
CALM = Place("nothing", lambda world: Harm("nothing"), Told(log=False), exits=frozenset({0}))
"""Nothing is bad."""


def _add(name: str, told: Told, make: Callable[..., Harm], *args: Any, **options: Any) -> None:
    """`make` is called with `args`, or with the world where there are none."""
    assert name not in PLACES
    PLACES[name] = Place(name, (lambda world: make(*args)) if args else make, told, **options)


def calls(*call_ids: str) -> dict[str, Any]:
    return {"calls": frozenset(call_ids)}


B2 = calls("vc_b2")
EITHER = {"exits": frozenset({0, 1})}
UNSEEN = {"always_met": False, **EITHER}
"""Nobody needs to meet it."""


# --- the source: the listing of one window

HARMLESS = Told(log=False)
OPEN = Told()
ANSWERS: dict[str, Answer] = {
    "500": harm.status(500),
    "400": harm.status(400),
    "422": harm.status(422),
    "403": harm.status(403),
    "401": harm.status(401),
    "404": harm.status(404),
    "reset": harm.resets,
    "silence": harm.silent,
    "HTML": harm.html,
    "an object": harm.document({"calls": []}),
    "half of its JSON": harm.truncated,
    "nothing": harm.body(b""),
}


def _listings() -> None:
    def is_open(window: Window) -> dict[str, Any]:
        return {"calls": ids_of(window), "window": window, "open": "yes"}

    for kind, answer in ANSWERS.items():
        name = f"listing: {kind}"
        _add(name, OPEN, harm.listing, SECOND, answer, kind, **is_open(SECOND))
    for which, window in (("first", FIRST), ("newest", THIRD)):
        name = f"listing of the {which} window: 500"
        _add(name, OPEN, harm.listing, window, harm.status(500), "500", **is_open(window))
    for kind in ("500", "an object"):
        # Two calls stand on it, whichever way the listing is sorted.
        bad = (SECOND, 2, ANSWERS[kind], kind)
        _add(f"page 2: {kind}", OPEN, harm.page, *bad, ordered=True, **is_open(SECOND))


# --- the source: one entry of a listing

ENTRIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "null": lambda row: None,
    "a string": lambda row: "vc_b2",
    "without an id": lambda row: {name: value for name, value in row.items() if name != "id"},
    "with id null": lambda row: {**row, "id": None},
    "with an empty id": lambda row: {**row, "id": ""},
}


def _entries() -> None:
    told = Told(unreadable=True, verify=("listing_unreadable",))
    for kind, change in ENTRIES.items():
        _add(f"entry: {kind}", told, harm.entry, "vc_b2", SECOND, change, kind, **B2)
    for name, i, window in (("newest", "vc_c3", THIRD), ("first", "vc_a1", FIRST)):
        null = (i, window, lambda row: None, "null")
        _add(f"{name} entry: null", told, harm.entry, *null, **calls(i))
    number = ("4711", SECOND, lambda row: {**row, "id": 4711}, "number")
    _add("entry: a number as id", HARMLESS, harm.entry, *number, exits=frozenset({0}))


# --- the source: what one call answers

GONE_WRONG = ("source_unavailable", "bad_document", "call_refused", "call_missing")
NO_JSON: dict[str, bytes] = {
    "NaN": b'{"id":"vc_b2","score":NaN}',
    "a lone surrogate": b'{"id":"vc_b2","text":"\\ud800"}',
    "a duplicate key": b'{"id":"vc_b2","score":1,"score":2}',
}
EMPTY = {"204": harm.status(204, b""), "nothing": harm.body(b""), "null": harm.body(b"null")}


def _of(operation: str, answer: Answer, kind: str, call_id: str = "vc_b2") -> Harm:
    """Where the survey is bad, the call does not have it inline either."""
    made = harm.of_call(call_id, operation, answer, kind)
    if operation != "epa":
        return made
    without = harm.changed(lambda told: told.pop("epaResults", None))
    bare = harm.of_call(call_id, "call", without, kind)
    return Harm(made.kind, made.names, lambda *both: made.bend(*both) or bare.bend(*both))


def _documents() -> None:
    one = {**B2, "recorded": True}
    malformed = Told(findings=("document_malformed",))
    transcript = Told(findings=("transcript_unavailable", "document_malformed"))
    survey = Told(findings=("survey_unavailable", "document_malformed"))
    none = {"exits": frozenset({0}), "comes_late": False}
    another = harm.document({"id": "vc_other", "state": "Completed"})
    statuses = {str(code): harm.status(code) for code in (400, 401, 403, 404, 500)}
    for operation, told, answers in (
        ("call", transcript, {kind: statuses[kind] for kind in ("500", "403", "401", "404")}),
        ("call", transcript, {**EMPTY, "HTML": harm.html, "another call": another}),
        ("epa", survey, {kind: statuses[kind] for kind in ("500", "400", "403")}),
        ("epa", survey, {"a number": harm.document(7), "HTML": harm.html}),
    ):
        for kind, answer in answers.items():
            _add(f"{operation}: {kind}", told, _of, operation, answer, kind, **one)
    for kind, answer in {"404": statuses["404"], **EMPTY}.items():
        _add(f"epa: {kind}", HARMLESS, _of, "epa", answer, kind, **none, **one)
    for operation in ("call", *APART):
        for kind, data in NO_JSON.items():
            bad = (operation, harm.body(data), kind)
            _add(f"{operation}: {kind}", malformed, _of, *bad, kept=data, **one)
    for which, i in (("newest", "vc_c3"), ("first", "vc_a1")):
        bad = ("call", statuses["500"], "500", i)
        _add(f"call of the {which}: 500", transcript, _of, *bad, recorded=True, **calls(i))
    bad = ("epa", statuses["403"], "403", "vc_a1")
    _add("epa of the first: 403", survey, _of, *bad, recorded=True, **calls("vc_a1"))
    every = {"calls": SECOND_CALLS, "recorded": True}
    _add("epa of every second call: 403", survey, _second_survey, **every)


SECOND_CALLS = frozenset(call_id for call_id, row in list(CALLS.items())[1::2] if row[3])


def _second_survey(world: PlaceWorld) -> Harm:
    """A feature that was not booked for them."""
    chosen = [_of("epa", harm.status(403), "403", i) for i in CALLS if i in SECOND_CALLS]

    def bend(request: Any, right: Any) -> Any:
        replies = (one.bend(request, right) for one in chosen if one.bend is not None)
        return next((reply for reply in replies if reply is not None), None)

    return Harm("epa 403", tuple(sorted(SECOND_CALLS)), bend)


def _recordings() -> None:
    refused = {str(code): harm.status(code) for code in (500, 400, 403, 401)}
    none = {
        "404": harm.status(404),
        "410": harm.status(410),
        "no url": harm.document({"expiresAt": None, "recordingUrl": None}),
        "nothing": EMPTY["nothing"],
    }
    odd = {
        "a space in it": harm.changed(_with_url(lambda url: url.replace("/recs/", "/re cs/"))),
        "another host": harm.changed(_with_url(lambda url: url.replace("blobs.", "others."))),
        "a number": harm.document(7),
        "HTML": harm.html,
        "without the field": harm.document({"expiresAt": None}),
    }
    lost = {
        **{str(code): harm.status(code, b"<Error/>") for code in (403, 404, 500, 412)},
        "nothing": harm.body(b"", "audio/wav"),
        "half, without a length": harm.unmeasured,
        "broken off": harm.broken_off,
        "reset": harm.resets,
        "HTML": harm.html,
    }
    told_odd = Told(left=("url_not_allowed", "url_refused", *GONE_WRONG))
    told_lost = Told(left=(*record.FAILED_REASONS, *GONE_WRONG))
    told_none = Told(outcome=("no_recording",), log=False)
    for kind, answer in none.items():
        _add(f"url: {kind}", told_none, _of, "url", answer, kind, exits=frozenset({0}), **B2)
    for operation, told, answers in (
        ("url", Told(left=GONE_WRONG), refused),
        ("url", told_odd, odd),
        ("blob", told_lost, lost),
    ):
        for kind, answer in answers.items():
            _add(f"{operation}: {kind}", told, _of, operation, answer, kind, **B2)
    for kind, which, i in (
        ("403", "newest", "vc_c3"), ("403", "first", "vc_a1"), ("500", "newest", "vc_c3"),
        ("a space in it", "newest", "vc_c3"), ("another host", "newest", "vc_c3"),
    ):  # fmt: skip
        bad = ("url", {**refused, **odd}[kind], kind, i)
        _add(f"url of the {which}: {kind}", told_odd, _of, *bad, **calls(i))

    def never_ends(world: PlaceWorld) -> Harm:
        return harm.of_call("vc_b2", "blob", harm.endless(world.clock.sleep), "endless")

    _add("blob: never ends", told_lost, never_ends, **B2)


def _with_url(change: Callable[[str], str]) -> Callable[[dict[str, Any]], object]:
    return lambda told: told.update(recordingUrl=change(told["recordingUrl"]))


# --- the source: times that nobody can rely on


def _times() -> None:
    future, past = "2999-01-01T00:00:00Z", "1971-01-01T00:00:00Z"
    told = Told(findings=("time_implausible",), log=False)
    for name, changes in {
        "endTime in 2999": {"endTime": future},
        "endTime in 1971": {"endTime": past},
        "startTime and endTime in 2999": {"endTime": future, "startTime": future},
    }.items():
        _add(
            name, told, partial(harm.fields, **changes), "vc_b2", "time",
            recorded=True, locked=True, comes_late=False, **EITHER, **B2,
        )  # fmt: skip


# --- the store

RECORDS, SEGMENTS = layout.record_prefix, layout.segment_prefix
PUT, READ = ("put", "begin", "complete"), ("get",)
REFUSED = ("store_refused",)


def _store() -> None:
    refused = Told(left=REFUSED)

    def add(
        name: str, code: int, told: Told, operations: tuple[str, ...], key: str, *names: str,
        **options: Any,
    ) -> None:  # fmt: skip
        bad = (f"{operations[0]} {code}", code, operations, key, names)
        _add(f"{name}: {code}", told, harm.refused, *bad, **options)

    for what, key, codes in (
        ("its recording", file_key("vc_b2", "recording"), (400, 403, 500)),
        ("its transcript", file_key("vc_b2", "transcript"), (400, 500)),
        ("its survey", file_key("vc_b2", "epa"), (403,)),
        ("its record", record_key("vc_b2").removesuffix("1.json"), (400, 403)),
    ):
        for code in codes:
            add(f"PUT of {what}", code, refused, PUT, key, "vc_b2", **B2)
    for kind, codes in (("jsonl", (400, 403)), ("sha256", (400, 500))):
        key, stays = getattr(segment_name(SECOND), kind), {"window": SECOND, "open": "yes"}
        for code in codes:
            add(f"PUT of one window's {kind}", code, OPEN, PUT, key, key, str(SECOND), **stays)
    for which, i in (("newest", "vc_c3"), ("first", "vc_a1")):
        name = f"PUT of the recording of the {which}"
        add(name, 400, refused, PUT, file_key(i, "recording"), i, **calls(i))
    b1 = (file_key("vc_b1", "recording"), "vc_b1")
    add("PUT of the parts of a recording", 400, refused, ("part",), *b1, **calls("vc_b1"))
    add("HEAD of one recording", 500, refused, ("head",), *b1, **calls("vc_b1"))
    unread, maybe = Told(verify=("unreadable",), log=False), {"window": SECOND, "open": "maybe"}
    add("GET of one record", 403, unread, READ, record_key("vc_b2"), "vc_b2", **UNSEEN)
    for code in (403, 500):
        segment = (segment_name(SECOND).jsonl, *harm.names_of(SECOND))
        add("GET of one window's segment", code, unread, READ, *segment, **maybe, **UNSEEN)
    sightings = f"{layout.sighting_prefix(SECOND.start.date())}{SECOND.start:%H%M}-"
    names = (str(SECOND), layout.SIGHTINGS)
    add("PUT of one window's sightings", 403, Told(), PUT, sightings, *names, **maybe, **EITHER)
    for which, windows in {"first": (FIRST, SECOND), "last": (THIRD,)}.items():
        day = windows[0].start.date()
        harmed = frozenset[str]().union(*map(ids_of, windows))
        for what, prefix in {"records": RECORDS(day), "segments": SEGMENTS(day)}.items():
            # Nobody can say of any call of the day whether it has a record, nor which windows of
            # it are closed.
            add(
                f"LIST of the {which} day's {what}", 403, OPEN, ("list",), prefix, prefix,
                *map(str, windows), calls=harmed, window=windows[0], open="yes",
            )  # fmt: skip


# --- the bucket: what somebody else has put there


def _foreign() -> None:
    segment = segment_name(SECOND)
    bad = b"these are no bytes of ours\n"
    newer = {
        "record": json.dumps({"type": "call", "v": 2}).encode() + b"\n",
        "segment": json.dumps({"type": "window", "v": 2}).encode() + b"\n",
        "event": b'{"at":"2024-01-15T13:00:00Z","type":"hold","v":2}\n',
    }
    unlisted = layout.record_key(SECOND.start.date(), "vc_ghost", 1)
    events = f"{layout.EVENTS}dt=2024-01-15/130000-0123abcd.jsonl"

    def there(name: str, key: str, data: bytes, *codes: str, **options: Any) -> None:
        told = Told(verify=codes, log=options.pop("log", True), left=options.pop("left", None))
        _add(name, told, harm.foreign, key, data, name, *options.pop("names", ()), **options)

    at_record, harmed = record_key("vc_b2"), {"names": ("vc_b2",), **B2}
    in_second = {"names": (str(SECOND),), "window": SECOND, "open": "maybe", **EITHER}
    unread = {"log": False, **UNSEEN}  # nobody has a reason to read it
    there(
        "foreign bytes at a listed call's record", at_record, bad, "record_unreadable",
        recorded=True, **EITHER, **harmed,
    )  # fmt: skip
    # The newer release may have archived it: this one leaves it alone.
    there(
        "a newer format at a listed call's record", at_record, newer["record"], "newer_format",
        left=(), **harmed,
    )  # fmt: skip
    for name, data, code in (
        ("foreign bytes", bad, "record_unreadable"),
        ("a newer format", newer["record"], "newer_format"),
    ):
        there(f"{name} at another call's record", unlisted, data, code, **unread)
    skipped = frozenset({"revision_skipped", "window_revision"})
    at_segment = "at one window's segment"
    there(f"foreign bytes {at_segment}", segment.jsonl, bad, scars=skipped, **in_second)
    there(
        f"a newer format {at_segment}", segment.jsonl, newer["segment"], "newer_format",
        scars=skipped, **in_second,
    )  # fmt: skip
    scars = frozenset({"companion_missing"})
    there("foreign bytes at one window's sha256", segment.sha256, bad, scars=scars, **in_second)
    there("foreign bytes at one window's pointer", segment.seal, bad, **in_second)
    there("a newer format among the events", events, newer["event"], **unread)
    there("foreign bytes among the events", events, bad, **unread)
    key, names = layout.sighting_key(SECOND.start, "0123456789abcdef"), (layout.SIGHTINGS,)
    there("foreign bytes among the sightings", key, bad, names=(*names, str(SECOND)), **unread)
    notes = "manifest/notes.txt"
    there("a foreign object in the manifest", notes, bad, "foreign_object", **unread)
    notes = f"{SEGMENTS(SECOND.start.date())}notes.txt"
    there("a foreign object among the segments", notes, bad, **unread)


_listings()
_entries()
_documents()
_recordings()
_times()
_store()
_foreign()
