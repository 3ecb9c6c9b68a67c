"""What deploy/prometheus promises beyond what promtool checks there (`make alerts-check`)."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from archiver.manifest import record
from archiver.observability import metrics
from archiver.settings import Settings, documented, parse_duration

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
TEXT = (FOLDER / "alerts.yaml").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(TEXT)["groups"] for rule in group["rules"]
}
CLOSED_SETS = {"outcome": record.OUTCOMES, "code": record.FINDINGS, "job": ("archiver",)}
"""The values that a label of the alerts' may have."""
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def exported() -> dict[str, set[str]]:
    """The labels of each series that a scrape brings, by its name."""
    series = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            for suffix in SUFFIXES[family.type]:
                series[family.name + suffix] = set(metric._labelnames)
    return series


def limit(alert: str) -> timedelta:
    """What the alert's expression is compared with at its end."""
    match = re.search(r"> (\d+) \* (\d+)$", RULES[alert]["expr"])
    assert match, alert
    return timedelta(seconds=int(match[1]) * int(match[2]))


def held_for(alert: str) -> timedelta:
    length = parse_duration(RULES[alert]["for"])
    assert isinstance(length, timedelta)
    return length


def default(setting: str) -> Any:
    written = Settings.model_fields[setting].default
    return parse_duration(written) if isinstance(written, str) else written


@pytest.mark.parametrize("alert", RULES)
def test_each_metric_exists_with_the_labels_that_are_asked_for(alert):
    series = exported()
    selectors = re.findall(r"\b(archiver_\w+)(\{[^}]*\})?", RULES[alert]["expr"])
    assert selectors
    for name, braces in selectors:
        assert name in series
        asked = re.findall(r'(\w+)(?:=|!=)"([^"]*)"', braces)
        assert 'job="archiver"' in braces, "any other process would be taken for the loop"
        assert braces.count('"') == 2 * len(asked), "a matcher that this test cannot read"
        for label, value in asked:
            assert label in series[name] | {"job"}
            assert value in CLOSED_SETS[label]


@pytest.mark.parametrize("alert", RULES)
def test_each_alert_says_what_to_do_and_where_to_read_on(alert):
    told = RULES[alert]["annotations"]
    assert told.keys() == {"summary", "description", "runbook"}
    page, heading = told["runbook"].split(": ")
    assert page == "docs/operations.md"
    assert heading in re.findall(r"^##+ (.+)$", OPERATIONS, re.MULTILINE)
    assert RULES[alert]["labels"].keys() == {"severity"}


@pytest.mark.parametrize("alert", RULES)
def test_each_alert_is_tested_firing_and_not_firing(alert):
    file = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())
    looks = [look for test in file["tests"] for look in test["alert_rule_test"]]
    fires = [bool(look.get("exp_alerts")) for look in looks if look["alertname"] == alert]
    assert set(fires) == {True, False}


def test_the_page_lists_the_alerts_with_their_severity():
    rows = re.findall(r"^\| `(Archiver\w+)` \| (\w+) \|", OPERATIONS, re.MULTILINE)
    assert rows == [(alert, rule["labels"]["severity"]) for alert, rule in RULES.items()]


def test_the_page_scrapes_the_job_that_the_alerts_name():
    (snippet,) = re.findall(r"```yaml\n(rule_files:.*?)```", OPERATIONS, re.DOTALL)
    loaded = yaml.safe_load(snippet)
    assert [Path(name).name for name in loaded["rule_files"]] == ["alerts.yaml"]
    (job,) = loaded["scrape_configs"]
    assert job["job_name"] in CLOSED_SETS["job"]
    (target,) = job["static_configs"][0]["targets"]
    assert target.endswith(f":{default('metrics_port')}")


def test_the_file_names_the_default_settings_that_its_numbers_follow_from():
    defaults = {name.removeprefix("ARCHIVER_"): value for name, value, _ in documented()}
    for name in ("WINDOW", "SETTLE", "GIVE_UP", "POLL_INTERVAL", "RELIST"):
        assert re.search(rf"^#.* {name}={defaults[name]}( |$)", TEXT, re.MULTILINE), name


def test_the_numbers_fit_the_default_settings():
    """The rules of docs/operations.md, "Time to loss"."""
    good_day = default("window") + default("settle")
    assert good_day < limit("ArchiverOldestUnarchived") < limit("ArchiverOldestUnarchivedCritical")
    assert limit("ArchiverOldestUnarchivedCritical") == default("give_up") / 2
    assert held_for("ArchiverLoopStalledCritical") == limit("ArchiverOldestUnarchivedCritical")
    assert limit("ArchiverLoopStalled") == limit("ArchiverLoopStalledCritical")
    assert limit("ArchiverLoopStalled") > 5 * default("poll_interval")
    assert good_day < limit("ArchiverSealingBehind")
    assert held_for("ArchiverPendingPileUp") < good_day
