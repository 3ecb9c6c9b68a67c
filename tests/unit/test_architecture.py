"""docs/architecture.md names functions that exist, and its picture of the rooms has no arrow up."""

from __future__ import annotations

import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FUNCTIONS = re.findall(r"`((?:pipeline|source|store)\.\w+\.[\w.]+)`", PAGE)


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def floors() -> dict[str, int]:
    """Room → its floor, by the layers that import-linter holds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (layers,) = (
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    return {
        room.strip(" ()"): floor
        for floor, rooms in enumerate(reversed(layers))
        for room in rooms.split("|")
    }


def test_each_step_of_a_call_names_a_function():
    rows = re.findall(r"^\| (\d+) \|.*\| (.+) \|$", section("The way of a call"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert all(re.fullmatch(r"`[\w.]+`(, `[\w.]+`)*", functions) for _, functions in rows)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS)))
def test_the_function_exists(name):
    room, module, attribute = name.split(".", 2)
    assert callable(pkgutil.resolve_name(f"archiver.{room}.{module}:{attribute}"))


def test_every_arrow_between_rooms_goes_down():
    floor = floors()
    chains = re.findall(r"^  (\w+(?: --> \w+)+)$", section("Rooms"), re.MULTILINE)
    arrows = [pair for chain in chains for pair in re.findall(r"(?=\b(\w+) --> (\w+))", chain)]
    assert len(arrows) >= 10
    assert [arrow for arrow in arrows if floor[arrow[0]] <= floor[arrow[1]]] == []
    assert {room for arrow in arrows for room in arrow} == floor.keys() - {"__main__"}


def test_the_page_tells_of_each_room():
    inside = (path for path in (ROOT / "archiver").iterdir() if not path.name.startswith("_"))
    rooms = {path.stem for path in inside if path.is_dir() or path.suffix == ".py"}
    told = set(re.findall(r"^\| `(\w+)/?` \|", section("Rooms"), re.MULTILINE))
    assert told == rooms
