"""`archiver demo`: archives and verifies simulated calls, with nothing to configure.

It starts the simulated platform in this process and the S3 server as a child process, then runs the
real commands: keygen, backfill, verify. All state is in one directory. A later demo in the same
directory continues with the same calls, the same store and the same archive.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from archiver.core.errors import UsageError
from archiver.core.model import format_time
from archiver.demo.calls import make_calls
from archiver.demo.platform import Platform
from archiver.demo.store import embedded_store, find_binary, free_port, is_free, write_private

DEFAULT_DIRECTORY = Path("demo-archive")
DAYS = 2

_SETTLED = timedelta(hours=3)
"""The demo's range ends at least so long ago, so that all windows can be sealed at once: the
default of ARCHIVER_SETTLE is two hours."""
_STORE_SETTINGS = ("ARCHIVER_S3_", "ARCHIVER_OBJECT_LOCK_MODE", "ARCHIVER_RETENTION_DAYS")
_CHILD_GRACE_SECONDS = 60.0


def run_demo(calls: int, directory: Path | None, keep: bool, bucket: str | None = None) -> int:
    """Archive `calls` simulated calls and verify them. Returns 0 if everything succeeds.

    The archive is in `bucket`, in the store that the environment describes; without `bucket`, in
    an embedded store below `directory`. In the directory of an earlier demo, `calls` is ignored and
    its archive continues with its own calls. With `keep`, source and store run until a signal.
    Source and store have ended when it returns. Returns the exit code of a command that fails, or
    130 after a signal. Raises `UsageError` or `StoreError` if the demo cannot run.
    """
    directory = directory or DEFAULT_DIRECTORY
    if bucket is None:
        find_binary()  # raises if it is not installed, before any file is written
    try:
        with _signals(), ExitStack() as stack:
            saved = _open(directory, calls)
            if saved.calls != calls:
                _say(f"{directory} was made with --calls {saved.calls}: that stays.", dim=True)
            also = " and a real S3 server (SeaweedFS)" if bucket is None else ""
            _say(f"Starting a simulated voice-bot platform{also} …", dim=True)
            start, end = map(datetime.fromisoformat, (saved.start, saved.end))
            source = make_calls(saved.calls, start, end)
            platform = stack.enter_context(Platform(source, saved.token, saved.port))
            if bucket is None:
                store = stack.enter_context(embedded_store(directory / "store"))
            else:
                given = {k: v for k, v in os.environ.items() if k.startswith(_STORE_SETTINGS)}
                store = {**given, "ARCHIVER_S3_BUCKET": bucket}
            return _Demo(directory, saved, platform, store, is_own=bucket is None).run(keep)
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from here")
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"{error.filename or directory}: {error.strerror}") from None


@dataclass
class _Saved:
    """The content of `demo.json`: what a later demo in the same directory needs."""

    calls: int
    start: str
    end: str
    token: str
    port: int = 0


def _open(directory: Path, calls: int) -> _Saved:
    """Read `demo.json`, or create it in an empty directory. Chooses another port if the saved one
    is not free."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "demo.json"
    if file.exists():
        try:
            saved = _Saved(**json.loads(file.read_text()))
            for moment in (saved.start, saved.end):
                datetime.fromisoformat(moment)
        except (ValueError, TypeError):
            raise UsageError(f"{file} is damaged: give --dir another directory") from None
    elif any(directory.iterdir()):
        raise UsageError(f"{directory} has other things in it: give --dir an empty one")
    else:
        end = (datetime.now(UTC) - _SETTLED).replace(hour=0, minute=0, second=0, microsecond=0)
        start = end - timedelta(days=DAYS)
        token = secrets.token_urlsafe(24)
        saved = _Saved(calls, format_time(start), format_time(end), token)
    if not (saved.port and is_free(saved.port)):
        saved.port = free_port()
    write_private(file, json.dumps(asdict(saved), indent=1) + "\n")
    return saved


class _Demo:
    """Runs archiver's commands as a person would, in an environment of its own. `store` has the
    settings for the bucket. `is_own` means that the store is the embedded one."""

    def __init__(
        self,
        directory: Path,
        saved: _Saved,
        platform: Platform,
        store: dict[str, str],
        *,
        is_own: bool,
    ) -> None:
        self._directory = directory
        self._platform = platform
        self._is_own = is_own
        self._bucket = store["ARCHIVER_S3_BUCKET"]
        self._range = ("--from", saved.start, "--to", saved.end)
        self._key_file = directory / "signing-key.pem"
        self._env_file = directory / "demo.env"
        unproxied = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
        no_proxy = ",".join(filter(None, (unproxied, "127.0.0.1", "localhost")))
        self._settings = {
            "ARCHIVER_API_BASE_URL": platform.api_url,
            "ARCHIVER_API_TOKEN": saved.token,
            "ARCHIVER_RECORDING_HOSTS": platform.host,
            "ARCHIVER_ALLOW_HTTP": "true",
            "ARCHIVER_SIGNING_KEY_FILE": str(self._key_file.absolute()),
            "ARCHIVER_METRICS_PORT": "0",
            "ARCHIVER_LOG_FORMAT": "console",
            **store,
            # Both spellings: if both are set, Python uses the lower-case one.
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }
        dropped: tuple[str, ...] = ("ARCHIVER_",)
        nothing: dict[str, str] = {}
        if is_own:
            # Variables and files of the user must not send the demo to another store.
            dropped += ("AWS_", "BOTO_")
            nothing = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        self._environment = {**kept, **nothing, **self._settings}

    def run(self, keep: bool) -> int:
        """Run the commands, up to the first that fails, and print the summary. Returns the exit
        code."""
        lines = ["# Made by `archiver demo`: settings to source while it runs with --keep."]
        if self._is_own:
            lines.append("unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3")
        lines += [f"export {name}={shlex.quote(text)}" for name, text in self._settings.items()]
        write_private(self._env_file, "\n".join(lines) + "\n")
        _say(f"$ source {shlex.quote(str(self._env_file))}", bold=True)
        commands = [["backfill", *self._range], ["verify", "--level", "bytes"]]
        if not self._key_file.exists():
            commands.insert(0, ["keygen", "--out", str(self._key_file)])
        for command in commands:
            _say(f"$ archiver {shlex.join(command)}", bold=True)
            code = self._wait(command)
            if code != 0:
                _complain(f"`archiver {command[0]}` ended with {code}, so the demo ends here.")
                return code
        code = self._summarize(keep)
        if keep and code == 0:
            _say("Up until Ctrl-C", bold=True)
            _say(f"  source  {self._platform.api_url}")
            _say(f"  store   {self._settings.get('ARCHIVER_S3_ENDPOINT_URL', 'AWS')}")
            try:
                while True:
                    signal.pause()
            except KeyboardInterrupt:
                _say("Ending.", dim=True)
        return code

    def _summarize(self, keep: bool) -> int:
        """Print what was archived, where it is, and what to try next. Returns 1 if the archive
        lacks a call."""
        with tempfile.TemporaryFile("w+") as out:
            code = self._wait(["verify", "--level", "manifest", "--json"], stdout=out)
            if code != 0:
                return code
            out.seek(0)
            report = json.load(out)
        counts, head = report["counts"], f"{report['head']['seq']}:{report['head']['sha256']}"
        archived: dict[str, int] = counts["calls"]
        calls = self._platform.calls.values()
        due = sum(call.is_completed for call in calls)
        rest = len(calls) - due
        locked = self._settings.get("ARCHIVER_OBJECT_LOCK_MODE", "none") != "none"
        _say("")
        _say("What was archived", bold=True)
        _say(
            f"  {archived['archived']} calls archived, {archived['no_recording']} without a "
            f"recording, {archived['failed']} failed"
            + (f"; {rest} still in progress, so not due" if rest else "")
        )
        size = f"{counts['bytes'] / 1e6:.1f} MB in {counts['files']} files"
        _say(f"  {size}, {'under Object Lock, ' if locked else ''}each byte verified")
        _say(f"  {counts['seals']} seals; the chain's head is {head}")
        _say("Where it is", bold=True)
        if self._is_own:
            blocks = sum(file.lstat().st_blocks for file in self._directory.rglob("*"))
            _say(f"  {self._directory}/  {blocks * 512 / 1e6:.0f} MB on disk: the store compresses")
        while_up = " while the store is up" if self._is_own else ""
        _say(f"  s3://{self._bucket}{while_up}; settings in {self._env_file}")
        _say("What to try next", bold=True)
        command = _runnable_command()
        if keep:
            _say(f"  Source and store stay up until Ctrl-C. In another terminal, in {Path.cwd()}:")
        else:
            again = ["demo", "--dir", str(self._directory)]
            again += [] if self._is_own else ["--bucket", self._bucket]
            _say("  Source and store end here. To bring them back (archiving again does nothing):")
            _say(f"    {command} {shlex.join(again)} --keep")
            _say("  and then, in another terminal:")
        _say(f"    source {shlex.quote(str(self._env_file))}")
        _say(f"    {command} manifest list {shlex.join(self._range)}")
        for example in [call for call in calls if call.survey][:1]:
            _say(f"    {command} manifest show {example.id}")
        _say(f"    {command} verify --level bytes --head {head}")
        if sum(archived.values()) != due:
            _complain(f"{sum(archived.values())} calls have a record, {due} should")
            return 1
        return 0

    def _wait(self, arguments: list[str], **streams: Any) -> int:
        """Run a command on this terminal. Returns its exit code. If the demo is interrupted, the
        command gets a SIGTERM and time for a clean end first."""
        command = [sys.executable, "-m", "archiver", *arguments]
        child = subprocess.Popen(command, env=self._environment, **streams)
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
        # As in a shell, a child killed by signal n has the exit code 128 + n.
        return code if code >= 0 else 128 - code


def _runnable_command() -> str:
    """Return the command with which the user can call this archiver: its name if that is on the
    PATH, else its path."""
    script = Path(sys.argv[0])
    if script.name != "archiver" or not script.is_file():
        return f"{shlex.quote(sys.executable)} -m archiver"
    found = shutil.which("archiver")
    if found is not None and Path(found).samefile(script):
        return "archiver"
    relative = os.path.relpath(script)
    return shlex.quote(str(script.absolute()) if relative.startswith("..") else relative)


@contextmanager
def _signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for SIGTERM and SIGHUP too. Ignore further signals, so that the
    demo always ends its servers."""
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
