"""What the demo says where it cannot run, as in the container image."""

from __future__ import annotations

import sysconfig

import pytest

from archiver.core.errors import UsageError
from archiver.demo.run import run_demo
from archiver.demo.store import embedded_store


def test_without_an_s3_server_it_names_the_ways_to_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="--bucket NAME"):
        run_demo(1, tmp_path / "demo", keep=False)
    assert not (tmp_path / "demo").exists()


def test_a_directory_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="has other things in it"):
        run_demo(1, tmp_path, keep=False)


def test_two_servers_do_not_share_a_directory(tmp_path):
    with (
        embedded_store(tmp_path) as settings,
        pytest.raises(UsageError, match="in use"),
        embedded_store(tmp_path),
    ):
        pass
    with embedded_store(tmp_path) as again:
        assert again["AWS_SECRET_ACCESS_KEY"] == settings["AWS_SECRET_ACCESS_KEY"]
