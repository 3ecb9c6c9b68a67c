"""What a reconciliation found: its counts, its calls, and how they are shown.

Of each window `source = archived + no_recording + failed + pending + missing + unsealed`, but for
pending calls that the source does not list (`listed` false), and for windows whose own segments
cannot be read, of which only `source` is counted; `gone` calls are beyond that sum, and
those that `differ` are among the archived and no_recording ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from archiver.audit.render import printable
from archiver.model import Window, format_time

Name = Literal["missing", "pending", "failed", "differs", "unsealed", "gone"]

NAMES: tuple[Name, ...] = get_args(Name)
LACKING: tuple[Name, ...] = ("missing", "pending", "failed")
"""The archive lacks the recording of these."""
COUNTS = {
    "source": "source",
    "archived": "archived",
    "no_recording": "no recording",
    "failed": "failed",
    "pending": "pending",
    "missing": "missing",
    "unsealed": "unsealed",
    "gone": "gone",
    "differs": "differ",
}
"""What is counted, and the title of its column."""
SHOWN = 20
"""Calls of a class that the text shows; `--json` has all of them."""
FILTER_CHARACTERS = 200
"""Of a filter, so many are shown."""


@dataclass(frozen=True)
class Difference:
    """A call that is not simply archived, and the window that it belongs to. `fields` are:

    missing   window_sealed: whether the window has a sealed segment
    pending   listed: whether the source lists it still
    failed    reason, record; sealed: whether a sealed segment tells the record
    differs   differences: field → {archive, source}; record
    unsealed  outcome, record: there is a record, and no sealed segment that tells it
    gone      outcome, record: both None where no record was ever made; asked_for: False where its
              window was listed with another filter, and this one need not ask for it
    """

    name: Name
    call_id: str
    window: Window
    fields: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        return {
            "call_id": self.call_id,
            "window": format_time(self.window.start),
            **self.fields,
        }


@dataclass
class Result:
    """A reconciliation. `span` is the range, whole windows; `archive` None where there is none."""

    span: Window
    archive: str | None
    days: dict[str, Counter[str]] = field(default_factory=dict)
    differences: dict[Name, list[Difference]] = field(default_factory=dict)
    unstable: list[Window] = field(default_factory=list)
    """Windows whose listing kept changing: what is said of them is not certain."""
    unlisted: list[tuple[Window, str]] = field(default_factory=list)
    """Windows that the source does not list, and why: nothing is known of them."""
    incomplete: list[tuple[Window, str]] = field(default_factory=list)
    """Windows of which a page could not be had, and why."""
    unreadable_entries: list[tuple[Window, int]] = field(default_factory=list)
    """Windows with entries that are no calls, and how many."""
    unreadable: dict[str, Window] = field(default_factory=dict)
    """Objects of the archive that are damaged or cannot be read, a line each, with the window that
    needed them first."""
    filter: str = "null"
    """What the source was asked for (`filters.as_text`)."""
    other_filters: Counter[str] = field(default_factory=Counter)
    """What it was asked for when the archive listed, where that differs: in how many windows."""

    def row(self, window: Window) -> Counter[str]:
        """The counts of the day that the window starts on."""
        return self.days.setdefault(window.start.date().isoformat(), Counter())

    def add(self, difference: Difference) -> None:
        self.differences.setdefault(difference.name, []).append(difference)
        self.row(difference.window)[difference.name] += 1

    def sort(self) -> None:
        for found in self.differences.values():
            found.sort(key=lambda one: (one.window, one.call_id))

    @property
    def total(self) -> Counter[str]:
        return sum(self.days.values(), Counter())

    @property
    def lacking(self) -> int:
        """Calls whose recording the archive lacks."""
        return sum(len(self.differences.get(name, ())) for name in LACKING)

    @property
    def unasked(self) -> int:
        """Calls that are gone, or were not asked for: nobody can tell."""
        return sum(not one.fields["asked_for"] for one in self.differences.get("gone", ()))

    @property
    def ok(self) -> bool:
        bad = self.unlisted or self.incomplete or self.unreadable_entries or self.unreadable
        return self.archive is not None and not (
            self.lacking or self.unstable or self.unasked or bad
        )

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def document(self) -> dict[str, Any]:
        """The form of `--json` (docs/auditor-guide.md)."""
        return {
            "type": "reconcile",
            "v": 1,
            "ok": self.ok,
            "archive": self.archive,
            "from": format_time(self.span.start),
            "to": format_time(self.span.end),
            "days": [{"day": day, **_counts(row)} for day, row in sorted(self.days.items())],
            "total": _counts(self.total),
            "unstable": [format_time(window.start) for window in self.unstable],
            "unlisted": _problems(self.unlisted),
            "incomplete": _problems(self.incomplete),
            "unreadable_entries": [
                {"entries": count, "window": format_time(window.start)}
                for window, count in self.unreadable_entries
            ],
            "unreadable_objects": _problems((w, text) for text, w in self.unreadable.items()),
            "filter": json.loads(self.filter),
            "other_filters": [
                {"filter": json.loads(text), "windows": count}
                for text, count in sorted(self.other_filters.items())
            ],
            **{name: [one.document() for one in self.differences.get(name, ())] for name in NAMES},
        }


def _problems(rows: Iterable[tuple[Window, str]]) -> list[dict[str, str]]:
    return [{"problem": text, "window": format_time(window.start)} for window, text in rows]


def _counts(row: Mapping[str, int]) -> dict[str, int]:
    return {name: row.get(name, 0) for name in COUNTS}


def as_json(result: Result) -> str:
    """`Result.document` as one line of JSON, keys sorted; ASCII, because the ids are another's."""
    return json.dumps(result.document(), sort_keys=True, separators=(",", ":")) + "\n"


def as_text(result: Result) -> str:
    """Table, calls, notes and verdict, in this order; ends with a newline."""
    lines = [*_table(result), *_calls(result), *_notes(result), _verdict(result)]
    return "\n".join(lines) + "\n"


def _table(result: Result) -> Iterator[str]:
    rows = [(day, _counts(row)) for day, row in sorted(result.days.items())]
    rows.append(("total", _counts(result.total)))
    widths = {
        name: max(len(title), *(len(f"{row[name]:,}") for _, row in rows))
        for name, title in COUNTS.items()
    }
    yield "  ".join([f"{'day':10}", *(COUNTS[name].rjust(widths[name]) for name in COUNTS)])
    for day, row in rows:
        yield "  ".join([f"{day:10}", *(f"{row[name]:{widths[name]},}" for name in COUNTS)])


def _calls(result: Result) -> Iterator[str]:
    for name in NAMES:
        found = result.differences.get(name, [])
        yield from _shown(
            name, [(one.window, printable(one.call_id), _detail(one, result)) for one in found]
        )
    unstable = [(window, "its listing kept changing", "") for window in result.unstable]
    yield from _shown("unstable", unstable)
    yield from _shown("unlisted", [(w, printable(text), "") for w, text in result.unlisted])
    yield from _shown("partial", [(w, printable(text), "") for w, text in result.incomplete])
    entries = [(w, f"{_entries_of(n)} could not be read", "") for w, n in result.unreadable_entries]
    yield from _shown("entries", entries)
    yield from _shown(
        "damaged", [(w, printable(text), "") for text, w in result.unreadable.items()]
    )
    yield ""


def _shown(name: str, rows: list[tuple[Window, str, str]]) -> Iterator[str]:
    if rows:
        yield ""
    for window, what, detail in rows[:SHOWN]:
        more = f"  ({detail})" if detail else ""
        yield f"{name:8}  {format_time(window.start)}  {what}{more}"
    if len(rows) > SHOWN:
        yield f"{name:8}  … and {len(rows) - SHOWN:,} more (--json lists all)"


def _detail(one: Difference, result: Result) -> str:
    fields = one.fields
    match one.name:
        case "missing":
            no_window = result.archive is not None and not fields["window_sealed"]
            return "its window is not sealed" if no_window else ""
        case "pending":
            return "" if fields["listed"] else "the source does not list it any more"
        case "failed":
            return printable(str(fields["reason"])) + ("" if fields["sealed"] else ", not sealed")
        case "differs":
            changes = fields["differences"].items()
            return "; ".join(f"{field}: {_both(values)}" for field, values in changes)
        case "gone":
            unsure = "" if fields["asked_for"] else "; perhaps not asked for"
            return (fields["outcome"] or "it was never archived") + unsure
        case "unsealed":
            return str(fields["outcome"])


def _both(values: Mapping[str, Any]) -> str:
    ours = "nothing" if values["archive"] is None else printable(str(values["archive"]))
    return f"{ours} in the archive, {printable(str(values['source']))} at the source"


def _notes(result: Result) -> Iterator[str]:
    others = sorted(result.other_filters.items())
    for text, count in others[:SHOWN]:
        were = "were" if count != 1 else "was"
        yield (
            f"note: {_windows_of(count)} of the archive {were} listed with another filter: "
            f"{_cut(text)}; this listing had {_cut(result.filter)}"
        )
    if len(others) > SHOWN:
        yield f"note: {len(others) - SHOWN:,} more filters (--json lists all)"


def _cut(text: str) -> str:
    return text if len(text) <= FILTER_CHARACTERS else text[:FILTER_CHARACTERS] + "…"


def _verdict(result: Result) -> str:
    total = result.total
    told = [_good_end(total)] if result.ok else list(_complaints(result))
    beyond = [f"{total['gone']:,} gone"] if total["gone"] else []
    if total["differs"]:
        beyond.append(f"{total['differs']:,} differ" + ("s" if total["differs"] == 1 else ""))
    if beyond:
        told.append(", ".join(beyond))
    return ("OK: " if result.ok else "NOT OK: ") + "; ".join(told)


def _good_end(total: Mapping[str, int]) -> str:
    text = f"the archive has a result for each of the {total['source']:,} calls listed"
    return text + (f", {total['unsealed']:,} of them not sealed yet" if total["unsealed"] else "")


def _complaints(result: Result) -> Iterator[str]:
    total = result.total
    if result.archive is None:
        yield "there is no archive here yet (no seal 0)"
    if result.lacking:
        counts = ", ".join(f"{total[name]:,} {name}" for name in LACKING if total[name])
        yield f"the archive lacks the recordings of {_calls_of(result.lacking)} ({counts})"
    if result.unasked:
        were = "were" if result.unasked != 1 else "was"
        yield (
            f"{_calls_of(result.unasked)} of the archive {were} perhaps not asked for: set "
            "ARCHIVER_STATES, ARCHIVER_CAMPAIGN_ID and ARCHIVER_DIRECTION as they were then"
        )
    if result.unstable:
        yield f"the listing of {_windows_of(len(result.unstable))} kept changing"
    if result.unlisted:
        yield f"the source does not list {_windows_of(len(result.unlisted))}"
    if result.incomplete:
        yield f"the source lists {_windows_of(len(result.incomplete))} only in part"
    if result.unreadable_entries:
        count = sum(entries for _, entries in result.unreadable_entries)
        yield f"{_entries_of(count)} of the listing could not be read as calls"
    if result.unreadable:
        count = len(result.unreadable)
        objects = f"{count:,} objects" if count != 1 else "1 object"
        yield f"{objects} of the archive could not be read: run archiver verify"


def _entries_of(count: int) -> str:
    return f"{count:,} " + ("entries" if count != 1 else "entry")


def _calls_of(count: int) -> str:
    return f"{count:,} call" + ("s" if count != 1 else "")


def _windows_of(count: int) -> str:
    return f"{count:,} window" + ("s" if count != 1 else "")
