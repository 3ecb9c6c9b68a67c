"""`archiver check`: every matter that a run stands on, tried out, with what the archiver does about
it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from archiver.core.clock import SystemClock
from archiver.core.errors import SourceError, StoreError, UsageError
from archiver.settings import Settings
from archiver.store.probe import Capabilities, probe
from archiver.wiring import check_hosts, recordings, source, writer

MAX_SKEW_SECONDS = 60
"""A clock further off than this makes signatures and retention dates wrong."""


@dataclass(frozen=True)
class CheckLine:
    """One matter: what was found, and what the archiver does about it. `exit_code` is 0 where it
    holds; `note` where somebody should know of it all the same."""

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
        """As `check --json` has it."""
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
    """What the settings ask of the store."""

    lock_mode: str = "none"
    retention_days: int | None = None
    verify_writes: str = "auto"


def check(settings: Settings, clock: SystemClock) -> list[CheckLine]:
    """The preflight, line by line; a part that cannot be reached is one failed line."""
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
        # The store is tried out by writing: not before all else holds.
        lines += _check_store(settings, clock, try_out=all(line.ok for line in lines))
    except StoreError as error:
        lines.append(CheckLine("store", str(error), exit_code=error.exit_code))
    return lines


def table(lines: Sequence[CheckLine]) -> Iterator[str]:
    """For people: verdict, matter, what was found, what follows."""
    rows = [("", "matter", "found", "what follows")]
    rows += [(line.verdict, line.name, line.detail, line.action) for line in lines]
    # A refusal is a long sentence: it would push the last column off the screen.
    widths = [max(len(row[n]) for row in rows if row[0] != "FAIL") for n in range(3)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, (4, *widths[1:], 0), strict=True))
        yield "  ".join(cells).rstrip()


def _check_source(settings: Settings, clock: SystemClock) -> list[CheckLine]:
    api, blobs = source(settings, clock), recordings(settings, clock)
    try:
        check_hosts(api.check_access(), blobs)
        skew = api.latest_clock_skew_seconds()
    finally:
        api.close()
        blobs.close()
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


def store_lines(found: Capabilities, wanted: Wanted) -> list[CheckLine]:
    """What the store proved, and what follows."""
    lines = [
        _create_once(found),
        _checksums(found, wanted.verify_writes),
        _multipart(found),
        _versioning(found),
        *_object_lock(found, wanted),
    ]
    if found.clock_skew_seconds is not None:
        skew = found.clock_skew_seconds
        lines.append(_clock("store clock", "the store's", skew, StoreError.exit_code))
    return lines


def _create_once(found: Capabilities) -> CheckLine:
    winners, racers = found.create_once_race_winners, found.create_once_racers
    if found.create_once:
        detail = f"of {racers} writers at once, {'one won' if winners else 'none overwrote'}"
        return CheckLine("create-once", detail, "any number of writers may share the archive")
    raced = winners is not None and winners > 1
    why = f"{winners} of {racers} writers won" if raced else "a taken key is overwritten"
    action = "several writers are refused; --single-writer accepts one process"
    return CheckLine("create-once", f"not atomic: {why}", action, StoreError.exit_code)


def _checksums(found: Capabilities, verify_writes: str) -> CheckLine:
    back = "every recording is read back and hashed"
    if found.checksums:
        action = back if verify_writes == "full" else "the store's answer proves each write"
        return CheckLine("checksums", "wrong ones are refused", action)
    if verify_writes == "head":
        back = "ARCHIVER_VERIFY_WRITES=head: damage on the way stays unseen; set auto"
    return CheckLine("checksums", "wrong ones are taken", back, note=True)


def _multipart(found: Capabilities) -> CheckLine:
    action = "recordings over 5 MiB get keys of their own"
    if found.complete_create_once:
        return CheckLine("multipart", "an upload's end refuses a taken key", action)
    return CheckLine("multipart", "an upload's end overwrites a taken key", action, note=True)


def _versioning(found: Capabilities) -> CheckLine:
    if found.versioning:
        return CheckLine("versioning", "on", "records name the version of each file")
    if found.versioning is None:
        action = "s3:GetBucketVersioning would tell"
        return CheckLine("versioning", "not known: we may not ask", action, note=True)
    return CheckLine("versioning", "off", "what is overwritten or deleted is gone", note=True)


def _object_lock(found: Capabilities, wanted: Wanted) -> list[CheckLine]:
    if wanted.lock_mode != "none":
        lines = [_lock(found, wanted)]
        if found.lock_holds:
            lines.append(_lock_at_multipart(found))
    elif found.object_lock:
        action = "nothing is locked: ARCHIVER_OBJECT_LOCK_MODE is none"
        lines = [CheckLine("object lock", "the bucket has it", action, note=True)]
    else:
        unknown = "not known: we may not ask"
        detail = "the bucket lacks it" if found.object_lock is False else unknown
        lines = [CheckLine("object lock", detail, "nothing is locked", note=True)]
    return [*lines, *_legal_hold(found)]


def _lock(found: Capabilities, wanted: Wanted) -> CheckLine:
    if found.lock_holds:
        detail = f"{wanted.lock_mode} holds: date, mode, version"
        action = f"everything is locked for {wanted.retention_days} days from its call's end"
        return CheckLine("object lock", detail, action)
    detail = "locked versions can be changed or deleted"
    action = "nothing is archived while ARCHIVER_OBJECT_LOCK_MODE asks for locks"
    return CheckLine("object lock", detail, action, StoreError.exit_code)


def _lock_at_multipart(found: Capabilities) -> CheckLine:
    if found.lock_at_multipart:
        return CheckLine("multipart lock", "kept from an upload's start", "looked at after each")
    unknown = found.lock_at_multipart is None
    detail = "not known: we may not list versions" if unknown else "dropped at an upload's start"
    return CheckLine("multipart lock", detail, "set again after each upload", note=not unknown)


def _legal_hold(found: Capabilities) -> list[CheckLine]:
    if not found.object_lock:
        return []
    if found.legal_hold:
        return [CheckLine("legal hold", "can be set and taken off")]
    if found.legal_hold is None:
        action = "archiver hold looks at each hold that it sets"
        return [CheckLine("legal hold", "not tried: we may set none on manifest/probe", action)]
    return [CheckLine("legal hold", "not kept, or not shown", "archiver hold fails", note=True)]


def _clock(name: str, whose: str, skew_seconds: float, exit_code: int) -> CheckLine:
    told = (
        f"{whose} is {abs(skew_seconds):.0f} s {'ahead of' if skew_seconds > 0 else 'behind'} ours"
    )
    if abs(skew_seconds) <= MAX_SKEW_SECONDS:
        return CheckLine(name, told)
    action = "signatures and lock dates would be wrong: set the clocks (NTP)"
    return CheckLine(name, told, action, exit_code)


def endpoint_line(endpoint: str) -> CheckLine:
    """Whether what is sent to the store can be read on the way."""
    url = urlsplit(endpoint)
    if url.scheme == "https":
        return CheckLine("tls", "on")
    if _is_loopback(url.hostname or ""):
        return CheckLine("tls", "off, to this very machine")
    action = "whoever is on the way can read the recordings"
    return CheckLine("tls", "off, to another machine", action, note=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
