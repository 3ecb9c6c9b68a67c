"""The verb for legal holds. It needs no source; `hold list` needs no signing key either."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from archiver.cli.common import start_run, stopping

if TYPE_CHECKING:
    from archiver.manifest.event import Action

F = TypeVar("F", bound=Callable[..., Any])


class _Line(click.ParamType[str]):
    """One line of printable characters: it goes onto the ledger as it is, for good."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from archiver.manifest.event import MAX_TEXT, is_text

        text = str(value).strip()
        if not is_text(text):
            self.fail(f"takes one line of 1 to {MAX_TEXT} printable characters", param, ctx)
        return text


@click.group()
def hold() -> None:
    """Legal hold: keeps calls from being deleted, however old they are.

    Each act is an event on the ledger, sealed and signed: who, when, why, and which objects.
    """


def _acting(function: F) -> F:
    """What the two acts take."""
    for decorate in (
        click.option(
            "--single-writer", is_flag=True, help="accept a store without create-once writes"
        ),
        click.option("--reason", type=_Line(), required=True, help="why, for the ledger"),
        click.option(
            "--by",
            metavar="WHO",
            type=_Line(),
            required=True,
            help="who decided it, for the ledger",
        ),
        click.argument("call_ids", metavar="CALL_ID...", nargs=-1, required=True),
    ):
        function = decorate(function)
    return function


@hold.command()
@_acting
def add(call_ids: tuple[str, ...], by: str, reason: str, single_writer: bool) -> int:
    """Hold every file and record of calls.

    Of a call that is held already it is one more act, on what the call has now.
    """
    return _act("add", call_ids, by, reason, single_writer)


@hold.command()
@_acting
def remove(call_ids: tuple[str, ...], by: str, reason: str, single_writer: bool) -> int:
    """Take the hold off calls. Their retention dates stay as they are."""
    return _act("remove", call_ids, by, reason, single_writer)


def _act(
    action: Action, call_ids: tuple[str, ...], by: str, reason: str, single_writer: bool
) -> int:
    """Do it, and tell of each call. Exits with 1 where an object is gone or damaged."""
    from archiver.app import open_holds
    from archiver.audit import holdtables
    from archiver.settings import WriterSettings, load

    settings = load(WriterSettings)
    clock = start_run(settings)
    with stopping(clock), open_holds(settings, clock, single_writer=single_writer) as holds:
        result = holds.act(action, call_ids, by, reason)
    gone = False
    for one in result.done:
        line = holdtables.done_line(one.hold, one.seal, taken_up=one.taken_up, undone=one.undone)
        click.echo(line)
        for key in sorted(one.gone):
            gone = True
            click.echo(f"archiver: {key} is missing or damaged: run archiver verify", err=True)
    for call_id, acts in result.ended.items():
        if len(acts) > 1:
            click.echo(holdtables.ended_line(call_id, acts), err=True)
    for hold in result.passed_by:
        click.echo(holdtables.passed_by_line(hold), err=True)
    return 1 if gone else 0


@hold.command("list")
@click.argument("call_ids", metavar="[CALL_ID]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="a stable format for programs")
def list_holds(call_ids: tuple[str, ...], as_json: bool) -> int:
    """The calls that are held now; of those given, all acts."""
    from archiver.audit import holdtables
    from archiver.audit.holds import Ledger, standings
    from archiver.readonly import reader
    from archiver.settings import StoreSettings, load

    settings = load(StoreSettings)
    clock = start_run(settings)
    with stopping(clock):
        bucket = reader(settings, clock)
        bucket.check_access()
        ledger = Ledger(bucket)
        found = standings(ledger.acts())
    if as_json:
        click.echo(holdtables.as_json(found, call_ids, ledger.unsealed), nl=False)
        return 0
    text = holdtables.acts(found, call_ids) if call_ids else holdtables.held(found)
    click.echo(text, nl=False)
    for key in ledger.unsealed:
        click.echo(f"archiver: {key} waits for its seal: it does not count yet", err=True)
    return 0
