"""The verbs that write: what they do, what they print, how they end."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from archiver.manifest.signing import SigningKey
from tests.fakes.command import Command
from tests.fakes.platform import Platform
from tests.fakes.population import PHONE, SECRET_WORDS, TEN, a_call, call_of
from tests.fakes.rig import Archive
from tests.system.servers import free_port

VERBS = {
    "backfill", "check", "demo", "hold", "init", "keygen", "manifest", "reconcile", "run", "verify"
}  # fmt: skip
Look = Callable[[], Archive]
Versions = Callable[[], list[tuple[str, str | None]]]


# --- keygen, init, check


def test_keygen_makes_a_key_that_openssl_reads(command: Command) -> None:
    done = command.run("keygen", "--out", "new.pem")
    file = command.directory / "new.pem"
    assert done.code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = SigningKey.from_pem(file.read_bytes())
    assert done.out.encode() == made.public.pem
    assert made.public.key_id in done.err
    assert "PRIVATE" not in done.out + done.err
    told = subprocess.run(
        ["openssl", "pkey", "-in", str(file), "-pubout"], capture_output=True, check=True
    )
    assert told.stdout == made.public.pem


def test_keygen_never_overwrites(command: Command) -> None:
    (command.directory / "old.pem").write_text("precious")
    done = command.run("keygen", "--out", "old.pem").expect(2)
    assert "old.pem" in done.complaint
    assert (command.directory / "old.pem").read_text() == "precious"
    command.run("keygen", "--out", "no/such/dir/key.pem").expect(2)


def test_init_begins_an_archive_once(command: Command, archive: Look, key: SigningKey) -> None:
    first, again = command.run("init"), command.run("init")
    assert (first.code, again.code) == (0, 0)
    assert "begun" in first.out
    assert "there already" in again.out
    look = archive()
    look.check(key)
    assert len(look.seals) == 1
    for name in ("VERIFY.md", "verify.sh", f"{key.public.key_id}.pem"):
        assert f"manifest/keys/{name}" in look.keys


def test_check_tells_what_holds(command: Command) -> None:
    done = command.run("check").expect()
    assert "FAIL" not in done.out
    lines = json.loads(command.run("check", "--json").out)
    assert all(line["ok"] for line in lines)
    assert {"settings", "source", "bucket", "create-once"} <= {line["name"] for line in lines}
    for line in lines:
        assert line.keys() == {"action", "detail", "exit_code", "name", "ok", "verdict"}
        assert line["verdict"] in ("ok", "note")


@pytest.mark.parametrize(
    ("changes", "code", "name"),
    [
        ({"ARCHIVER_API_TOKEN": "wrong"}, 3, "source"),
        ({"ARCHIVER_S3_BUCKET": "nowhere"}, 4, "store"),
    ],
)
def test_check_tells_what_does_not(
    command: Command, archive: Look, changes: dict[str, str], code: int, name: str
) -> None:
    done = command.run("check", **changes).expect(code)
    [line] = [line for line in done.out.splitlines() if line.startswith("FAIL")]
    assert name in line
    assert archive().keys == []


def test_help_names_every_verb(command: Command) -> None:
    done = Command(command.directory).fresh("--help").expect()
    listed = done.out.split("Commands:\n")[1]
    assert {line.split()[0] for line in listed.splitlines() if re.match(r"  \w", line)} == VERBS
    assert Command(command.directory).run("--version").out.startswith("archiver")


# --- backfill


def test_a_backfill_and_the_same_again(
    command: Command, hour: list[str], archive: Look, versions: Versions, key: SigningKey
) -> None:
    done = command.fresh("backfill", *hour).expect()
    assert "3 archived" in done.out
    look = archive()
    look.check(key)
    assert look.records.keys() == {"vc_1", "vc_2", "vc_3"}
    before = versions()
    command.run("backfill", *hour).expect()
    assert versions() == before


def test_logs_are_json_lines_without_secrets(
    command: Command, platform: Platform, hour: list[str], weed: object
) -> None:
    platform.add(a_call("none", audio=None), a_call("bad"))
    call_of(platform, "bad").blob_missing = True
    done = command.run("backfill", *hour, ARCHIVER_LOG_LEVEL="debug")
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert any(line.get("call_id") == "vc_1" for line in lines)
    secrets = [SECRET_WORDS, PHONE, platform.token, "sig=", "PRIVATE KEY"]
    secrets += [command.environment["AWS_SECRET_ACCESS_KEY"]]
    for secret in secrets:
        assert secret not in done.err + done.out


def test_dry_run_writes_nothing(
    command: Command, hour: list[str], archive: Look, versions: Versions
) -> None:
    done = command.run("backfill", *hour, "--dry-run").expect()
    assert done.out.splitlines()[1].split() == ["2024-01-15", "1", "3", "3"]
    assert archive().keys == []
    command.run("backfill", *hour)
    before = versions()
    after = command.run("backfill", *hour, "--dry-run")
    assert after.out.splitlines()[-1].split() == ["total", "1", "3", "0"]
    assert versions() == before


def test_the_shard_comes_from_the_environment(
    command: Command, platform: Platform, archive: Look, key: SigningKey
) -> None:
    platform.add(*[a_call(f"h{n}", TEN + timedelta(hours=n)) for n in range(1, 4)])
    span = ["--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T14:00:00Z"]
    command.run("backfill", *span, JOB_COMPLETION_INDEX="0", ARCHIVER_SHARDS="2").expect()
    assert len(archive().segments) == 2
    command.run("backfill", *span, "--shard", "1/2").expect()
    look = archive()
    look.check(key)
    assert len(look.segments) == 4
    assert len(look.records) == 6


def test_a_backfill_goes_on_without_its_metrics(command: Command, hour: list[str]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command.run("backfill", *hour, ARCHIVER_METRICS_PORT=port).expect()
    lines = [json.loads(line) for line in done.err.splitlines()]
    [warning] = [line for line in lines if line["event"] == "metrics.unavailable"]
    assert warning["level"] == "warning"
    assert "ARCHIVER_METRICS_PORT" in str(warning)


def test_an_open_window_is_archived_and_left_open(
    command: Command, platform: Platform, archive: Look
) -> None:
    now = datetime.now(UTC)
    platform.add(a_call("fresh", now - timedelta(minutes=1)))
    start = (now - timedelta(minutes=2)).isoformat()
    done = command.run("backfill", "--from", start, "--to", now.isoformat()).expect()
    assert "ARCHIVER_SETTLE" in done.out
    assert "fresh" in archive().records
    assert archive().segments == {}


@pytest.mark.parametrize("kind", ["token", "key"])
def test_secrets_from_files(
    command: Command, platform: Platform, hour: list[str], kind: str
) -> None:
    files = {
        "API_TOKEN": platform.token,
        "API_KEY": platform.api_key,
        "API_HMAC_SECRET": platform.api_secret,
    }
    names = ["API_TOKEN"] if kind == "token" else ["API_KEY", "API_HMAC_SECRET"]
    changes: dict[str, str | None] = {"ARCHIVER_API_TOKEN": None}
    for name in names:
        file = command.directory / name
        file.write_text(files[name] + "\n")
        changes[f"ARCHIVER_{name}_FILE"] = str(file)
    done = command.run("backfill", *hour, **changes).expect()
    assert "3 archived" in done.out


# --- run


def recent(platform: Platform) -> str:
    """Move the calls to six hours ago; returns the START of their window."""
    at = datetime.now(UTC).replace(minute=5, second=0, microsecond=0) - timedelta(hours=6)
    for call in platform.calls:
        platform.remove(call.id)
    platform.add(*[a_call(f"r{n}", at) for n in range(3)])
    return at.isoformat()


def test_run_once_does_one_round(
    command: Command, platform: Platform, archive: Look, key: SigningKey
) -> None:
    start = recent(platform)
    done = command.run("run", "--once", ARCHIVER_START=start).expect()
    assert "3 archived" in done.out
    look = archive()
    look.check(key)
    assert look.seals[-1].watermark > look.seals[0].watermark
    assert len(look.segments) >= 3
    again = command.run("run", "--once").expect()
    assert "0 archived" in again.out


def test_run_once_with_pending_calls_needs_a_person(
    command: Command, platform: Platform, archive: Look
) -> None:
    start = recent(platform)
    call_of(platform, "r1").blob_missing = True
    done = command.run("run", "--once", ARCHIVER_START=start).expect(1)
    assert "1 pending" in done.out
    assert archive().line(datetime.fromisoformat(start))["pending"] == ["r1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_cleanly(
    command: Command, platform: Platform, archive: Look, number: signal.Signals
) -> None:
    import urllib.request

    start, port = recent(platform), free_port()
    seen: list[int] = []

    def sealed() -> bool:
        if not any(key.endswith(".seal") for key in archive().keys):
            return False
        for path in ("metrics", "healthz", "readyz"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
                seen.append(answer.status)
        return True

    done = command.interrupt(
        sealed, number, "run", ARCHIVER_START=start, ARCHIVER_METRICS_PORT=str(port)
    )
    assert seen == [200, 200, 200]
    assert done.code == (0 if number == signal.SIGTERM else 130), done.err
    assert "Traceback" not in done.err


def test_an_archive_keeps_its_length_of_window(
    command: Command, hour: list[str], archive: Look
) -> None:
    command.run("backfill", *hour).expect()
    before = archive().keys
    done = command.run("backfill", *hour, ARCHIVER_WINDOW="15m").expect(2)
    assert "ARCHIVER_WINDOW" in done.err
    assert archive().keys == before
