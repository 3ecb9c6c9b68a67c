"""Metrics: the frozen names, help texts, labels; and the server that shows them."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.contextvars import bound_contextvars, get_contextvars

from archiver.core.errors import SourceError, UsageError
from archiver.observability import metrics
from archiver.observability.server import Telemetry

FROZEN = {
    "archiver_calls": ["outcome"],
    "archiver_bytes": ["kind"],
    "archiver_stage_seconds": ["stage"],
    "archiver_retries": ["stage", "reason"],
    "archiver_sas_renewals": [],
    "archiver_unreadable_entries": [],
    "archiver_in_flight": [],
    "archiver_pending_calls": [],
    "archiver_oldest_unarchived_seconds": [],
    "archiver_watermark_timestamp_seconds": [],
    "archiver_last_round_timestamp_seconds": [],
    "archiver_last_seal_timestamp_seconds": [],
    "archiver_seal_sequence": [],
    "archiver_findings": ["code"],
    "archiver_build_info": ["version"],
}
ADDED = {
    "archiver_clock_skew_seconds": ["of"],
    "archiver_source_pause_seconds": [],
}
"""What came later: an addition harms no reader."""


def test_the_names_and_labels_are_those_of_the_contract():
    families = {family.name: family for family in metrics.REGISTRY.collect()}
    assert families.keys() == FROZEN.keys() | ADDED.keys()
    assert list(metrics.CLOCK_SKEW._labelnames) == ADDED["archiver_clock_skew_seconds"]
    for collector in (metrics.CALLS, metrics.BYTES, metrics.STAGE_SECONDS, metrics.RETRIES):
        assert list(collector._labelnames) == FROZEN[collector._name]
    assert all(family.documentation for family in families.values())


def test_a_stage_is_timed_also_when_it_fails():
    def count() -> float:
        name, labels = "archiver_stage_seconds_count", {"stage": "epa"}
        return metrics.REGISTRY.get_sample_value(name, labels) or 0

    before = count()
    with metrics.stage("epa"):
        pass
    with pytest.raises(ValueError, match="x"), metrics.stage("epa"):
        raise ValueError("x")
    assert count() == before + 2


def test_a_stage_is_named_as_long_as_it_lasts():
    def transfer() -> None:
        with metrics.stage("transfer"):
            with metrics.stage("sas"):
                assert get_contextvars() == {"call_id": "vc_1", "stage": "sas"}
            assert get_contextvars() == {"call_id": "vc_1", "stage": "transfer"}
            with metrics.stage("verify"):
                raise SourceError("the innermost stage is told of")

    with bound_contextvars(call_id="vc_1"):
        with pytest.raises(SourceError) as caught:
            transfer()
        assert caught.value.stage == "verify"
        assert get_contextvars() == {"call_id": "vc_1"}


def get(port: int, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_the_server_shows_metrics_and_health():
    state = {"alive": True, "ready": False}
    telemetry = Telemetry(0, lambda: state["alive"], lambda: state["ready"])
    try:
        status, kind, body = get(telemetry.port, "/metrics?x=1")
        assert status == 200
        assert kind.startswith("text/plain")
        shown = {family.name for family in text_string_to_metric_families(body.decode())}
        shown = {name for name in shown if not name.endswith("_created")}
        assert shown == FROZEN.keys() | ADDED.keys()
        assert get(telemetry.port, "/healthz")[0] == 200
        assert get(telemetry.port, "/readyz")[0] == 503
        state.update(alive=False, ready=True)
        assert get(telemetry.port, "/healthz")[0] == 503
        assert get(telemetry.port, "/readyz")[0] == 200
        assert get(telemetry.port, "/secrets")[0] == 404
    finally:
        telemetry.close()


def test_a_taken_port_is_a_usage_error_that_names_the_setting():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="ARCHIVER_METRICS_PORT"):
            Telemetry(port, lambda: True, lambda: True)
