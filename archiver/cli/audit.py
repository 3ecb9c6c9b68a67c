"""The commands that only read an archive: `verify`, `reconcile`, `manifest list`, `manifest show`.

None of them needs the private key. Only `reconcile` needs the source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from archiver.cli.common import check_range, range_options, reading, start_run, stopping
from archiver.core.errors import UsageError


@click.command()
@range_options(required=False)
@click.option(
    "--level",
    type=click.Choice(["manifest", "objects", "bytes"]),
    default="objects",
    show_default=True,
    help="seals and segments; every object too; every byte too",
)
@click.option("--sample", type=click.IntRange(1), help="at level bytes: hash so many files only")
@click.option(
    "--public-key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="the archive's public key, from outside the bucket",
)
@click.option("--head", metavar="SEQ:SHA256", help="a seal you know: finds a chain cut off since")
@click.option("--json", "as_json", is_flag=True, help="a stable format for programs")
def verify(
    start: datetime | None,
    end: datetime | None,
    level: str,
    sample: int | None,
    public_key: Path | None,
    head: str | None,
    as_json: bool,
) -> int:
    """An independent audit of the bucket; needs neither the source nor the private key."""
    from archiver.audit import tables
    from archiver.audit import verify as audit
    from archiver.audit.chain import KnownHead
    from archiver.observability.progress import audit_progress

    check_range(start, end)
    if sample is not None and level != "bytes":
        raise UsageError("--sample goes with --level bytes")
    options = audit.Options(
        level=level,  # type: ignore[arg-type]
        start=start,
        end=end,
        sample=sample,
        public_key=audit.read_public_key(_file(public_key)) if public_key else None,
        head=KnownHead.parse(head) if head else None,
    )
    with reading() as (bucket, workers), audit_progress("verifying") as progress:
        bucket.check_lock_permissions()
        report = audit.verify(bucket, replace(options, workers=workers), progress=progress)
    click.echo(tables.report_json(report) if as_json else tables.report_text(report), nl=False)
    return report.exit_code


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--public-key: {path} cannot be read ({error.strerror})") from None


@click.command()
@range_options(required=True)
@click.option("--json", "as_json", is_flag=True, help="a stable format for programs")
def reconcile(start: datetime, end: datetime, as_json: bool) -> int:
    """Lists the source again and prints what differs from the archive; writes nothing.

    Exits with 1 where the archive lacks the recording of a call that the source has, and where
    calls are gone that were perhaps not asked for: ARCHIVER_STATES and the other filters must be
    those that the archive was made with.
    """
    from archiver.audit import reconcile as audit
    from archiver.observability.progress import audit_progress
    from archiver.settings import SourceSettings, load
    from archiver.wiring import listing, reader

    check_range(start, end)
    settings = load(SourceSettings)
    clock = start_run(settings)
    now = clock.now()
    if start >= now:
        raise UsageError("--from lies in the future: the source has nothing there yet")
    options = audit.ReconcileOptions(start, min(end, now), settings.window, settings.workers)
    bucket = reader(settings, clock)
    with (
        stopping(clock),
        listing(settings, clock) as lister,
        audit_progress("reconciling") as progress,
    ):
        bucket.check_access()
        result = audit.reconcile(lister, bucket, options, progress)
    click.echo(audit.as_json(result) if as_json else audit.as_text(result), nl=False)
    return result.exit_code


@click.group()
def manifest() -> None:
    """What the archive says of calls, from sealed segments only."""


@manifest.command("list")
@range_options(required=True)
@click.option(
    "--outcome",
    type=click.Choice(["archived", "no_recording", "failed"]),
    help="only calls with this outcome",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "jsonl", "csv"]),
    default="table",
    show_default=True,
    help="jsonl prints the records' exact bytes",
)
def list_records(start: datetime, end: datetime, outcome: str | None, form: str) -> int:
    """The newest record of each call, window by window.

    What cannot be read is left out and named on stderr; then it exits with 1.
    """
    from archiver.audit import tables
    from archiver.audit.query import Query

    check_range(start, end)
    with reading() as (bucket, _):
        query = Query(bucket)
        rows = query.records(start, end, outcome)
        for text in tables.records_text(rows, form):  # type: ignore[arg-type]
            click.echo(text, nl=False)
    return _left_out(query.damages)


def _left_out(damages: Iterable[str]) -> int:
    """Print what could not be read. Returns the exit code: 1 if there is anything, else 0."""
    from archiver.audit.tables import printable

    code = 0
    for line in damages:
        click.echo(f"archiver: left out: {printable(line)}", err=True)
        code = 1
    return code


@manifest.command("show")
@click.argument("call_id")
@click.option("--json", "as_json", is_flag=True, help="a stable format for programs")
def show(call_id: str, as_json: bool) -> int:
    """One call: holds, all revisions, files, seal.

    Exits with 1 where the archive has none, and where something cannot be read: that is left out
    and named on stderr.
    """
    from archiver.audit import tables
    from archiver.audit.hold_ledger import have_records, holds_of
    from archiver.audit.query import Query
    from archiver.manifest import canonical

    with reading() as (bucket, _):
        query = Query(bucket)
        history = query.find(call_id)
        damages = query.damages
        why = "has no record of this call" + (" that can be read" if damages else "")
        if history is not None:
            history.holds, more = holds_of(bucket, call_id, history.objects)
            damages |= more
        elif not damages and have_records(bucket, [call_id]):
            why = "has this call's records hidden below delete markers: run archiver verify"
    if history is None:
        click.echo(f"archiver: the archive {why}", err=True)
        return _left_out(damages) or 1
    text = canonical.dump(history.document()).decode() if as_json else tables.history_text(history)
    click.echo(text, nl=False)
    return _left_out(damages)
