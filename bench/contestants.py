"""Who takes part, and the command of each: whole processes, as a person would start them."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.cases import END, START, Case
from bench.servers import BUILT, ROOT, Source, Store

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
    store: Store
    home: Path
    ca: Path

    @property
    def source_url(self) -> str:
        return self.source.url(self.case.scheme)

    @property
    def api_url(self) -> str:
        return f"{self.source_url}/{self.case.recordings.name}/api/v1"

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


def _archiver_environment(arena: Arena) -> dict[str, str]:
    values = {
        "API_BASE_URL": arena.api_url,
        "API_TOKEN": "bench",
        "RECORDING_HOSTS": arena.source_url.partition("//")[2],
        "ALLOW_HTTP": "false" if arena.case.tls else "true",
        "S3_BUCKET": arena.store.bucket,
        "S3_ENDPOINT_URL": arena.store.url,
        "S3_REGION": "us-east-1",
        "SIGNING_KEY_FILE": str(arena.home / "signing.pem"),
        "WORKERS": str(arena.case.workers),
        "LOG_LEVEL": "warning",
    }
    return {f"ARCHIVER_{name}": value for name, value in values.items()}


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
        "RCLONE_CONFIG_SOURCE_URL": arena.source_url,
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


def _rclone_copyurl(arena: Arena) -> list[str]:
    lines = [f"{arena.source_url}{path},{Path(path).name}\n" for path in arena.paths]
    (arena.home / "urls.csv").write_text("".join(lines))
    return ["rclone", "copyurl", "--urls", "urls.csv", f"store:{arena.store.bucket}/rclone"]


# --- loops of a shell, a script, the floor


def _loop(put: str, most: int) -> Callable[[Arena], list[str]]:
    """`curl … | put`, so many at a time as there are workers."""

    def command(arena: Arena) -> list[str]:
        (arena.home / "paths").write_text("".join(f"{p}\n" for p in arena.paths[:most]))
        endpoint, bucket = shlex.quote(arena.store.url), arena.store.bucket
        one = f"curl -sSf {arena.source_url}$1 | {put.format(endpoint=endpoint, bucket=bucket)}"
        return _shell(f"xargs -P {arena.case.workers} -n 1 bash -ec {shlex.quote(one)} _ < paths")

    return command


def _naive(arena: Arena) -> list[str]:
    script = Path(__file__).parent / "naive.py"
    what = ["--api", arena.api_url] if arena.case.whole_calls else ["--urls", "urls"]
    (arena.home / "urls").write_text("".join(f"{arena.source_url}{p}\n" for p in arena.paths))
    return [
        str(PEERS / "python"), str(script), *what, "--endpoint", arena.store.url,
        "--bucket", arena.store.bucket, "--workers", str(arena.case.workers),
    ]  # fmt: skip


def _floor(arena: Arena) -> list[str]:
    (arena.home / "paths").write_text("".join(f"{path}\n" for path in arena.paths))
    tls = "tls" if arena.case.tls else ""
    source, sink = arena.source.ports[arena.case.scheme], arena.store.port
    return _shell(f"exec {BUILT}/floor {arena.case.workers} {source} {sink} {tls} < paths")


def _shell(script: str) -> list[str]:
    return ["bash", "-o", "pipefail", "-c", script]


AWS_MOST, S5CMD_MOST = 16, 100
LEDGER = "whole calls, ledger"
BYTES_ONLY = "bytes"

CONTESTANTS = (
    Contestant("floor", "C floor", _floor),
    Contestant(
        "archiver", "**archiver backfill**", _archiver, _archiver_environment, _archiver_prepare,
        job=LEDGER,
    ),
    Contestant(
        "archiver-2", "**archiver backfill --processes 2**", _archiver_twice,
        _archiver_environment, _archiver_prepare, job=LEDGER,
    ),
    Contestant("rclone", "rclone copy, then hashsum", _rclone_and_hash, _rclone_environment),
    Contestant("copyurl", "rclone copyurl", _rclone_copyurl, _rclone_environment, job=BYTES_ONLY),
    Contestant("naive", "requests + boto3 script", _naive),
    Contestant(
        "s5cmd", "curl \\| s5cmd loop",
        _loop("s5cmd --endpoint-url {endpoint} pipe s3://{bucket}/s5cmd$1 >/dev/null", S5CMD_MOST),
        job=BYTES_ONLY, most=S5CMD_MOST,
    ),
    Contestant(
        "aws", "curl \\| aws s3 cp loop",
        _loop("aws --endpoint-url {endpoint} s3 cp --quiet - s3://{bucket}/aws$1", AWS_MOST),
        job=BYTES_ONLY, most=AWS_MOST,
    ),
)  # fmt: skip
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


def available() -> list[Contestant]:
    """Those whose command is here; an archiver without processes of its own runs in one."""
    asked = subprocess.run(
        [BIN / "archiver", "backfill", "--help"], capture_output=True, text=True, check=True
    )
    out = () if "--processes" in asked.stdout else ("archiver-2",)
    return [contestant for contestant in CONTESTANTS if contestant.name not in out]
