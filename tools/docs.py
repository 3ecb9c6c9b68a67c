"""Writes the pages that are made from the code, or says which of them have drifted.

A page that is written by hand may have parts that are made: what stands between its markers.

python tools/docs.py            writes them
python tools/docs.py --check    writes nothing; exits with 1 where one is not what it should be
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from prometheus_client.metrics import MetricWrapperBase

from archiver.audit.findings import CODES
from archiver.cli import cli
from archiver.core import audio
from archiver.manifest import record
from archiver.observability import metrics
from archiver.preflight import Wanted, store_lines
from archiver.settings import documented

if TYPE_CHECKING:
    from tests.contract.stores import Known, Matter

ROOT = Path(__file__).parents[1]
NOTE = "made by `make docs`; do not edit"
HELP_WIDTH = 88


def example_settings() -> str:
    """`config.example.env`: every setting, its default and a line of why."""
    lines = [
        f"# All settings of the archiver ({NOTE}).",
        "# Those without a # have no default and must be set; the others show theirs.",
        "# S3 credentials come the way boto3 finds them: AWS_ACCESS_KEY_ID and",
        "# AWS_SECRET_ACCESS_KEY, a shared credentials file, a role.",
    ]
    for variable, default, why in documented():
        required = default == "required"
        lines += ["", *_comment(why), f"{variable}=" if required else f"#{variable}={default}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 98, initial_indent="# ", subsequent_indent="# ")


def settings_page() -> str:
    """`docs/settings.md`."""
    rows = ((f"`{variable}`", _default(default), why) for variable, default, why in documented())
    intro = (
        "Environment variables. Sizes are `16KiB`, `64MiB`, `2GiB`; lengths of time `90s`, `15m`, "
        "`2h`, `7d`. An empty variable counts as not set. Of a secret and its `…_FILE` one may be "
        "set; the file is read again when it changes. `config.example.env` has the same as a file "
        "to fill in."
    )
    return _page("Settings", intro, _table(("setting", "default", "meaning"), rows))


def _default(value: str) -> str:
    if value == "required":
        return "required"
    return f"`{value}`" if value else "–"


def metrics_page() -> str:
    """`docs/metrics.md`."""
    declared = (each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase))
    intro = "Served on `/metrics` of `ARCHIVER_METRICS_PORT`. Labels come from closed sets."
    head = ("metric", "type", "labels", "meaning")
    return _page("Metrics", intro, _table(head, map(_metric, declared)))


def _metric(metric: MetricWrapperBase) -> tuple[str, str, str, str]:
    (family,) = metric.describe()
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "–"
    return f"`{name}`", family.type, labels, family.documentation


def commands_page() -> str:
    """`docs/commands.md`: the help of each command."""
    sections = [f"## {title}\n\n```\n{text}\n```" for title, text in _help(cli, "archiver", None)]
    intro = "The help texts, as the command prints them."
    return _page("Commands", intro, "\n\n".join(sections))


def _help(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[tuple[str, str]]:
    """The help of a command and of those below it."""
    width = {"terminal_width": HELP_WIDTH, "max_content_width": HELP_WIDTH}
    settings = {**command.context_settings, **width}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            child = command.get_command(context, below)
            assert child is not None
            yield from _help(child, below, context)


def manifest_page() -> str:
    """`docs/manifest-format.md`: by hand, but for kinds of files and the codes of records and of
    `verify`."""
    parts = {
        "kinds": _kinds(),
        "recordings": _recordings(),
        "reasons": _reasons(),
        "findings": _findings(),
    }
    return _filled("docs/manifest-format.md", parts)


def _kinds() -> str:
    """The kinds of files, in the order of a record's `files`."""
    rows = (
        (f"`{kind}`", f"`{row.name}`", f"`{row.content_type}`", row.means)
        for kind, row in record.FILE_KINDS.items()
    )
    return _table(("`kind`", "name", "`content_type`", "is"), rows)


def _recordings() -> str:
    """What a recording may be, with the extension of its key."""
    rows = (
        (f"`recording.{one.extension}`", f"`{one.content_type}`", one.means) for one in audio.TYPES
    )
    return _table(("name", "`content_type`", "is"), rows)


def _reasons() -> str:
    """The closed sets of a record's `reason` and `findings`."""
    kinds = (
        ("`reason` where the outcome is `no_recording`", record.NO_RECORDING_REASONS),
        ("`reason` where the outcome is `failed`", record.FAILED_REASONS),
        ("`findings`", record.FINDINGS),
    )
    return "\n\n".join(
        _table((title, "means"), ((f"`{code}`", text) for code, text in codes.items()))
        for title, codes in kinds
    )


def _findings() -> str:
    """The codes of `verify`, each with the section of the page whose rule it breaks."""
    rows = ((f"`{n}`", c.severity, c.meaning, _rule(c.clause)) for n, c in CODES.items())
    return _table(("code", "severity", "meaning", "breaks"), rows)


def _rule(clause: str) -> str:
    """`Order of writes` or `Invariant 3`, as a link to the section of the page."""
    name = {"Bucket": "The bucket"}.get(clause, clause)
    heading = re.sub(r"Invariant \d+", "What holds", name)
    text = name.replace("Invariant", "What holds,")
    return f"[{text}](#{heading.lower().replace(' ', '-')})"


def readme() -> str:
    """`README.md`: by hand, but for the list of known stores, which the contract suite holds."""
    sys.path.insert(0, str(ROOT))
    from tests.contract.stores import KNOWN, MATTERS

    head = ("store", "writers", "Object Lock", "what `archiver check` says of it")
    stores = _table(head, map(_store, KNOWN.values()))
    labels = {name: known.label for name, known in KNOWN.items()}
    others = (_matter(name, one, labels) for name, one in MATTERS.items() if one.instead)
    matters = _table(("matter", "promised", "instead"), others)
    said = (
        "What they do otherwise than they should, as the contract suite holds each of them to it:"
    )
    return _filled("README.md", {"stores": f"{stores}\n\n{said}\n\n{matters}"})


def _store(known: Known) -> tuple[str, str, str, str]:
    wanted = Wanted("COMPLIANCE", 7300) if known.locked else Wanted()
    lines = [line for line in store_lines(known.proved, wanted) if line.verdict != "ok"]
    said = "<br>".join(f"{one.verdict} {one.name}: {one.detail} → {one.action}" for one in lines)
    writers = "any number" if known.proved.create_once else "one, with `--single-writer`"
    writers += "; now and then two win" if "create_once" in known.loose else ""
    holds = {True: "holds", False: "does not hold: refused", None: "–"}[known.proved.lock_holds]
    return known.title, writers, holds, said or "nothing to note"


def _matter(name: str, matter: Matter, labels: Mapping[str, str]) -> tuple[str, str, str]:
    by_deed: dict[str, list[str]] = {}
    for store, deed in matter.instead.items():
        by_deed.setdefault(deed, []).append(labels[store])
    instead = "; ".join(f"{deed}: {', '.join(stores)}" for deed, stores in by_deed.items())
    return name, matter.promised, instead


def _filled(name: str, parts: Mapping[str, str]) -> str:
    """The page `name` with each part between its markers; exits where a marker is missing."""
    text = _read(name) or ""
    for part, body in parts.items():
        begin, end = f"<!-- made: {part} (by `make docs`; do not edit) -->", f"<!-- end: {part} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            sys.exit(f"{name} lacks the markers of its part {part}: {begin} and {end}")
        text = f"{before}{begin}\n\n{body}\n\n{end}{after}"
    return text


def _page(title: str, intro: str, body: str) -> str:
    return f"<!-- {NOTE} -->\n\n# {title}\n\n{intro}\n\n{body}\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


PAGES: dict[str, Callable[[], str]] = {
    "README.md": readme,
    "config.example.env": example_settings,
    "docs/commands.md": commands_page,
    "docs/manifest-format.md": manifest_page,
    "docs/metrics.md": metrics_page,
    "docs/settings.md": settings_page,
}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    drifted = [name for name, make in PAGES.items() if _read(name) != make()]
    if arguments:
        for name in drifted:
            print(f"{name} is not what the code says: run `make docs`", file=sys.stderr)
        return 1 if drifted else 0
    for name in drifted:
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(PAGES[name](), "utf-8")
        print(f"wrote {name}")
    return 0


def _read(name: str) -> str | None:
    path = ROOT / name
    return path.read_text("utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
