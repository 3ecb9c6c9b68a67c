"""The verbs that begin and fill an archive."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from archiver.cli.common import Shard, check_range, range_options, start_run, stopping
from archiver.errors import UsageError


@click.command()
@click.option(
    "--calls",
    type=click.IntRange(1, 5000),
    default=60,
    show_default=True,
    help="how many calls the simulated source has",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="where the archive stays on disk [default: demo-archive]",
)
@click.option("--keep", is_flag=True, help="leave source and store up until Ctrl-C")
def demo(calls: int, directory: Path | None, keep: bool) -> int:
    """The main job on embedded parts, with nothing to configure.

    A simulated source with signed, expiring URLs, and a real S3 server.
    """
    from archiver.demo.run import run_demo

    return run_demo(calls, directory, keep)


@click.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="the file to make; an existing one is never touched",
)
def keygen(out: Path) -> int:
    """Make a signing key; prints the public key."""
    from archiver.manifest.signing import SigningKey

    key = SigningKey.generate()
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.pem)
    except FileExistsError:
        raise UsageError(f"{out} exists: a signing key is never overwritten") from None
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror})") from None
    click.echo(f"key id {key.public.key_id}, private key in {out}", err=True)
    click.echo(key.public.pem.decode(), nl=False)
    return 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="a stable format for programs")
def check(as_json: bool) -> int:
    """Preflight: settings, source, both scopes, clocks, and what the store really does."""
    import json

    from archiver import preflight
    from archiver.settings import Settings, load

    settings = load(Settings)
    lines = preflight.check(settings, start_run(settings))
    if as_json:
        click.echo(json.dumps([line.document() for line in lines], sort_keys=True))
    else:
        click.echo("\n".join(preflight.table(lines)))
    return next((line.exit_code for line in lines if not line.ok), 0)


@click.command()
@click.option("--single-writer", is_flag=True, help="accept a store without create-once writes")
def init(single_writer: bool) -> int:
    """Seal 0, the public key and the verifier's page into an empty archive."""
    from archiver.app import open_app
    from archiver.settings import Settings, load

    settings = load(Settings)
    with open_app(settings, start_run(settings)) as app:
        app.bucket.check_access()
        begun = app.ensure_archive(single_writer=single_writer)
        head = app.chain.head
    what = "begun" if begun else f"there already, at seal {head.seq}"
    click.echo(f"archive {head.archive}: {what}; signed with key {head.key_id}")
    return 0


@click.command()
@click.option("--once", is_flag=True, help="one round, then end")
@click.option("--single-writer", is_flag=True, help="accept a store without create-once writes")
def run(once: bool, single_writer: bool) -> int:
    """The loop: archive what completes, seal what has settled."""
    from archiver.app import open_app
    from archiver.clock import Interrupted
    from archiver.pipeline.service import Heartbeat
    from archiver.settings import Settings, load
    from archiver.telemetry import Telemetry

    settings = load(Settings)
    clock = start_run(settings)
    ready, heartbeat = threading.Event(), Heartbeat(clock)
    with stopping(clock) as came, open_app(settings, clock) as app:
        telemetry = Telemetry(settings.metrics_port, lambda: app.is_alive(heartbeat), ready.is_set)
        try:
            app.preflight()
            app.ensure_archive(single_writer=single_writer)
            ready.set()
            service = app.service(heartbeat)
            if not once:
                service.run_forever()
            summary = service.round()
        except Interrupted:
            if signal.SIGTERM in came:
                return 0
            raise
        finally:
            telemetry.close()
    click.echo(_told(summary, app.chain.head.seq))
    return 1 if summary.needs_a_person else 0


@click.command()
@range_options(required=True)
@click.option(
    "--shard",
    type=Shard(),
    help="this process's share of the windows, I from 0 "
    "[default: $JOB_COMPLETION_INDEX/$ARCHIVER_SHARDS]",
)
@click.option("--dry-run", is_flag=True, help="list and compare only; writes nothing")
@click.option("--single-writer", is_flag=True, help="accept a store without create-once writes")
def backfill(
    start: datetime,
    end: datetime,
    shard: tuple[int, int] | None,
    dry_run: bool,
    single_writer: bool,
) -> int:
    """Every window of a date range; tries calls that failed or had no recording again."""
    from archiver.app import open_app
    from archiver.pipeline.backfill import range_windows
    from archiver.progress import watching
    from archiver.settings import Settings, load

    check_range(start, end)
    settings = load(Settings)
    clock = start_run(settings)
    now = clock.now()
    if start >= now:
        raise UsageError("--from lies in the future: there is nothing to archive yet")
    windows = range_windows(start, min(end, now), settings.window, shard or _job_shard())
    with (
        stopping(clock),
        watching(len(windows)) as progress,
        open_app(settings, clock, progress) as app,
        _metrics_if_free(settings.metrics_port),
    ):
        app.preflight()
        if dry_run:
            return _dry_run(app, windows)
        app.ensure_archive(single_writer=single_writer)
        summary = app.backfill(progress).run(windows)
    click.echo(_told(summary, app.chain.head.seq))
    if summary.unsettled:
        click.echo(
            f"{summary.unsettled} windows are not sealed yet: they end less than ARCHIVER_SETTLE "
            "ago. The loop seals them, or this command run again later."
        )
    return 1 if summary.needs_a_person or summary.waiting else 0


def _dry_run(app: Any, windows: Sequence[Any]) -> int:
    """What a backfill would do, a line a day; writes nothing, so the chain is not opened: that
    would complete what a crash left."""
    days: dict[str, list[int]] = {}
    for plan in app.backfill(None).plan(windows):
        row = days.setdefault(plan.listed.window.start.date().isoformat(), [0, 0, 0])
        for column, count in enumerate((1, len(plan.listed.calls), plan.lacking)):
            row[column] += count
    click.echo("day         windows  listed  to archive")
    for day, (count, listed, todo) in days.items():
        click.echo(f"{day}  {count:7}  {listed:6}  {todo:10}")
    total = [sum(row[column] for row in days.values()) for column in range(3)]
    click.echo(f"total       {total[0]:7}  {total[1]:6}  {total[2]:10}")
    return 0


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

    from archiver.telemetry import Telemetry

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


def _told(summary: Any, seal: int) -> str:
    """A run's result in a line."""
    counts = ", ".join(
        f"{summary.committed.get(outcome, 0)} {outcome.replace('_', ' ')}"
        for outcome in ("archived", "no_recording", "failed")
    )
    retried = summary.failed - summary.committed.get("failed", 0)
    again = f", {retried} failed as before" if retried else ""
    stuck = f", {summary.stuck} WINDOWS STAY OPEN (see the log)" if summary.stuck else ""
    waiting = f", {summary.waiting} waiting in open windows" if summary.waiting else ""
    return (
        f"{summary.windows} windows, {summary.closed} closed: {counts}{again}, "
        f"{summary.pending} pending{waiting}{stuck}; {summary.bytes / 1e6:,.1f} MB written; "
        f"the chain stands at seal {seal}"
    )
