"""The verb for a date range, in one process or in several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import click

from archiver.cli.common import (
    Shard,
    check_range,
    log_level,
    range_options,
    start_run,
    stopping,
    told,
)
from archiver.core.errors import UsageError

if TYPE_CHECKING:
    from archiver.core.clock import SystemClock
    from archiver.core.model import Window
    from archiver.pipeline.backfill import Summary
    from archiver.pipeline.ports import Progress
    from archiver.pipeline.processes import Shares
    from archiver.settings import Settings

MAX_PROCESSES = 64


@click.command()
@range_options(required=True)
@click.option(
    "--shard",
    type=Shard(),
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
    from archiver.observability.progress import backfill_progress
    from archiver.pipeline.backfill import range_windows
    from archiver.settings import Settings, load

    check_range(start, end)
    if processes > 1 and single_writer:
        raise UsageError("--single-writer promises that there is one: leave out --processes")
    settings = load(Settings)
    clock = start_run(settings)
    now = clock.now()
    if start >= now:
        raise UsageError("--from lies in the future: there is nothing to archive yet")
    shard = shard or _job_shard()
    windows = range_windows(start, min(end, now), settings.window, shard)
    if dry_run:
        return _dry_run(settings, clock, windows)
    if report:
        return _report(settings, clock, windows)
    count = min(processes, len(windows))
    with stopping(clock) as came, backfill_progress(len(windows)) as progress:
        if count > 1:
            _begin(settings, clock)
            with _started(settings, (start, min(end, now)), shard, count, progress) as shares:
                shares.wait(lambda: came)
            summary, seal = shares.result()
        else:
            with _metrics_if_free(settings.metrics_port):
                summary, seal = _archive(settings, clock, windows, progress, single_writer)
    return _tell(summary, seal)


def _archive(
    settings: Settings,
    clock: SystemClock,
    windows: Sequence[Window],
    progress: Progress,
    single_writer: bool = False,
) -> tuple[Summary, int]:
    """What was done, and the chain's newest seal."""
    from archiver.wiring import open_app

    with open_app(settings, clock, progress) as app:
        app.preflight()
        app.ensure_archive(single_writer=single_writer)
        return app.backfill(progress).run(windows), app.chain.head.seq


def _tell(summary: Summary, seal: int) -> int:
    click.echo(told(summary, seal))
    young = summary.unsettled - summary.clock_wrong
    if young > 0:
        click.echo(
            f"{young} windows are not sealed yet: they end less than ARCHIVER_SETTLE "
            "ago. The loop seals them, or this command run again later."
        )
    return 1 if summary.needs_a_person or summary.waiting else 0


# --- several processes


def _begin(settings: Settings, clock: SystemClock) -> None:
    """What is done once: access is asked for, and the archive begun. Two processes that begin one
    at the same moment only hinder each other."""
    from archiver.wiring import open_app

    with open_app(settings, clock) as app:
        app.preflight()
        app.ensure_archive()
    clock.check()


@contextmanager
def _started(
    settings: Settings,
    span: tuple[datetime, datetime],
    shard: tuple[int, int],
    count: int,
    progress: Progress,
) -> Iterator[Shares]:
    """`count` processes, each with a share of this process's own share of the windows."""
    from archiver.core.model import format_time
    from archiver.pipeline.processes import Shares

    index, of = shard
    span_options = ["--from", format_time(span[0]), "--to", format_time(span[1])]
    environment = share_environment(settings, count)
    shares = Shares(progress)
    try:
        for number in range(count):
            name = f"{index + of * number}/{of * count}"
            options = [*span_options, "--shard", name, "--report"]
            shares.start(name, ["backfill", *options], environment)
        yield shares
    finally:
        shares.close()


def share_environment(settings: Settings, count: int) -> dict[str, str]:
    """Our own, secrets and all, but for what `count` processes share or cannot see themselves."""
    changes = {"ARCHIVER_LOG_LEVEL": log_level(settings)}
    if settings.api_rate is not None:
        changes["ARCHIVER_API_RATE"] = repr(settings.api_rate / count)
    return {**os.environ, **changes}


def _report(settings: Settings, clock: SystemClock, windows: Sequence[Window]) -> int:
    """A share: what `Shares` listens to. No metrics: there is one port, and several of us."""
    from archiver.pipeline.processes import Reporter, end_with_parent

    reporter = Reporter(1)
    with stopping(clock):
        end_with_parent()
        summary, seal = _archive(settings, clock, windows, reporter)
    reporter.ended(summary, seal)
    return 1 if summary.needs_a_person or summary.waiting else 0


# --- the rest


def _dry_run(settings: Settings, clock: SystemClock, windows: Sequence[Window]) -> int:
    """What a backfill would do, a line a day; writes nothing, so the chain is not opened: that
    would complete what a crash left."""
    from archiver.wiring import open_app

    days: dict[str, list[int]] = {}
    harmed = 0
    with stopping(clock), open_app(settings, clock) as app:
        app.preflight()
        for plan in app.backfill(None).plan(windows):
            harmed += plan is None or not plan.listed.complete
            if plan is None:
                continue
            row = days.setdefault(plan.listed.window.start.date().isoformat(), [0, 0, 0])
            for column, count in enumerate((1, len(plan.listed.calls), plan.lacking)):
                row[column] += count
    click.echo("day         windows  listed  to archive")
    for day, (count, listed, todo) in days.items():
        click.echo(f"{day}  {count:7}  {listed:6}  {todo:10}")
    total = [sum(row[column] for row in days.values()) for column in range(3)]
    click.echo(f"total       {total[0]:7}  {total[1]:6}  {total[2]:10}")
    if harmed:
        click.echo(f"{harmed} windows could not be listed, or not wholly: the log says why")
    return 1 if harmed else 0


def _job_shard() -> tuple[int, int]:
    index, count = os.environ.get("JOB_COMPLETION_INDEX"), os.environ.get("ARCHIVER_SHARDS")
    if not index:
        return 0, 1
    if not count:
        raise UsageError(
            "ARCHIVER_SHARDS must be set beside JOB_COMPLETION_INDEX, to the Job's completions: "
            "without it each pod would do the whole range"
        )
    return Shard().convert(f"{index}/{count}", None, None)


@contextmanager
def _metrics_if_free(port: int) -> Iterator[None]:
    """A backfill beside a running loop goes on without its own metrics."""
    import structlog

    from archiver.observability.server import Telemetry

    try:
        telemetry = Telemetry(port, lambda: True, lambda: True)
    except UsageError as error:
        structlog.get_logger().warning("metrics.unavailable", error=str(error))
        yield
        return
    try:
        yield
    finally:
        telemetry.close()
