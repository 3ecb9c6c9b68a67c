"""The command on the stores that cannot do all: what it refuses, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.manifest import layout
from archiver.manifest.signing import SigningKey
from tests.contract.conftest import STORES, MakeBucket, Server
from tests.contract.stores import KNOWN, Known
from tests.fakes.command import Command, command_for
from tests.fakes.platform import Platform
from tests.fakes.population import a_call
from tests.fakes.rig import Archive
from tests.system.servers import REGION

OVERWRITES = [name for name in STORES if not KNOWN[name].proved.create_once]
UNLOCKS = [name for name in STORES if KNOWN[name].proved.lock_holds is False]
HOUR = ["--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T11:00:00Z"]


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform([a_call("vc_1", epa={"a": 1}), a_call("vc_2")]) as served:
        yield served
        assert served.violations == []


@pytest.fixture
def command(
    platform: Platform, server: Server, known: Known, prefix: str, tmp_path: Path, key: SigningKey
) -> Command:
    return command_for(
        platform, key, tmp_path, server.environment,
        S3_BUCKET="locked" if known.locked else "plain", S3_PREFIX=prefix,
        S3_ENDPOINT_URL=server.endpoint_url, S3_REGION=REGION,
    )  # fmt: skip


@pytest.mark.parametrize("store", OVERWRITES)
def test_several_writers_are_refused(command: Command, platform: Platform) -> None:
    for verb in (["init"], ["run", "--once"]):
        done = command.run(*verb).expect(4)
        assert "--single-writer" in done.complaint
    assert not platform.served("blob")
    checked = command.run("check").expect(4)
    [failed] = [line for line in checked.out.splitlines() if line.startswith("FAIL")]
    assert "create-once" in failed
    assert "--single-writer" in failed


@pytest.mark.parametrize("store", OVERWRITES)
def test_one_writer_is_accepted_and_each_seal_says_so(
    command: Command, open_bucket: MakeBucket, key: SigningKey
) -> None:
    command.run("backfill", *HOUR, "--single-writer").expect()
    look = Archive(open_bucket())
    look.check(key)
    assert look.records.keys() == {"vc_1", "vc_2"}
    assert look.seals[0].document["store"]["create_once"] is False
    assert all(seal.document["single_writer"] is True for seal in look.seals[1:])
    command.run("backfill", *HOUR, "--single-writer").expect()
    assert sorted(set(Archive(open_bucket()).keys)) == sorted(set(look.keys))
    versions = [v.key for v in open_bucket().versions("") if v.key != layout.PROBE]
    assert len(versions) == len(set(versions)), "something was overwritten"
    command.run("verify", "--level", "bytes", "--json").expect()
    assert command.run("backfill", *HOUR).code == 4, "the next one says it again"


@pytest.mark.parametrize("store", UNLOCKS)
def test_a_store_whose_locks_do_not_hold_is_refused(command: Command, platform: Platform) -> None:
    locking = {"ARCHIVER_OBJECT_LOCK_MODE": "COMPLIANCE", "ARCHIVER_RETENTION_DAYS": "7300"}
    for options in ([], ["--single-writer"]):
        done = command.run("init", *options, **locking).expect(4)
        assert "ARCHIVER_OBJECT_LOCK_MODE" in done.complaint
    checked = json.loads(command.run("check", "--json", **locking).out)
    failed = {line["name"]: line for line in checked if not line["ok"]}
    # moto now and then lets two writers create the same object.
    assert failed.keys() - {"create-once"} == {"object lock"}
    assert (failed["object lock"]["verdict"], failed["object lock"]["exit_code"]) == ("fail", 4)
    assert failed["object lock"]["action"]
