"""The commands that begin an archive and keep it up to date, and `demo`."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import click

from archiver.cli.common import check_key_log, start_run, stopping, summary_line
from archiver.core.errors import UsageError


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
@click.option(
    "--bucket",
    metavar="NAME",
    help="archive into this bucket of yours, not into the embedded S3 server",
)
def demo(calls: int, directory: Path | None, keep: bool, bucket: str | None) -> int:
    """The main job on embedded parts, with nothing to configure.

    A simulated source with signed, expiring URLs, and a real S3 server. The container image has no
    S3 server: there --bucket NAME takes a bucket of a store that you have, which the environment
    describes: ARCHIVER_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID and the like.
    """
    from archiver.demo.run import run_demo

    check_key_log()
    return run_demo(calls, directory, keep, bucket)


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
    from archiver.settings import Settings, load
    from archiver.wiring import open_app

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
    from archiver.core.clock import Interrupted
    from archiver.observability.server import Telemetry
    from archiver.settings import Settings, load
    from archiver.wiring import open_app

    settings = load(Settings)
    clock = start_run(settings)
    ready = threading.Event()
    # A call that waits for longer would be given up.
    longest_pause = settings.give_up.total_seconds()
    with (
        stopping(clock) as signals,
        open_app(settings, clock, longest_pause_seconds=longest_pause) as app,
    ):
        telemetry = Telemetry(settings.metrics_port, app.is_alive, ready.is_set)
        try:
            app.preflight()
            app.ensure_archive(single_writer=single_writer)
            ready.set()
            loop = app.loop()
            if not once:
                loop.run_forever()
            totals = loop.round()
        except Interrupted:
            if signal.SIGTERM in signals:
                return 0
            raise
        finally:
            telemetry.close()
    click.echo(summary_line(totals, app.chain.head.seq))
    return 1 if totals.needs_a_person else 0
