"""The command line: commands, options, exit codes.

Each command imports its modules when it runs, so that `--help` and `verify` start fast. Results go
to stdout, progress and logs to stderr. Every error is one line.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from archiver import __version__
from archiver.cli import audit, backfill, hold, run
from archiver.cli.common import INTERRUPTED, stop_early
from archiver.core.errors import ArchiverError, UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="archiver")
def cli() -> None:
    """Archives call recordings into S3-compatible storage, with a signed, append-only manifest.

    Settings are ARCHIVER_… environment variables: see config.example.env. T is a date or an
    RFC 3339 time, UTC unless it says otherwise.

    Exit codes: 0 done and it holds; 1 done, and something needs a person; 2 usage or settings;
    3 the source refused or is unreachable; 4 the store refused, is unreachable or is unsafe;
    130 interrupted.
    """


for verb in (
    run.demo,
    run.keygen,
    run.check,
    run.init,
    run.run,
    backfill.backfill,
    audit.reconcile,
    audit.verify,
    audit.manifest,
    hold.hold,
):
    cli.add_command(verb)


def main() -> NoReturn:
    """The console script. Does not return."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_early)
    atexit.register(_ignore_signals)  # the first that is registered runs last
    raise SystemExit(run_command(sys.argv[1:]))


def _ignore_signals() -> None:
    """Ignore signals from now on. After its last exit function, Python removes its signal handlers,
    and a repeated SIGTERM would kill the process, so its exit code would be lost."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line. Returns its exit code, and prints every error as one line."""
    try:
        code = cli.main(list(arguments), prog_name="archiver", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        advice = f" (see `{context.command_path} --help`)" if context else ""
        return _complain(error.format_message() + advice, UsageError.exit_code)
    except ArchiverError as error:
        return _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Without this, Python would flush stdout at its
        # exit and print a second BrokenPipeError.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _complain(_internal_error(error), 1)


def _complain(message: str, code: int) -> int:
    click.echo(f"archiver: {' '.join(message.split())}", err=True)
    return code


def _internal_error(error: Exception) -> str:
    """Return one line about a bug. At log level debug, print the traceback first."""
    import traceback

    from archiver.observability.logs import redact

    if os.environ.get("ARCHIVER_LOG_LEVEL", "").lower() == "debug":
        click.echo(redact("".join(traceback.format_exception(error))), err=True)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"internal error: {type(error).__name__} in {place.name}, line {place.lineno} of "
        f"{Path(place.filename).name}; run again with ARCHIVER_LOG_LEVEL=debug and report it"
    )
