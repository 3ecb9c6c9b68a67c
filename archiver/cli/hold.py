"""The commands for legal holds. They need no source; `hold list` needs no signing key either."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from archiver.cli.common import F, reading, start_run, stopping
from archiver.core.errors import UsageError

if TYPE_CHECKING:
    from archiver.manifest.event import Action


def _line(value: str) -> str:
    """One line of printable characters. It becomes part of an event, which cannot be changed."""
    from archiver.manifest.event import MAX_TEXT, is_text

    if not is_text(text := value.strip()):
        raise click.BadParameter(f"takes one line of 1 to {MAX_TEXT} printable characters")
    return text


@click.group()
def hold() -> None:
    """Legal hold: keeps calls from being deleted, however old they are.

    Each act is an event on the ledger, sealed and signed: who, when, why, and which objects.
    """


def _options_of_acts(function: F) -> F:
    """Add the options of `hold add` and `hold remove`."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="a stable format for programs"),
        click.option(
            "--single-writer", is_flag=True, help="accept a store without create-once writes"
        ),
        click.option(
            "--reason", type=_line, metavar="TEXT", required=True, help="why, for the ledger"
        ),
        click.option(
            "--by", metavar="WHO", type=_line, required=True, help="who decided it, for the ledger"
        ),
        click.argument("call_ids", metavar="CALL_ID...", nargs=-1, required=True),
    ):
        function = decorate(function)
    return function


@hold.command()
@_options_of_acts
def add(**options: Any) -> int:
    """Hold every file and record of calls.

    Of a call that is held already it is one more act, on what the call has now.
    """
    return _act("add", **options)


@hold.command()
@_options_of_acts
@click.option("--all", "every", is_flag=True, help="also where several acts hold a call: end them")
def remove(**options: Any) -> int:
    """Take the hold off calls. Their retention dates stay as they are."""
    return _act("remove", **options)


def _act(
    action: Action,
    call_ids: tuple[str, ...],
    by: str,
    reason: str,
    *,
    single_writer: bool,
    as_json: bool,
    every: bool = False,
) -> int:
    """Set or remove the holds, and print the result of each call. Returns 1 if an object is
    missing, hidden or damaged, or if a call failed; the other calls are done all the same."""
    from archiver.audit import tables
    from archiver.audit.tables import printable
    from archiver.settings import WriterSettings, load
    from archiver.wiring import open_holds

    settings = load(WriterSettings)
    clock = start_run(settings)
    with stopping(clock), open_holds(settings, clock, single_writer=single_writer) as holds:
        result = holds.act(action, call_ids, by, reason, every=every)
    if as_json:
        rows = ((one.hold, one.seal, one.gone, one.undone) for one in result.done)
        click.echo(tables.done_json(rows, sorted(result.left)), nl=False)
    else:
        for one in result.done:
            click.echo(tables.done_line(one.hold, one.seal, undone=one.undone))
    gone = sorted({key for one in result.done for key in one.gone})
    problems = [
        f"{printable(key)} is missing, hidden or unreadable: run archiver verify" for key in gone
    ]
    for call_id, error in sorted(result.left.items()):
        problems.append(f"{printable(call_id)} is not done: {error}; run the same command again")
    problems += [f"warning: {damage}: run archiver verify" for damage in result.damaged]
    for problem in problems:
        click.echo(f"archiver: {problem}", err=True)
    return 1 if gone or result.left else 0


@hold.command("list")
@click.argument("call_ids", metavar="[CALL_ID]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="a stable format for programs")
def list_holds(call_ids: tuple[str, ...], as_json: bool) -> int:
    """The calls that are held now; of those given, all acts.

    An id that the archive has no record of ends it with 2. Acts that cannot be read are left out
    and named on stderr; then it exits with 1.
    """
    from archiver.audit import tables
    from archiver.audit.hold_ledger import HoldEvents, have_records, holds_by_call

    with reading() as (bucket, _):
        ledger = HoldEvents(bucket)
        by_call = holds_by_call(ledger.readable())
        new = [one for one in call_ids if one not in by_call]
        unknown = set(new) - have_records(bucket, new)
    if unknown:
        shown = ", ".join(ascii(one) for one in new if one in unknown)
        raise UsageError(f"the archive has no record of {shown}: check the id")
    if as_json:
        text = tables.holds_json(by_call, call_ids, ledger.unsealed, ledger.damaged)
    elif call_ids:
        text = tables.acts_text(by_call, call_ids)
    else:
        text = tables.held_calls(by_call, ledger.damaged)
    click.echo(text, nl=False)
    for key in ledger.unsealed if not as_json else ():
        note = f"archiver: note: {key} is not sealed: it does not count, and nothing comes of it"
        click.echo(note, err=True)
    for damage in ledger.damaged:
        text = (
            f"archiver: left out: {tables.printable(damage)}: run archiver verify; until then "
            "nobody can tell for certain what is held"
        )
        click.echo(text, err=True)
    return 1 if ledger.damaged else 0
