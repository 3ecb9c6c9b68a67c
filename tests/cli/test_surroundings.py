"""What is wrong around the archiver is told by its own name, by every verb, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.command import Command, Done

DAY = ["--from", "2024-01-15", "--to", "2024-01-16"]
VERBS = {
    "check": ["check"],
    "init": ["init"],
    "run": ["run", "--once"],
    "backfill": ["backfill", *DAY],
    "processes": ["backfill", *DAY, "--processes", "2"],
    "dry run": ["backfill", *DAY, "--dry-run"],
    "reconcile": ["reconcile", *DAY],
    "verify": ["verify"],
    "list": ["manifest", "list", *DAY],
    "show": ["manifest", "show", "vc_1"],
    "hold list": ["hold", "list"],
    "hold add": ["hold", "add", "vc_1", "--by", "x", "--reason", "y"],
}
NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}


def told(done: Done, verb: str, code: int, name: str) -> None:
    """`check` tells it in its table, the others in the one line of theirs."""
    done.expect(code)
    if verb == "check" and done.out:
        [line] = [line for line in done.out.splitlines() if line.startswith("FAIL")]
    else:
        line = done.complaint
    assert name in line
    for misleading in ("internal error", "ENDPOINT_URL", "S3_BUCKET", "AWS_CA_BUNDLE"):
        assert misleading not in line


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_profile(command: Command, verb: str) -> None:
    done = command.run(*VERBS[verb], AWS_PROFILE="nobody", COLUMNS="80", **NO_KEYS)
    told(done, verb, 2, "AWS_PROFILE")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("variable", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_a_file_of_aws_that_cannot_be_read(
    command: Command, verb: str, variable: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    done = command.run(
        *VERBS[verb], COLUMNS="80", **{variable: str(tmp_path / "folder")}, **NO_KEYS
    )
    told(done, verb, 2, variable)


@pytest.mark.parametrize("verb", VERBS)
def test_a_process_that_gives_no_credentials(command: Command, verb: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\ncredential_process = false\n")
    done = command.run(*VERBS[verb], AWS_CONFIG_FILE=str(config), COLUMNS="80", **NO_KEYS)
    told(done, verb, 4, "credential_process")


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_for_tls_keys_that_cannot_be_written(command: Command, verb: str) -> None:
    done = command.run(*VERBS[verb], SSLKEYLOGFILE="/nowhere/keys.log", COLUMNS="80")
    told(done, verb, 2, "SSLKEYLOGFILE")


@pytest.mark.parametrize("verb", ["check", "run", "processes", "verify", "list", "hold add"])
def test_a_directory_for_metrics_that_is_missing(command: Command, verb: str) -> None:
    """The library reads it when it is loaded, so this is a new process."""
    done = command.fresh(*VERBS[verb], PROMETHEUS_MULTIPROC_DIR="/nowhere", COLUMNS="80")
    told(done, verb, 2, "PROMETHEUS_MULTIPROC_DIR")


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_a_directory_for_metrics_that_is_empty(command: Command, name: str) -> None:
    """The library would write into the current directory."""
    told(command.fresh(*VERBS["verify"], **{name: ""}, COLUMNS="80"), "verify", 2, name)


def test_help_and_keygen_need_none_of_it(command: Command) -> None:
    wrong = {"PROMETHEUS_MULTIPROC_DIR": "/nowhere", "SSLKEYLOGFILE": "/nowhere/keys.log"}
    command.fresh("run", "--help", **wrong).expect()
    command.fresh("keygen", "--out", "made.pem", AWS_PROFILE="nobody", **wrong).expect()
