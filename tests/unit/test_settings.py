"""Settings: every bad value is one line that names the variable."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from archiver.core.errors import UsageError
from archiver.manifest.signing import SigningKey
from archiver.settings import Settings, StoreSettings, documented, load, parse_duration, parse_size

GOOD = {
    "API_BASE_URL": "https://api.example.com/api/v1",
    "API_TOKEN": "token-of-a-test",
    "RECORDING_HOSTS": "recordings.example.com",
    "S3_BUCKET": "bucket",
    "SIGNING_KEY_FILE": "/nowhere/key.pem",
}


def loaded(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> Settings:
    for name, value in {**GOOD, **changes}.items():
        if value is not None:
            monkeypatch.setenv(f"ARCHIVER_{name}", value)
    return load(Settings)


def test_the_defaults_are_those_of_the_contract(monkeypatch):
    found = loaded(monkeypatch)
    assert found.states == ("Completed",)
    assert (found.workers, found.metrics_port) == (8, 9464)
    assert (found.window, found.settle) == (timedelta(hours=1), timedelta(hours=2))
    assert found.relist == (timedelta(days=1), timedelta(days=7))
    assert (found.poll_interval, found.give_up) == (timedelta(seconds=60), timedelta(days=1))
    assert (found.object_lock_mode, found.verify_writes) == ("none", "auto")
    assert (found.max_recording_bytes, found.min_rate) == (2 << 30, 16 << 10)
    assert (found.log_level, found.log_format, found.allow_http) == ("info", "json", False)


BAD = {
    "API_BASE_URL": [
        None,
        "api.example.com",
        "ftp://api.example.com",
        "http://api.example.com/api/v1",
        "https://",
        "https://[::1/api",
        "https://api.example.com:99999/api",
        "https://user@api.example.com/api",
        "https://api.example.com/api?x=1",
    ],
    "API_TOKEN": [None, "tök", "two\nlines"],
    "RECORDING_HOSTS": [
        None,
        " , ",
        "*.example.com",
        "https://recordings.example.com",
        "recordings.example.com/path",
    ],
    "S3_BUCKET": [None],
    "S3_ENDPOINT_URL": ["s3.example.com", "http://[::1"],
    "SIGNING_KEY_FILE": [None],
    "STATES": [","],
    "WORKERS": ["0", "many", "257"],
    "WINDOW": ["30s", "7h", "90s", "2d", "0m", "hour"],
    "SETTLE": ["2", "-1h", "999999999d"],
    "GIVE_UP": ["999999999d"],
    "RELIST": ["1d,soon"],
    "POLL_INTERVAL": ["0s"],
    "START": ["yesterday"],
    "OBJECT_LOCK_MODE": ["compliance"],
    "RETENTION_DAYS": ["0"],
    "SSE": ["rot13"],
    "VERIFY_WRITES": ["no"],
    "MAX_RECORDING_BYTES": ["0", "2 GB"],
    "API_RATE": ["0", "nan"],
    "MIN_RATE": ["fast"],
    "METRICS_PORT": ["65536"],
    "LOG_LEVEL": ["loud"],
    "LOG_FORMAT": ["xml"],
    "ALLOW_HTTP": ["perhaps"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_value_is_one_line_that_names_the_variable(monkeypatch, name, value):
    with pytest.raises(UsageError) as caught:
        loaded(monkeypatch, **{name: value})
    message = str(caught.value)
    assert f"ARCHIVER_{name}" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_all_that_is_wrong_is_told_at_once(monkeypatch):
    with pytest.raises(UsageError) as caught:
        loaded(monkeypatch, S3_BUCKET=None, SIGNING_KEY_FILE=None, WORKERS="many", WINDOW="7x")
    for name in ("S3_BUCKET", "SIGNING_KEY_FILE", "WORKERS", "WINDOW"):
        assert f"ARCHIVER_{name}" in str(caught.value)


def test_a_lock_needs_its_days(monkeypatch):
    with pytest.raises(UsageError, match="ARCHIVER_RETENTION_DAYS"):
        loaded(monkeypatch, OBJECT_LOCK_MODE="COMPLIANCE")


@pytest.mark.parametrize(
    "changes",
    [
        {"API_TOKEN": None, "API_KEY": "ak_live_x"},
        {"API_TOKEN": None, "API_HMAC_SECRET": "x"},
        {"API_KEY": "ak_live_x", "API_HMAC_SECRET": "x"},
        {"API_HMAC_SECRET": "x"},
        {"API_TOKEN_FILE": "/tmp/token"},
    ],
)
def test_exactly_one_way_to_authenticate(monkeypatch, changes):
    with pytest.raises(UsageError, match="ARCHIVER_API_TOKEN"):
        loaded(monkeypatch, **changes)


def test_no_complaint_shows_a_secret(monkeypatch):
    with pytest.raises(UsageError) as caught:
        loaded(
            monkeypatch, API_TOKEN="hush-hush", API_KEY="ak_live_hush", API_BASE_URL="ftp://hush"
        )
    assert "hush" not in str(caught.value)


def test_no_repr_shows_a_secret(monkeypatch):
    assert "token-of-a-test" not in repr(loaded(monkeypatch))


def test_a_reader_needs_only_the_bucket(monkeypatch):
    monkeypatch.setenv("ARCHIVER_S3_BUCKET", "bucket")
    assert load(StoreSettings).s3_bucket == "bucket"
    with pytest.raises(UsageError, match="ARCHIVER_API_BASE_URL"):
        load(Settings)


def test_an_empty_variable_is_none(monkeypatch):
    found = loaded(monkeypatch, CAMPAIGN_ID="", S3_PREFIX="", WORKERS="")
    assert (found.campaign_id, found.s3_prefix, found.workers) == (None, "", 8)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604800)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("512B", 512), ("16KiB/s", 16384), ("64 MiB", 64 << 20), ("2GiB", 2 << 30)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("value", ["", "1.5h", "1w", "h", "1 h", "１h h"])
def test_what_is_no_duration(value):
    with pytest.raises(ValueError, match="takes a length"):
        parse_duration(value)


def test_start_may_say_its_zone(monkeypatch):
    found = loaded(monkeypatch, START="2024-01-15T10:00:00+02:00")
    assert found.start is not None
    assert found.start.isoformat() == "2024-01-15T08:00:00+00:00"


# --- key files and secret files


def test_a_signing_key_that_cannot_be_used_says_so(monkeypatch, tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("no key")
    for path in (tmp_path / "missing.pem", bad, tmp_path):
        with pytest.raises(UsageError, match="ARCHIVER_SIGNING_KEY_FILE") as caught:
            loaded(monkeypatch, SIGNING_KEY_FILE=str(path)).signing_key()
        assert "archiver keygen" in str(caught.value)
    good = tmp_path / "good.pem"
    good.write_bytes(SigningKey.generate().pem)
    assert loaded(monkeypatch, SIGNING_KEY_FILE=str(good)).signing_key().public.key_id


def test_a_secret_comes_from_the_variable_or_its_file(monkeypatch, tmp_path):
    assert loaded(monkeypatch).secret("api_token")() == "token-of-a-test"
    file = tmp_path / "token"
    file.write_text("  from-a-file\n")
    monkeypatch.delenv("ARCHIVER_API_TOKEN")
    found = loaded(monkeypatch, API_TOKEN=None, API_TOKEN_FILE=str(file))
    assert found.secret("api_token")() == "from-a-file"


# --- the documentation


CONTRACT = """
    API_BASE_URL API_TOKEN API_KEY API_HMAC_SECRET RECORDING_HOSTS ALLOW_HTTP STATES CAMPAIGN_ID
    DIRECTION S3_BUCKET S3_PREFIX S3_ENDPOINT_URL S3_REGION SIGNING_KEY_FILE WORKERS WINDOW SETTLE
    RELIST POLL_INTERVAL START GIVE_UP OBJECT_LOCK_MODE RETENTION_DAYS SSE SSE_KMS_KEY_ID
    STORAGE_CLASS VERIFY_WRITES MAX_RECORDING_BYTES API_RATE TSA_URL MIN_RATE METRICS_PORT
    LOG_LEVEL LOG_FORMAT HTTP_TRANSPORT
"""


def test_the_documentation_has_every_setting_of_the_contract():
    assert {f"ARCHIVER_{name}" for name in CONTRACT.split()} <= {row[0] for row in documented()}
    assert all(description for _, _, description in documented())


def test_a_documented_default_reads_back_as_the_default(monkeypatch):
    plain: Any = loaded(monkeypatch)
    for name, value, _ in documented():
        if value and value != "required":
            monkeypatch.setenv(name, value)
    assert load(Settings) == plain
