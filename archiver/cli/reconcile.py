"""The verb that lists the source again. It writes nothing, and needs no signing key."""

from __future__ import annotations

from datetime import datetime

import click

from archiver.cli.common import check_range, range_options, start_run, stopping
from archiver.core.errors import UsageError


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
    options = audit.Options(start, min(end, now), settings.window, settings.workers)
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
