"""Who takes part, and the command of each: whole processes, as a person would start them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.cases import END, START, Case
from bench.servers import BUILT, ROOT, Sink, Source

OURS, PEERS = ROOT / ".venv" / "bin", BUILT / "venv" / "bin"
_ALONE = BUILT / "archiver" / "bin"
BIN = _ALONE if _ALONE.exists() else OURS
"""Where the archiver's command is; if `setup.sh` has run, without what developers have besides.
`--archiver` may name another one."""


@dataclass(frozen=True)
class Arena:
    """One case with its servers up, and an empty directory for whoever runs."""

    case: Case
    source: Source
    store: Sink
    home: Path
    ca: Path

    @property
    def api_url(self) -> str:
        return f"{self.source.url}/{self.case.recordings.name}/api/v1"

    @property
    def paths(self) -> list[str]:
        """Of every recording at the source."""
        name = self.case.recordings.name
        return [f"/blob/{name}/{call_id}.wav" for call_id in self.case.recordings.ids]

    @property
    def environment(self) -> dict[str, str]:
        """What everybody gets: credentials, and the certificate in all the ways to tell of it."""
        key, secret = self.store.secrets
        ca = str(self.ca)
        return {
            "PATH": os.pathsep.join(map(str, (BIN, OURS, PEERS, os.environ["PATH"]))),
            "HOME": str(self.home),
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            **dict.fromkeys(
                ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), ca
            ),
        }


@dataclass(frozen=True)
class Contestant:
    """`prepare` is not measured; `command` is. `most` recordings are all that it is given: who is
    slow is measured on fewer, and told by the byte or the call all the same."""

    name: str
    title: str
    command: Callable[[Arena], list[str]]
    environment: Callable[[Arena], dict[str, str]] = lambda _: {}
    prepare: Callable[[Arena], list[list[str]]] = lambda _: []
    job: str = "bytes, SHA-256"
    most: int = 10**9

    def job_in(self, case: Case) -> str:
        """What it does of a call."""
        whole = self.name == "naive" and case.whole_calls
        return "whole calls" if whole else self.job


# --- the archiver


# As the Dockerfile sets them: pyreqwest's allocator gives memory back at once.
_OF_THE_IMAGE = {"MALLOC_ARENA_MAX": "2", "MIMALLOC_ALLOW_THP": "0", "MIMALLOC_PURGE_DELAY": "0"}


def _archiver_environment(arena: Arena) -> dict[str, str]:
    values = {
        "API_BASE_URL": arena.api_url,
        "API_TOKEN": "bench",
        "RECORDING_HOSTS": arena.source.url.partition("//")[2],
        "S3_BUCKET": arena.store.bucket,
        "S3_ENDPOINT_URL": arena.store.url,
        "S3_REGION": "us-east-1",
        "SIGNING_KEY_FILE": str(arena.home / "signing.pem"),
        "WORKERS": str(arena.case.workers),
        "LOG_LEVEL": "warning",
    }
    return _OF_THE_IMAGE | {f"ARCHIVER_{name}": value for name, value in values.items()}


def _archiver(arena: Arena) -> list[str]:
    return ["archiver", "backfill", "--from", START.isoformat(), "--to", END.isoformat()]


def _archiver_twice(arena: Arena) -> list[str]:
    return [*_archiver(arena), "--processes", "2"]


def _archiver_prepare(arena: Arena) -> list[list[str]]:
    # An archive is begun once in its life, so that is not counted.
    keygen = ["archiver", "keygen", "--out", str(arena.home / "signing.pem")]
    return [keygen, ["archiver", "init"]]


# --- rclone


def _rclone_environment(arena: Arena) -> dict[str, str]:
    key, secret = arena.store.secrets
    return {
        "RCLONE_CONFIG": str(arena.home / "rclone.conf"),
        "RCLONE_CONFIG_SOURCE_TYPE": "http",
        "RCLONE_CONFIG_SOURCE_URL": arena.source.url,
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENDPOINT": arena.store.url,
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": key,
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": secret,
        "RCLONE_CONFIG_STORE_NO_CHECK_BUCKET": "true",
        "RCLONE_TRANSFERS": str(arena.case.workers),
        "RCLONE_CHECKERS": str(arena.case.workers),
        "RCLONE_CA_CERT": str(arena.ca),
    }


def _rclone_and_hash(arena: Arena) -> list[str]:
    source = f"source:files/{arena.case.recordings.name}"
    return _shell(
        f"rclone copy {source} store:{arena.store.bucket}/rclone"
        f" && rclone hashsum sha256 --download {source} --output-file sums"
    )


# --- a shell's loop, a script


def _s5cmd(arena: Arena) -> list[str]:
    """`curl … | s5cmd pipe`, so many at a time as there are workers."""
    (arena.home / "paths").write_text("".join(f"{p}\n" for p in arena.paths[:S5CMD_MOST]))
    put = (
        f"s5cmd --endpoint-url {shlex.quote(arena.store.url)} pipe s3://{arena.store.bucket}/s5cmd"
    )
    one = f"curl -sSf {arena.source.url}$1 | {put}$1 >/dev/null"
    return _shell(f"xargs -P {arena.case.workers} -n 1 bash -ec {shlex.quote(one)} _ < paths")


def _naive(arena: Arena) -> list[str]:
    script = Path(__file__).parent / "naive.py"
    what = ["--api", arena.api_url] if arena.case.whole_calls else ["--urls", "urls"]
    (arena.home / "urls").write_text("".join(f"{arena.source.url}{p}\n" for p in arena.paths))
    return [
        str(PEERS / "python"), str(script), *what, "--endpoint", arena.store.url,
        "--bucket", arena.store.bucket, "--workers", str(arena.case.workers),
    ]  # fmt: skip


def _shell(script: str) -> list[str]:
    return ["bash", "-o", "pipefail", "-c", script]


S5CMD_MOST = 100
LEDGER = "whole calls, ledger"

CONTESTANTS = (
    Contestant(
        "archiver", "**archiver backfill**", _archiver, _archiver_environment, _archiver_prepare,
        job=LEDGER,
    ),
    Contestant(
        "archiver-2", "**archiver backfill --processes 2**", _archiver_twice,
        _archiver_environment, _archiver_prepare, job=LEDGER,
    ),
    Contestant("rclone", "rclone copy, then hashsum", _rclone_and_hash, _rclone_environment),
    Contestant("naive", "requests + boto3 script", _naive),
    Contestant("s5cmd", "curl \\| s5cmd loop", _s5cmd, job="bytes", most=S5CMD_MOST),
)  # fmt: skip
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
