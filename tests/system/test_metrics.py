"""Done when 8: a scrape taken while a backfill works passes `promtool`; no label holds an id."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from tests.system.command import clean_environment
from tests.system.conftest import MakeArchive
from tests.system.servers import Source, free_port

DATES = ("--from", "2024-05-01", "--to", "2024-05-02")

# Every metric, its type and its labels; people build dashboards and alerts on them.
METRICS = {
    "archiver_calls_total": ("counter", {"outcome"}),
    "archiver_bytes_total": ("counter", {"kind"}),
    "archiver_stage_seconds": ("histogram", {"stage"}),
    "archiver_retries_total": ("counter", {"stage", "reason"}),
    "archiver_sas_renewals_total": ("counter", set()),
    "archiver_clock_skew_seconds": ("gauge", {"of"}),
    "archiver_unreadable_entries_total": ("counter", set()),
    "archiver_source_pause_seconds": ("gauge", set()),
    "archiver_in_flight": ("gauge", set()),
    "archiver_pending_calls": ("gauge", set()),
    "archiver_oldest_unarchived_seconds": ("gauge", set()),
    "archiver_watermark_timestamp_seconds": ("gauge", set()),
    "archiver_last_round_timestamp_seconds": ("gauge", set()),
    "archiver_last_seal_timestamp_seconds": ("gauge", set()),
    "archiver_seal_sequence": ("gauge", set()),
    "archiver_findings_total": ("counter", {"code"}),
    "archiver_build_info": ("gauge", {"version"}),
}
STAGES = {"list", "call", "epa", "sas", "transfer", "verify", "record", "seal"}
OUTCOMES = {"archived", "no_recording", "failed"}
KINDS = {"recording", "transcript", "epa"}

_SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="[^"]*",?)*)\})? (\S+)')
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    directory = tmp_path_factory.mktemp("metrics")
    with Source(directory, "--calls", "60", *DATES) as running:
        yield running


@pytest.fixture(scope="module")
def scrape(source: Source, make_archive: MakeArchive) -> str:
    """What `/metrics` says in the midst of a backfill."""
    archiver, _ = make_archive(source.settings())
    port = free_port()
    running = archiver.having(METRICS_PORT=str(port)).start("backfill", *DATES)
    running.wait_for(30, "call.archived")
    text = read(f"http://127.0.0.1:{port}/metrics")
    assert not running.ended, "it was done before the scrape"
    assert read(f"http://127.0.0.1:{port}/healthz") == "ok\n"
    running.wait().expect(0)
    return text


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def samples(scrape: str) -> list[tuple[str, dict[str, str], float]]:
    found = []
    for line in scrape.splitlines():
        if line and not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match, line
            found.append((match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


def test_promtool_is_content(scrape: str) -> None:
    promtool = shutil.which("promtool", path=clean_environment()["PATH"])
    if promtool is None:
        pytest.skip("promtool is missing: run `make system-setup`")
    told = subprocess.run(
        [promtool, "check", "metrics"], input=scrape, capture_output=True, text=True
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_names_types_and_labels_are_those_of_the_contract(scrape: str) -> None:
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", scrape, re.MULTILINE))
    assert types == {name: kind for name, (kind, _) in METRICS.items()}
    assert {name for name, _ in re.findall(r"^# HELP (\w+) (.+)$", scrape, re.MULTILINE)} == set(
        METRICS
    )
    for name, labels, _ in samples(scrape):
        base = re.sub(r"_(bucket|sum|count)$", "", name) if name not in METRICS else name
        allowed = METRICS[base][1] | ({"le"} if name.endswith("_bucket") else set())
        assert labels.keys() <= allowed, name


def test_labels_come_from_closed_sets(scrape: str, source: Source) -> None:
    values: dict[str, set[str]] = {}
    for name, labels, _ in samples(scrape):
        for label, value in labels.items():
            if label != "le" and name != "archiver_build_info":
                values.setdefault(label, set()).add(value)
    assert values["stage"] <= STAGES | {"store"}
    assert values["outcome"] <= OUTCOMES
    assert values["kind"] <= KINDS
    told = set().union(*values.values())
    hosts = {source.addresses["blob_host"], source.addresses["api_url"]}
    assert not told & (source.truth.keys() | hosts)
    assert all(re.fullmatch(r"[a-z0-9_]{1,32}", value) for value in told)
    for call_id in source.truth:
        assert call_id not in scrape


def test_the_scrape_tells_of_the_work(scrape: str) -> None:
    counts = {(name, labels.get("outcome")): value for name, labels, value in samples(scrape)}
    assert counts["archiver_calls_total", "archived"] >= 25
    assert counts["archiver_in_flight", None] >= 1
    stages = {
        labels["stage"]
        for name, labels, value in samples(scrape)
        if name == "archiver_stage_seconds_count" and value > 0
    }
    assert stages == STAGES
