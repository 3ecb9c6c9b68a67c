"""Metric labels come from closed sets, whatever the source and the store do."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest

from archiver.core.errors import ArchiverError
from archiver.manifest.record import FILE_KINDS, FINDINGS, OUTCOMES
from archiver.observability.metrics import REGISTRY, STAGES
from archiver.store.bucket import Bucket
from tests.fakes.calls import APART
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import PHONE, TEN, a_call
from tests.fakes.rig import new_key, wired

REASONS = {
    "unreachable", "throttled", "status_5xx", "status", "too_slow", "truncated", "odd",
    "conflict", "digest_mismatch", "source_unavailable", "url_refused", "bad_response", "error",
    "broken_off", "damaged", "recording_changed", "bad_document",
}  # fmt: skip
ALLOWED = {
    "of": {"source", "store"},
    "outcome": set(OUTCOMES),
    "kind": set(FILE_KINDS),
    "stage": {*STAGES, "store"},
    "reason": REASONS,
    "code": set(FINDINGS),
}
HARMS = [
    Reply(500, {}, PHONE.encode()),
    Reply(429, {"Retry-After": "1"}, b"{}"),
    Reply(418, {}, b"teapot"),
    Reply(200, {}, b"[]", close_after=-1),
    Reply(403, {}, b"<Error><Code>" + PHONE.encode() + b"</Code></Error>"),
    Reply(200, {"Content-Encoding": PHONE}, b"x"),
]


@pytest.mark.parametrize("harm", HARMS)
def test_labels_come_from_closed_sets(
    open_bucket: Callable[..., Bucket], clock: HandClock, harm: Reply
) -> None:
    clock.turn_to(TEN + timedelta(days=9))
    call = a_call("../" + PHONE, durationSeconds=99, state="Completed", direction=PHONE)
    messages: list[str] = []
    with Platform([call, a_call("plain")], clock=clock.now) as platform:
        platform.hooks.append(
            lambda r: harm if r.server == "blob" and PHONE[1:] in r.path else None
        )
        platform.hooks.append(_odd_document)
        with wired(platform, open_bucket(), clock, new_key()) as rig:
            try:
                rig.backfill()
            except ArchiverError as error:
                messages.append(str(error))
    assert PHONE not in "".join(messages)
    for family in REGISTRY.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label not in ("le", "version"):
                    assert value in ALLOWED[label], (family.name, label)


def _odd_document(request: Request) -> Reply | None:
    if request.path.endswith(tuple(APART.values())):
        return Reply(200, {}, json.dumps({"state": PHONE, PHONE: PHONE}).encode())
    return None
