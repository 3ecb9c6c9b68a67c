"""The command `backfill`: archives a date range, in one process or several."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING

import click

from archiver.cli.common import (
    check_range,
    log_level,
    range_options,
    shard_of,
    start_run,
    stopping,
    summary_line,
)
from archiver.core.errors import ArchiverError, UsageError

if TYPE_CHECKING:
    from archiver.core.clock import SystemClock
    from archiver.core.model import Window
    from archiver.pipeline.backfill_progress import BackfillProgress
    from archiver.pipeline.window import Totals
    from archiver.settings import Settings

MAX_PROCESSES = 64


@click.command()
@range_options(required=True)
@click.option(
    "--shard",
    type=shard_of,
    metavar="I/N",
    help="this process's share of the windows, I from 0 "
    "[default: $JOB_COMPLETION_INDEX/$ARCHIVER_SHARDS]",
)
@click.option(
    "--processes",
    type=click.IntRange(1, MAX_PROCESSES),
    default=1,
    show_default=True,
    help="share the windows out over so many processes, each with ARCHIVER_WORKERS; "
    "ARCHIVER_API_RATE holds for all together",
)
@click.option("--dry-run", is_flag=True, help="list and compare only; writes nothing")
@click.option("--single-writer", is_flag=True, help="accept a store without create-once writes")
@click.option("--report", is_flag=True, hidden=True, help="one of --processes: tell its parent")
def backfill(
    start: datetime,
    end: datetime,
    shard: tuple[int, int] | None,
    processes: int,
    dry_run: bool,
    single_writer: bool,
    report: bool,
) -> int:
    """Every window of a date range; tries calls that failed or had no recording again."""
    from archiver.core.model import format_time
    from archiver.observability.progress import backfill_progress
    from archiver.pipeline.backfill import range_windows
    from archiver.pipeline.processes import Reporter, end_with_parent, run_shares
    from archiver.settings import Settings, load
    from archiver.wiring import open_app

    check_range(start, end)
    if processes > 1 and single_writer:
        raise UsageError("--single-writer promises that there is one: leave out --processes")
    settings = load(Settings)
    clock = start_run(settings)
    now = clock.now()
    if start >= now:
        raise UsageError("--from lies in the future: there is nothing to archive yet")
    end = min(end, now)
    index, of = shard = shard or _job_shard()
    windows = range_windows(start, end, settings.window, shard)
    if dry_run:
        return _dry_run(settings, clock, windows)
    if report:  # no metrics: the processes would share one port
        reporter = Reporter()
        try:
            with stopping(clock):
                end_with_parent()
                totals, seal = _archive(settings, clock, windows, reporter)
        except ArchiverError as error:
            reporter.failed(error)
            return error.exit_code
        reporter.ended(totals, seal)
        return _exit_code(totals)
    count = min(processes, len(windows))
    with stopping(clock) as signals, backfill_progress(len(windows)) as progress:
        if count > 1:
            # The parent runs preflight and begins the archive, so that the processes do not
            # compete for seal 0.
            with open_app(settings, clock) as app:
                app.preflight()
                app.ensure_archive()
            clock.check()
            span = ["--from", format_time(start), "--to", format_time(end)]
            # Shard I/N is the union of the shards I/NC, (I+N)/NC, … of C processes.
            names = [f"{index + of * number}/{of * count}" for number in range(count)]
            totals, seal = run_shares(
                names,
                ["backfill", *span, "--report"],
                share_environment(settings, count),
                progress,
                lambda: signals,
            )
        else:
            with ExitStack() as stack:
                _serve_metrics(settings.metrics_port, stack)
                totals, seal = _archive(settings, clock, windows, progress, single_writer)
    return _print_result(totals, seal)


def _archive(
    settings: Settings,
    clock: SystemClock,
    windows: Sequence[Window],
    progress: BackfillProgress,
    single_writer: bool = False,
) -> tuple[Totals, int]:
    """Archive the windows. Returns the totals, and the number of the chain's newest seal."""
    from archiver.wiring import open_app

    with open_app(settings, clock, progress) as app:
        app.preflight()
        app.ensure_archive(single_writer=single_writer)
        return app.backfill(progress).run(windows), app.chain.head.seq


def _print_result(totals: Totals, seal: int) -> int:
    """Print the result. Returns the exit code."""
    click.echo(summary_line(totals, seal))
    young = totals.unsettled - totals.clock_wrong
    if young > 0:
        click.echo(
            f"{young} windows are not sealed yet: they end less than ARCHIVER_SETTLE "
            "ago. The loop seals them, or this command run again later."
        )
    return _exit_code(totals)


def _exit_code(totals: Totals) -> int:
    return 1 if totals.needs_a_person or totals.waiting else 0


def share_environment(settings: Settings, count: int) -> dict[str, str]:
    """Return the environment for one of `count` processes: our own, secrets included, with its
    share of ARCHIVER_API_RATE, and the log level, which depends on our terminal."""
    changes = {"ARCHIVER_LOG_LEVEL": log_level(settings)}
    if settings.api_rate is not None:
        changes["ARCHIVER_API_RATE"] = repr(settings.api_rate / count)
    return {**os.environ, **changes}


def _dry_run(settings: Settings, clock: SystemClock, windows: Sequence[Window]) -> int:
    """Print what a backfill would do, a line a day. Writes nothing; so it does not open the chain,
    which would complete a seal that a crash left incomplete."""
    from archiver.wiring import open_app

    days: dict[str, Counter[str]] = {}
    windows_with_errors = 0
    with stopping(clock), open_app(settings, clock) as app:
        app.preflight()
        for plan in app.backfill(None).plan(windows):
            windows_with_errors += plan is None or not plan.listed.complete
            if plan is not None:
                day = days.setdefault(plan.listed.window.start.date().isoformat(), Counter())
                day.update(windows=1, listed=len(plan.listed.calls), todo=plan.lacking)
    click.echo("day         windows  listed  to archive")
    total: Counter[str] = Counter()
    for counts in days.values():
        total.update(counts)
    for day_name, row in [*days.items(), ("total", total)]:
        click.echo(f"{day_name:10}  {row['windows']:7}  {row['listed']:6}  {row['todo']:10}")
    if windows_with_errors:
        click.echo(
            f"{windows_with_errors} windows could not be listed, or not wholly: the log says why"
        )
    return 1 if windows_with_errors else 0


def _job_shard() -> tuple[int, int]:
    index, count = os.environ.get("JOB_COMPLETION_INDEX"), os.environ.get("ARCHIVER_SHARDS")
    if not index:
        return 0, 1
    if not count:
        raise UsageError(
            "ARCHIVER_SHARDS must be set beside JOB_COMPLETION_INDEX, to the Job's completions: "
            "without it each pod would do the whole range"
        )
    return shard_of(f"{index}/{count}")


def _serve_metrics(port: int, stack: ExitStack) -> None:
    """Serve metrics until the stack closes. If the port is taken, for example by a running loop,
    the backfill continues without metrics."""
    import structlog

    from archiver.observability.server import Telemetry

    try:
        stack.callback(Telemetry(port, lambda: True, lambda: True).close)
    except UsageError as error:
        structlog.get_logger().warning("metrics.unavailable", error=str(error))
