"""The command and a bucket for the tests that need a whole process."""

from __future__ import annotations

from tests.cli.conftest import archive, bucket, command, key

__all__ = ["archive", "bucket", "command", "key"]
