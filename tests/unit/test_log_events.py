"""docs/operations.md names each event that the code logs, with its level, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import archiver
from archiver.manifest.record import OUTCOMES

CODE = Path(archiver.__file__).parent
PAGE = CODE.parent / "docs" / "operations.md"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
SAY = {"info", "warning"}
"""`say` in pipeline/call.py is one of these, by the outcome."""


@cache
def logged() -> dict[str, set[str]]:
    """Event → the levels that the code logs it at."""
    found: dict[str, set[str]] = {}
    for path in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (levels := levels_of(node.func)):
                for event in events_of(node.args[0]):
                    found.setdefault(event, set()).update(levels)
    return found


def levels_of(function: ast.expr) -> set[str]:
    """The levels that a call of this logs at; none where it does not log."""
    if isinstance(function, ast.Name):
        return SAY if function.id == "say" else set()
    if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
        return set()
    logger = ast.unparse(function.value)
    return {function.attr} if logger in ("log", "structlog.get_logger()") else set()


def events_of(argument: ast.expr) -> Iterator[str]:
    """The names that an event may have; a placeholder in one stands for an outcome."""
    if isinstance(argument, ast.Constant):
        yield str(argument.value)
        return
    assert isinstance(argument, ast.JoinedStr), f"an event that only runs tell: line {argument}"
    for outcome in OUTCOMES:
        parts = (p.value if isinstance(p, ast.Constant) else outcome for p in argument.values)
        yield "".join(map(str, parts))


def documented() -> dict[str, set[str]]:
    """Event → the levels that the table names for it."""
    section = PAGE.read_text(encoding="utf-8").split("## Log events")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", section, flags=re.MULTILINE)
    return {
        event: {word for word in re.findall(r"\w+", levels) if word in LEVELS}
        for events, levels in rows
        for event in re.findall(r"`(\w+\.\w+)`", events)
    }


def test_the_table_names_exactly_the_events_of_the_code():
    assert len(logged()) > 15
    assert sorted(documented()) == sorted(logged())


def test_the_table_names_their_levels():
    code, table = logged(), documented()
    wrong = {e: (table[e], code[e]) for e in table if not table[e] or not table[e] <= code[e]}
    assert wrong == {}
    assert table["call.failed"] == {"warning"}
    assert table["call.amended"] == {"info", "warning"}
