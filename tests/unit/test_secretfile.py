"""Secrets in files: read again when they change, kept while a rotation is under way."""

from __future__ import annotations

import os

import pytest

from archiver.core.errors import UsageError
from archiver.settings import secret_file


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "token"
    file.write_text("first\n")
    secret = secret_file(file, "ARCHIVER_API_TOKEN_FILE")
    assert secret() == "first"
    file.write_text("second, longer\n")
    assert secret() == "second, longer"


def test_a_swapped_link_is_noticed_as_kubernetes_does_it(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"secret {name}")
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "token"
    link.symlink_to("one")
    secret = secret_file(link, "ARCHIVER_API_TOKEN_FILE")
    assert secret() == "secret one"
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(link)
    assert secret() == "secret two"


@pytest.mark.parametrize("damage", ["missing", "empty", "binary", "directory"])
def test_while_a_rotation_is_under_way_the_old_value_stands(tmp_path, damage):
    file = tmp_path / "token"
    file.write_text("old")
    secret = secret_file(file, "ARCHIVER_API_TOKEN_FILE")
    file.unlink()
    if damage == "empty":
        file.write_text("")
    elif damage == "binary":
        file.write_bytes(b"\xff\xfe")
    elif damage == "directory":
        file.mkdir()
    assert secret() == "old"
    if damage == "directory":
        file.rmdir()
    file.write_text("new")
    assert secret() == "new"


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines", b"\xff", "tök".encode(), b"a\0b"])
def test_what_is_no_secret_names_the_variable_and_not_the_content(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="ARCHIVER_API_TOKEN_FILE") as caught:
        secret_file(file, "ARCHIVER_API_TOKEN_FILE")
    assert "lines" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        secret_file(tmp_path / "nothing", "ARCHIVER_API_TOKEN_FILE")
