"""`archiver check`: tests everything that a run depends on, and says what follows from each result.

It writes to the bucket (`store/probe.py`), but only if everything else is in order.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from archiver.core.clock import SystemClock
from archiver.core.errors import SourceError, StoreError, UsageError
from archiver.settings import Settings
from archiver.store.probe import Capabilities, probe
from archiver.wiring import check_hosts, recordings, source, writer

MAX_SKEW_SECONDS = 60
"""Largest clock skew that passes. Beyond it, request signatures and lock dates are unreliable."""
MAX_PAUSE_SECONDS = 60
"""Somebody waits for the result of `check`, so a source that asks for a longer pause fails it."""


@dataclass(frozen=True)
class CheckLine:
    """One check: what was found, and what the archiver does about it. `exit_code` is 0 if it
    passes. `note` marks a passing check that a person should know about."""

    name: str
    detail: str
    action: str = ""
    exit_code: int = 0
    note: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def verdict(self) -> str:
        if not self.ok:
            return "FAIL"
        return "note" if self.note else "ok"

    def document(self) -> dict[str, str | int | bool]:
        """The form of `check --json`."""
        return {
            "action": self.action,
            "detail": self.detail,
            "exit_code": self.exit_code,
            "name": self.name,
            "ok": self.ok,
            "verdict": self.verdict.lower(),
        }


@dataclass(frozen=True)
class Wanted:
    """The settings that require something of the store."""

    lock_mode: str = "none"
    retention_days: int | None = None
    verify_writes: str = "auto"


def check(settings: Settings, clock: SystemClock) -> list[CheckLine]:
    """Run all checks. A source or store that cannot be reached gives one failed line. Raises
    `UsageError` if the signing key cannot be read."""
    key = settings.signing_key()
    lines = [
        CheckLine("settings", "complete"),
        CheckLine("signing key", f"Ed25519, key id {key.public.key_id}"),
    ]
    try:
        lines += _check_source(settings, clock)
    except (SourceError, UsageError) as error:
        lines.append(CheckLine("source", str(error), exit_code=error.exit_code))
    try:
        # The probe writes to the bucket, so it runs only if everything else is in order.
        lines += _check_store(settings, clock, try_out=all(line.ok for line in lines))
    except (StoreError, UsageError) as error:
        lines.append(CheckLine("store", str(error), exit_code=error.exit_code))
    return lines


def table(lines: Sequence[CheckLine]) -> Iterator[str]:
    """Yield the table for people: verdict, matter, what was found, what follows."""
    rows = [("", "matter", "found", "what follows")]
    rows += [(line.verdict, line.name, line.detail, line.action) for line in lines]
    # The detail of a failed line is a long sentence, and would push the last column off the screen.
    widths = [max(len(row[n]) for row in rows if row[0] != "FAIL") for n in range(3)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, (4, *widths[1:], 0), strict=True))
        yield "  ".join(cells).rstrip()


def _check_source(settings: Settings, clock: SystemClock) -> list[CheckLine]:
    api_client = source(settings, clock, longest_pause_seconds=MAX_PAUSE_SECONDS)
    with closing(api_client) as api, closing(recordings(settings, clock)) as blobs:
        check_hosts(api.check_access(), blobs)
        skew = api.latest_clock_skew_seconds()
    lines = [CheckLine("source", "reachable; scopes voice:read and audio:download")]
    if skew is not None:
        lines.append(_clock("clock", "the source's", skew, SourceError.exit_code))
    return lines


def _check_store(settings: Settings, clock: SystemClock, *, try_out: bool) -> list[CheckLine]:
    bucket = writer(settings, clock)
    bucket.check_access()
    if not try_out:
        return [CheckLine("bucket", f"{settings.s3_bucket} can be listed; not tried out further")]
    found = probe(bucket)
    wanted = Wanted(settings.object_lock_mode, settings.retention_days, settings.verify_writes)
    return [
        CheckLine("bucket", f"{settings.s3_bucket} can be listed and written"),
        *store_lines(found, wanted),
        endpoint_line(bucket.client.endpoint_url),
    ]


_UNKNOWN = "not known: we may not ask"
_OWN_KEYS = "recordings over 5 MiB get keys of their own"
_MULTIPART = {
    True: CheckLine("multipart", "an upload's end refuses a taken key", _OWN_KEYS),
    False: CheckLine("multipart", "an upload's end refuses no taken key", _OWN_KEYS, note=True),
}
_VERSIONING = {
    True: CheckLine("versioning", "on", "records name the version of each file"),
    False: CheckLine("versioning", "off", "what is overwritten or deleted is gone", note=True),
    None: CheckLine("versioning", _UNKNOWN, "s3:GetBucketVersioning would tell", note=True),
}
_MULTIPART_LOCK = {
    True: CheckLine("multipart lock", "kept from an upload's start", "looked at after each"),
    False: CheckLine(
        "multipart lock", "dropped at an upload's start", "set again after each upload", note=True
    ),
    None: CheckLine(
        "multipart lock", "not known: we may not list versions", "set again after each upload"
    ),
}
_LEGAL_HOLD = {
    True: CheckLine("legal hold", "can be set and taken off"),
    False: CheckLine("legal hold", "not kept, or not shown", "archiver hold fails", note=True),
    None: CheckLine(
        "legal hold",
        "not tried: we may set none on manifest/probe",
        "archiver hold looks at each hold that it sets",
    ),
}
"""The lines of capabilities by what the probe found; None is what it could not find out."""


def store_lines(found: Capabilities, wanted: Wanted) -> Iterator[CheckLine]:
    """Yield a line for each capability: what the probe found, and what the archiver does."""
    winners, racers = found.create_once_race_winners, found.create_once_racers
    if found.create_once:
        raced = f"of {racers} writers at once, {'one won' if winners else 'none overwrote'}"
        yield CheckLine("create-once", raced, "any number of writers may share the archive")
    else:
        raced = f"{winners} of {racers} writers won" if (winners or 0) > 1 else ""
        is_refused = found.conditional_writes is False
        yield CheckLine(
            "create-once",
            "the store refuses If-None-Match"
            if is_refused
            else f"not atomic: {raced or 'a taken key is overwritten'}",
            "several writers are refused; --single-writer accepts one process",
            StoreError.exit_code,
        )

    back = "every recording is read back and hashed"
    if found.checksums:
        proof = "the store's answer proves each write"
        action = back if wanted.verify_writes == "full" else proof
        yield CheckLine("checksums", "wrong ones are refused", action)
    else:
        if wanted.verify_writes == "head":
            back = "ARCHIVER_VERIFY_WRITES=head: damage on the way stays unseen; set auto"
        yield CheckLine("checksums", "wrong ones are taken", back, note=True)

    yield _MULTIPART[bool(found.complete_create_once)]
    yield _VERSIONING[found.versioning]

    if wanted.lock_mode == "none" and found.object_lock:
        action = "nothing is locked: ARCHIVER_OBJECT_LOCK_MODE is none"
        yield CheckLine("object lock", "the bucket has it", action, note=True)
    elif wanted.lock_mode == "none":
        lacks = "the bucket lacks it" if found.object_lock is False else _UNKNOWN
        yield CheckLine("object lock", lacks, "nothing is locked", note=True)
    elif found.lock_holds:
        days = f"everything is locked for {wanted.retention_days} days from its call's end"
        yield CheckLine("object lock", f"{wanted.lock_mode} holds: date, mode, version", days)
        yield _MULTIPART_LOCK[found.lock_at_multipart]
    else:
        yield CheckLine(
            "object lock",
            "locked versions can be changed or deleted",
            "nothing is archived while ARCHIVER_OBJECT_LOCK_MODE asks for locks",
            StoreError.exit_code,
        )

    if found.object_lock:
        yield _LEGAL_HOLD[found.legal_hold]
    if (skew := found.clock_skew_seconds) is not None:
        yield _clock("store clock", "the store's", skew, StoreError.exit_code)


def _clock(name: str, whose: str, skew_seconds: float, exit_code: int) -> CheckLine:
    direction = "ahead of" if skew_seconds > 0 else "behind"
    detail = f"{whose} is {abs(skew_seconds):.0f} s {direction} ours"
    if abs(skew_seconds) <= MAX_SKEW_SECONDS:
        return CheckLine(name, detail)
    action = "signatures and lock dates would be wrong: set the clocks (NTP)"
    return CheckLine(name, detail, action, exit_code)


def endpoint_line(endpoint: str) -> CheckLine:
    """Check whether requests to the store are encrypted, or stay on this machine."""
    url = urlsplit(endpoint)
    if url.scheme == "https":
        return CheckLine("tls", "on")
    try:
        is_loopback = ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        is_loopback = url.hostname == "localhost"
    if is_loopback:
        return CheckLine("tls", "off, to this very machine")
    action = "whoever is on the way can read the recordings"
    return CheckLine("tls", "off, to another machine", action, note=True)
