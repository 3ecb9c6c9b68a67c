"""The help loads next to nothing: that is what makes it start fast."""

from __future__ import annotations

import re

from tests.fakes.command import Command

LIBRARIES = {
    "boto3", "botocore", "cryptography", "prometheus_client", "pydantic",
    "pydantic_settings", "structlog", "urllib3",
}  # fmt: skip


def loaded(command: Command, *arguments: str) -> set[str]:
    """The modules that a command which ends well has loaded, whole packages by their name too."""
    done = command.fresh(*arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.code in (0, 1), done.err
    return set(re.findall(r"^import time:[ \d|]+\| +([\w.]+)$", done.err, re.MULTILINE))


def test_help_and_keys_need_next_to_nothing(command: Command) -> None:
    for arguments in (["--help"], ["backfill", "--help"], ["--version"]):
        found = loaded(command, *arguments)
        assert "click" in found
        assert not found & LIBRARIES
        assert not any(name.startswith(("archiver.store", "archiver.core.model")) for name in found)
    assert loaded(command, "keygen", "--out", "new.pem") & LIBRARIES == {"cryptography"}
