"""The places of the matrix: one row each, with what is bad, what may suffer of it, who tells of it.

`calls` are those that may come to something else than they would; all others must be archived as if
nothing were wrong. `window` may stay open; all others must be sealed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from archiver.core.model import Window
from archiver.manifest import layout, record
from tests.fakes import harm
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


def _add(name: str, make: Make, told: Told, **options: Any) -> None:
    assert name not in PLACES
    PLACES[name] = Place(name, make, told, **options)


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
    for kind, answer in ANSWERS.items():
        _add(
            f"listing: {kind}",
            lambda world, kind=kind, answer=answer: harm.listing(SECOND, answer, kind),
            OPEN, calls=ids_of(SECOND), window=SECOND, open="yes",
        )  # fmt: skip
    for name, window in (("first", FIRST), ("newest", THIRD)):
        _add(
            f"listing of the {name} window: 500",
            lambda world, window=window: harm.listing(window, harm.status(500), "500"),
            OPEN, calls=ids_of(window), window=window, open="yes",
        )  # fmt: skip
    for kind in ("500", "an object"):
        # Two calls stand on it, whichever way the listing is sorted.
        _add(
            f"page 2: {kind}",
            lambda world, kind=kind: harm.page(SECOND, 2, ANSWERS[kind], kind),
            OPEN, calls=ids_of(SECOND), window=SECOND, open="yes", ordered=True,
        )  # fmt: skip


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
        _add(
            f"entry: {kind}",
            lambda world, kind=kind, change=change: harm.entry("vc_b2", SECOND, change, kind),
            told, calls=frozenset({"vc_b2"}),
        )  # fmt: skip
    for name, call_id, window in (("newest", "vc_c3", THIRD), ("first", "vc_a1", FIRST)):
        _add(
            f"{name} entry: null",
            lambda world, i=call_id, window=window: harm.entry(i, window, lambda row: None, "null"),
            told, calls=frozenset({call_id}),
        )  # fmt: skip
    _add(
        "entry: a number as id",
        lambda world: harm.entry("4711", SECOND, lambda row: {**row, "id": 4711}, "number"),
        HARMLESS, exits=frozenset({0}),
    )  # fmt: skip


# --- the source: what one call answers

GONE_WRONG = ("source_unavailable", "bad_document", "call_refused", "call_missing")
NO_JSON: dict[str, bytes] = {
    "NaN": b'{"id":"vc_b2","score":NaN}',
    "a lone surrogate": b'{"id":"vc_b2","text":"\\ud800"}',
    "a duplicate key": b'{"id":"vc_b2","score":1,"score":2}',
}
EMPTY = {"204": harm.status(204, b""), "nothing": harm.body(b""), "null": harm.body(b"null")}


def _of(operation: str, answer: Answer, kind: str, call_id: str = "vc_b2") -> Make:
    """Where the survey is bad, the call does not have it inline either."""

    def make(world: PlaceWorld) -> Harm:
        made = harm.of_call(call_id, operation, answer, kind)
        if operation != "epa":
            return made
        bare = harm.of_call(
            call_id, "call", harm.changed(lambda told: told.pop("epaResults", None)), kind
        )

        def bend(request: Any, right: Any) -> Any:
            assert made.bend is not None
            assert bare.bend is not None
            return made.bend(request, right) or bare.bend(request, right)

        return Harm(made.kind, made.names, bend)

    return make


def _documents() -> None:
    one: dict[str, Any] = {"calls": frozenset({"vc_b2"}), "recorded": True}
    malformed = Told(findings=("document_malformed",))
    transcript = Told(findings=("transcript_unavailable", "document_malformed"))
    survey = Told(findings=("survey_unavailable", "document_malformed"))
    for code in (500, 403, 401, 404):
        _add(f"call: {code}", _of("call", harm.status(code), str(code)), transcript, **one)
    for kind, answer in EMPTY.items():
        _add(f"call: {kind}", _of("call", answer, kind), transcript, **one)
    _add("call: HTML", _of("call", harm.html, "HTML"), transcript, **one)
    _add(
        "call: another call",
        _of("call", harm.document({"id": "vc_other", "state": "Completed"}), "another"),
        transcript, **one,
    )  # fmt: skip
    for code in (500, 400, 403):
        _add(f"epa: {code}", _of("epa", harm.status(code), str(code)), survey, **one)
    for kind, answer in {"404": harm.status(404), **EMPTY}.items():
        _add(
            f"epa: {kind}", _of("epa", answer, kind), HARMLESS, exits=frozenset({0}),
            comes_late=False, **one,
        )  # fmt: skip
    for kind, answer in {"a number": harm.document(7), "HTML": harm.html}.items():
        _add(f"epa: {kind}", _of("epa", answer, kind), survey, **one)
    for operation in ("call", "epa"):
        for kind, data in NO_JSON.items():
            _add(
                f"{operation}: {kind}", _of(operation, harm.body(data), kind), malformed,
                kept=data, **one,
            )  # fmt: skip
    for call_id, name in (("vc_c3", "newest"), ("vc_a1", "first")):
        _add(
            f"call of the {name}: 500", _of("call", harm.status(500), "500", call_id),
            transcript, calls=frozenset({call_id}), recorded=True,
        )  # fmt: skip
    _add(
        "epa of the first: 403", _of("epa", harm.status(403), "403", "vc_a1"),
        survey, calls=frozenset({"vc_a1"}), recorded=True,
    )  # fmt: skip
    _add("epa of every second call: 403", _second_survey, survey, calls=SECOND_CALLS, recorded=True)


SECOND_CALLS = frozenset(call_id for call_id, row in list(CALLS.items())[1::2] if row[3])


def _second_survey(world: PlaceWorld) -> Harm:
    """A feature that was not booked for them."""
    made = [_of("epa", harm.status(403), "403", call_id)(world) for call_id in CALLS]
    chosen = [one for one in made if set(one.names) <= SECOND_CALLS]

    def bend(request: Any, right: Any) -> Any:
        replies = (one.bend(request, right) for one in chosen if one.bend is not None)
        return next((reply for reply in replies if reply is not None), None)

    return Harm("epa 403", tuple(sorted(SECOND_CALLS)), bend)


def _recordings() -> None:
    one: dict[str, Any] = {"calls": frozenset({"vc_b2"})}
    none = Told(outcome=("no_recording",), log=False)
    for code in (500, 400, 403, 401):
        _add(f"url: {code}", _of("url", harm.status(code), str(code)), Told(left=GONE_WRONG), **one)
    for kind, answer in {
        "404": harm.status(404),
        "410": harm.status(410),
        "no url": harm.document({"expiresAt": None, "recordingUrl": None}),
        "nothing": EMPTY["nothing"],
    }.items():
        _add(f"url: {kind}", _of("url", answer, kind), none, exits=frozenset({0}), **one)
    odd = Told(left=("url_not_allowed", "url_refused", *GONE_WRONG))
    for kind, answer in {
        "a space in it": harm.changed(_with_url(lambda url: url.replace("/recs/", "/re cs/"))),
        "another host": harm.changed(_with_url(lambda url: url.replace("blobs.", "others."))),
        "a number": harm.document(7),
        "HTML": harm.html,
        "without the field": harm.document({"expiresAt": None}),
    }.items():
        _add(f"url: {kind}", _of("url", answer, kind), odd, **one)
    for kind, name, call_id in (
        ("403", "newest", "vc_c3"), ("403", "first", "vc_a1"), ("500", "newest", "vc_c3"),
        ("a space in it", "newest", "vc_c3"), ("another host", "newest", "vc_c3"),
    ):  # fmt: skip
        answer = {
            "403": harm.status(403),
            "500": harm.status(500),
            "a space in it": harm.changed(_with_url(lambda url: url.replace("/recs/", "/re cs/"))),
            "another host": harm.changed(_with_url(lambda url: url.replace("blobs.", "others."))),
        }[kind]
        _add(
            f"url of the {name}: {kind}", _of("url", answer, kind, call_id),
            odd, calls=frozenset({call_id}),
        )  # fmt: skip
    lost = Told(left=(*record.FAILED_REASONS, *GONE_WRONG))
    for kind, answer in {
        "403": harm.status(403, b"<Error/>"),
        "404": harm.status(404, b"<Error/>"),
        "500": harm.status(500, b"<Error/>"),
        "412": harm.status(412, b"<Error/>"),
        "nothing": harm.body(b"", "audio/wav"),
        "no length": harm.unmeasured,
        "broken off": harm.broken_off,
        "reset": harm.resets,
        "HTML": harm.html,
    }.items():
        _add(f"blob: {kind}", _of("blob", answer, kind), lost, **one)
    _add(
        "blob: never ends",
        lambda world: harm.of_call("vc_b2", "blob", harm.endless(world.clock.sleep), "endless"),
        lost, **one,
    )  # fmt: skip


def _with_url(change: Callable[[str], str]) -> Callable[[dict[str, Any]], object]:
    return lambda told: told.update(recordingUrl=change(told["recordingUrl"]))


# --- the source: times that nobody can rely on


def _times() -> None:
    for name, changes in {
        "endTime in 2999": {"endTime": "2999-01-01T00:00:00Z"},
        "endTime in 1971": {"endTime": "1971-01-01T00:00:00Z"},
        "startTime and endTime in 2999": {
            "endTime": "2999-01-01T00:00:00Z",
            "startTime": "2999-01-01T00:00:00Z",
        },
    }.items():
        _add(
            name,
            lambda world, changes=changes: harm.fields("vc_b2", "time", **changes),
            Told(findings=("time_implausible",), log=False),
            calls=frozenset({"vc_b2"}), recorded=True, locked=True, exits=frozenset({0, 1}),
            comes_late=False,
        )  # fmt: skip


# --- the store

RECORDS, SEGMENTS = layout.record_prefix, layout.segment_prefix
PUT, READ = ("put", "begin", "complete"), ("get",)
REFUSED = ("store_refused",)


def _store() -> None:
    one: dict[str, Any] = {"calls": frozenset({"vc_b2"})}
    for what, key, codes in (
        ("its recording", file_key("vc_b2", "recording"), (400, 403, 500)),
        ("its transcript", file_key("vc_b2", "transcript"), (400, 500)),
        ("its survey", file_key("vc_b2", "epa"), (403,)),
        ("its record", record_key("vc_b2").removesuffix("1.json"), (400, 403)),
    ):
        for code in codes:
            _add(
                f"PUT of {what}: {code}",
                lambda world, code=code, key=key: harm.refused(
                    f"put {code}", code, PUT, key, ("vc_b2",)
                ),
                Told(left=REFUSED), **one,
            )  # fmt: skip
    for kind, codes in (("jsonl", (400, 403)), ("sha256", (400, 500))):
        key = getattr(segment_name(SECOND), kind)
        for code in codes:
            _add(
                f"PUT of one window's {kind}: {code}",
                lambda world, code=code, key=key: harm.refused(
                    f"put {code}", code, PUT, key, (key, str(SECOND))
                ),
                OPEN, window=SECOND, open="yes",
            )  # fmt: skip
    for call_id, name in (("vc_c3", "newest"), ("vc_a1", "first")):
        _add(
            f"PUT of the recording of the {name}: 400",
            lambda world, i=call_id: harm.refused(
                "put 400", 400, PUT, file_key(i, "recording"), (i,)
            ),
            Told(left=REFUSED), calls=frozenset({call_id}),
        )  # fmt: skip
    _add(
        "PUT of the parts of a recording: 400",
        lambda world: harm.refused(
            "part 400", 400, ("part",), file_key("vc_b1", "recording"), ("vc_b1",)
        ),
        Told(left=REFUSED), calls=frozenset({"vc_b1"}),
    )  # fmt: skip
    _add(
        "HEAD of one recording: 500",
        lambda world: harm.refused(
            "head 500", 500, ("head",), file_key("vc_b1", "recording"), ("vc_b1",)
        ),
        Told(left=REFUSED), calls=frozenset({"vc_b1"}),
    )  # fmt: skip
    _add(
        "GET of one record: 403",
        lambda world: harm.refused("get 403", 403, READ, record_key("vc_b2"), ("vc_b2",)),
        Told(verify=("unreadable",), log=False), always_met=False, exits=frozenset({0, 1}),
    )  # fmt: skip
    for code in (403, 500):
        _add(
            f"GET of one window's segment: {code}",
            lambda world, code=code: harm.refused(
                f"get {code}", code, READ, segment_name(SECOND).jsonl, harm.names_of(SECOND)
            ),
            Told(verify=("unreadable",), log=False), window=SECOND, open="maybe",
            always_met=False, exits=frozenset({0, 1}),
        )  # fmt: skip
    sightings = f"{layout.sighting_prefix(SECOND.start.date())}{SECOND.start:%H%M}-"
    _add(
        "PUT of one window's sightings: 403",
        lambda world: harm.refused(
            "put 403", 403, PUT, sightings, (str(SECOND), layout.SIGHTINGS)
        ),
        Told(), window=SECOND, open="maybe", exits=frozenset({0, 1}),
    )  # fmt: skip
    for name, windows in {"first": (FIRST, SECOND), "last": (THIRD,)}.items():
        day = windows[0].start.date()
        for what, prefix in {"records": RECORDS(day), "segments": SEGMENTS(day)}.items():
            # Nobody can say of any call of the day whether it has a record, nor which windows of
            # it are closed.
            _add(
                f"LIST of the {name} day's {what}: 403",
                lambda world, prefix=prefix, windows=windows: harm.refused(
                    "list 403", 403, ("list",), prefix, (prefix, *map(str, windows))
                ),
                OPEN, calls=frozenset().union(*map(ids_of, windows)), window=windows[0],
                open="yes",
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

    def there(name: str, key: str, data: bytes, *codes: str, names: tuple[str, ...] = (),
              **options: Any) -> None:  # fmt: skip
        _add(
            name, lambda world: harm.foreign(key, data, name, *names),
            Told(verify=codes, log=options.pop("log", True), left=options.pop("left", None)),
            **options,
        )  # fmt: skip

    at_record = record_key("vc_b2")
    harmed: dict[str, Any] = {"names": ("vc_b2",), "calls": frozenset({"vc_b2"})}
    there(
        "foreign bytes at a listed call's record", at_record, bad, "record_unreadable",
        recorded=True, exits=frozenset({0, 1}), **harmed,
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
        # Nobody has a reason to read it.
        there(
            f"{name} at another call's record", unlisted, data, code,
            log=False, always_met=False, exits=frozenset({0, 1}),
        )  # fmt: skip
    for name, data, codes in (
        ("foreign bytes", bad, ()), ("a newer format", newer["segment"], ("newer_format",)),
    ):  # fmt: skip
        there(
            f"{name} at one window's segment", segment.jsonl, data, *codes,
            names=(str(SECOND),), window=SECOND, open="maybe", exits=frozenset({0, 1}),
            scars=frozenset({"revision_skipped", "window_revision"}),
        )  # fmt: skip
    there(
        "foreign bytes at one window's sha256", segment.sha256, bad,
        names=(str(SECOND),), window=SECOND, open="maybe", exits=frozenset({0, 1}),
        scars=frozenset({"companion_missing"}),
    )  # fmt: skip
    there(
        "foreign bytes at one window's pointer", segment.seal, bad,
        names=(str(SECOND),), window=SECOND, open="maybe", exits=frozenset({0, 1}),
    )  # fmt: skip
    there(
        "a newer format among the events", events, newer["event"],
        log=False, always_met=False, exits=frozenset({0, 1}),
    )  # fmt: skip
    there(
        "foreign bytes among the events", events, bad,
        log=False, always_met=False, exits=frozenset({0, 1}),
    )  # fmt: skip
    there(
        "foreign bytes among the sightings",
        layout.sighting_key(SECOND.start, "0123456789abcdef"), bad,
        names=(layout.SIGHTINGS, str(SECOND)), exits=frozenset({0, 1}), always_met=False,
        log=False,
    )  # fmt: skip
    there(
        "a foreign object in the manifest", "manifest/notes.txt", bad, "foreign_object",
        log=False, always_met=False, exits=frozenset({0, 1}),
    )  # fmt: skip
    there(
        "a foreign object among the segments", f"{SEGMENTS(SECOND.start.date())}notes.txt", bad,
        log=False, always_met=False, exits=frozenset({0, 1}),
    )  # fmt: skip


_listings()
_entries()
_documents()
_recordings()
_times()
_store()
_foreign()
