"""`archiver demo`: the main job, end to end, on parts that it brings along.

Starts the simulated platform in this process and the S3 server as a child, then runs the real
commands as anybody would: keygen, backfill, verify. Everything lies in one directory and can be
brought back from there: the same calls, the same store, the same archive.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from archiver.demo.platform import ALL_SCOPES, Platform, make_calls
from archiver.demo.weed import REGION, Weed, free_ports, is_free, write_private
from archiver.errors import ArchiverError, UsageError
from archiver.model import format_time, parse_time

DEFAULT_DIRECTORY = Path("demo-archive")
BUCKET = "call-recordings"
DAYS = 2

_SETTLED = timedelta(hours=3)
"""By default a window is sealed two hours after its end: the demo's range ends before that."""
_OVERRIDING = ("ARCHIVER_", "AWS_", "BOTO_")
_CHILD_GRACE_SECONDS = 60.0


def run_demo(calls: int, directory: Path | None, keep: bool) -> int:
    """Archive `calls` simulated calls into `directory` and verify them; 0 if all of it holds.

    In a directory of an earlier demo its archive goes on, with the calls that it had. `keep`
    leaves source and store up until SIGINT or SIGTERM. A child's exit code other than 0 is passed
    on; a signal gives 130. Raises `UsageError` or `StoreError` where the demo cannot run. Source
    and store are down again when it returns.
    """
    directory = directory or DEFAULT_DIRECTORY
    try:
        with _signals():
            return _run(_Home.open(directory, calls), calls, keep)
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from here")
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"{error.filename or directory}: {error.strerror}") from None


@dataclass
class _Home:
    """The directory of a demo, and what a later demo there needs to know."""

    directory: Path
    calls: int
    start: str
    end: str
    api_port: int
    blob_port: int
    token: str

    @classmethod
    def open(cls, directory: Path, calls: int) -> _Home:
        """Read `demo.json`, or begin one in an empty directory."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "demo.json"
        if not file.exists():
            if any(directory.iterdir()):
                raise UsageError(f"{directory} has other things in it: give --dir an empty one")
            home = cls(directory, calls, *_range(), 0, 0, f"demo-{secrets.token_urlsafe(24)}")
            home.save()
            return home
        try:
            return cls(directory, **json.loads(file.read_text()))
        except (ValueError, TypeError):
            raise UsageError(f"{file} is damaged: give --dir another directory") from None

    def save(self) -> None:
        state = {name: value for name, value in asdict(self).items() if name != "directory"}
        write_private(self.directory / "demo.json", json.dumps(state, indent=1) + "\n")

    def platform(self) -> Platform:
        """The same calls as ever, on the same ports if they are still free."""
        if not (self.api_port and is_free(self.api_port) and is_free(self.blob_port)):
            self.api_port, self.blob_port = free_ports(2)
            self.save()
        start, end = parse_time(self.start), parse_time(self.end)
        if start is None or end is None:
            raise UsageError(f"{self.directory / 'demo.json'} is damaged")
        return Platform(
            make_calls(self.calls, start, end),
            api_port=self.api_port,
            blob_port=self.blob_port,
            tokens={self.token: ALL_SCOPES},
        )

    @property
    def key_file(self) -> Path:
        return self.directory / "signing-key.pem"

    @property
    def env_file(self) -> Path:
        return self.directory / "demo.env"

    @property
    def range(self) -> tuple[str, str, str, str]:
        return ("--from", self.start, "--to", self.end)


def _range() -> tuple[str, str]:
    end = (datetime.now(UTC) - _SETTLED).replace(hour=0, minute=0, second=0, microsecond=0)
    return format_time(end - timedelta(days=DAYS)), format_time(end)


def _run(home: _Home, asked_calls: int, keep: bool) -> int:
    if home.calls != asked_calls:
        _say(f"{home.directory} was made with --calls {home.calls}: that stays.", dim=True)
    _say("Starting a simulated voice-bot platform and a real S3 server (SeaweedFS) …", dim=True)
    with home.platform() as platform, Weed(home.directory / "store") as store:
        store.create_bucket(BUCKET, object_lock=True)
        settings = _settings(home, platform, store)
        _write_env_file(home.env_file, settings)
        shell = _Shell(settings)
        _say(f"$ source {shlex.quote(str(home.env_file))}", bold=True)
        code = _archive_and_verify(home, shell)
        if code == 0:
            code = _tell(home, platform, shell, keep)
        if keep and code == 0:
            _wait(platform, store)
    return code


def _archive_and_verify(home: _Home, shell: _Shell) -> int:
    """The commands of the demo, up to the first that does not end with 0."""
    commands = [
        ["backfill", *home.range],
        ["verify", "--level", "bytes"],
    ]
    if not home.key_file.exists():
        commands.insert(0, ["keygen", "--out", str(home.key_file)])
    for command in commands:
        code = shell.run(*command)
        if code != 0:
            _complain(f"`archiver {command[0]}` ended with {code}, so the demo ends here.")
            return code
    return 0


# --- the commands


class _Shell:
    """Runs archiver's commands as a person would, in an environment of the demo's own."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_OVERRIDING)}
        # No file of this user's may send the demo to another store, or sign with other keys.
        nothing = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        self._environment = {**kept, **nothing, **settings}

    def run(self, *arguments: str) -> int:
        """Show the command line, run it on this terminal, return its exit code."""
        _say(f"$ archiver {shlex.join(arguments)}", bold=True)
        child = subprocess.Popen(self._command(arguments), env=self._environment)
        return _result(child)

    def read(self, *arguments: str) -> str:
        """What a command says on stdout, its progress unseen. Raises `ArchiverError` where it
        fails, with what it said on stderr."""
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complaint:
            child = subprocess.Popen(
                self._command(arguments), env=self._environment, stdout=said, stderr=complaint
            )
            code = _result(child)
            said.seek(0)
            complaint.seek(0)
            if code != 0:
                last = complaint.read().strip().rpartition("\n")[2]
                raise ArchiverError(f"`archiver {arguments[0]}` ended with {code}: {last}")
            return said.read()

    @staticmethod
    def _command(arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "archiver", *arguments]


def _result(child: subprocess.Popen[Any]) -> int:
    """Wait for a child; told to end, let it end in its own way first."""
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(_CHILD_GRACE_SECONDS)
        except BaseException:
            child.kill()
            child.wait()
        raise
    # A child that died of a signal counts as a shell counts it.
    return code if code >= 0 else 128 - code


def _settings(home: _Home, platform: Platform, store: Weed) -> dict[str, str]:
    loopback = "127.0.0.1,localhost"
    unproxied = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    return {
        "ARCHIVER_API_BASE_URL": platform.api_url,
        "ARCHIVER_API_TOKEN": home.token,
        "ARCHIVER_RECORDING_HOSTS": platform.blob_host,
        "ARCHIVER_ALLOW_HTTP": "true",
        "ARCHIVER_S3_ENDPOINT_URL": store.endpoint_url,
        "ARCHIVER_S3_REGION": REGION,
        "ARCHIVER_S3_BUCKET": BUCKET,
        "ARCHIVER_OBJECT_LOCK_MODE": "GOVERNANCE",
        "ARCHIVER_RETENTION_DAYS": "30",
        "ARCHIVER_SIGNING_KEY_FILE": str(home.key_file.absolute()),
        "ARCHIVER_METRICS_PORT": "0",
        "ARCHIVER_LOG_FORMAT": "console",
        **store.environment,
        # Both: where both are set, Python heeds the second.
        "NO_PROXY": f"{unproxied},{loopback}" if unproxied else loopback,
        "no_proxy": f"{unproxied},{loopback}" if unproxied else loopback,
    }


def _write_env_file(file: Path, settings: Mapping[str, str]) -> None:
    """Settings as a shell reads them; private, for the credentials in it."""
    lines = [
        "# Made by `archiver demo`: settings to source while it runs with --keep.",
        "unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3",
        *(f"export {name}={shlex.quote(value)}" for name, value in settings.items()),
    ]
    write_private(file, "\n".join(lines) + "\n")


# --- what is said in the end


def _tell(home: _Home, platform: Platform, shell: _Shell, keep: bool) -> int:
    """The summary; 1 if the archive does not have every call that it should."""
    audit = json.loads(shell.read("verify", "--level", "manifest", "--json"))
    counts, head = audit["counts"], audit["head"]
    calls: dict[str, int] = counts["calls"]
    due = sum(call.state == "Completed" for call in platform.calls)
    rest = len(platform.calls) - due
    _say("")
    _say("What was archived", bold=True)
    _say(
        f"  {calls['archived']} calls archived, {calls['no_recording']} without a recording, "
        f"{calls['failed']} failed" + (f"; {rest} still in progress, so not due" if rest else "")
    )
    size = f"{counts['bytes'] / 1e6:.1f} MB in {counts['files']} files"
    _say(f"  {size}, under Object Lock, each byte verified")
    _say(f"  {counts['seals']} seals; the chain's head is {head['seq']}:{head['sha256']}")
    _say("Where it is", bold=True)
    size = f"{_megabytes(home.directory):.0f} MB"
    _say(f"  {home.directory}/  {size} on disk, where the store compresses")
    _say(f"  s3://{BUCKET} while the store is up; settings in {home.env_file}")
    _suggest(home, _example(platform), f"{head['seq']}:{head['sha256']}", keep)
    if sum(calls.values()) != due or platform.violations:
        for violation in platform.violations:
            _complain(f"the platform objects: {violation}")
        _complain(f"{sum(calls.values())} calls have a record, {due} should")
        return 1
    return 0


def _suggest(home: _Home, call_id: str, head: str, keep: bool) -> None:
    command = _runnable_command()
    directory = shlex.quote(str(home.directory))
    _say("What to try next", bold=True)
    if keep:
        _say(f"  Source and store stay up until Ctrl-C. In another terminal, in {Path.cwd()}:")
    else:
        _say("  Source and store end here. To bring them back (archiving again does nothing):")
        _say(f"    {command} demo --dir {directory} --keep")
        _say("  and then, in another terminal:")
    _say(f"    source {shlex.quote(str(home.env_file))}")
    _say(f"    {command} manifest list {shlex.join(home.range)}")
    _say(f"    {command} manifest show {call_id}")
    _say(f"    {command} verify --level bytes --head {head}")


def _example(platform: Platform) -> str:
    """A call that has everything."""
    return next(
        (call.id for call in platform.calls if call.recording is not None and call.epa),
        platform.calls[0].id,
    )


def _runnable_command() -> str:
    """How this user can call archiver from here: by name if that is this one, else by path."""
    script = Path(sys.argv[0])
    if script.name != "archiver" or not script.is_file():
        return f"{shlex.quote(sys.executable)} -m archiver"
    found = shutil.which("archiver")
    if found is not None and Path(found).samefile(script):
        return "archiver"
    relative = os.path.relpath(script)
    return shlex.quote(str(script.absolute()) if relative.startswith("..") else relative)


def _megabytes(directory: Path) -> float:
    """What a directory takes on disk: blocks, because the store's files have holes."""
    return sum(file.lstat().st_blocks * 512 for file in directory.rglob("*")) / 1e6


def _wait(platform: Platform, store: Weed) -> None:
    _say("Up until Ctrl-C", bold=True)
    _say(f"  source  {platform.api_url}")
    _say(f"  store   {store.endpoint_url}")
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        _say("Ending.", dim=True)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does; once it is ending, nothing hurries it, so
    that no server is left behind."""
    came: list[int] = []

    def handle(number: int, _frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str, *, bold: bool = False, dim: bool = False) -> None:
    click.secho(line, bold=bold or None, dim=dim or None)
    sys.stdout.flush()


def _complain(line: str) -> None:
    click.echo(f"archiver: {line}", err=True)
