"""The settings: `ARCHIVER_…` environment variables, checked before anything is done.

Every field's description is the line that `config.example.env` and `docs/settings.md` are made
from. A value that is wrong gives one line that names the variable and says what it takes.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from archiver.core.errors import FormatError, UsageError
from archiver.core.model import DAY, parse_time
from archiver.manifest.signing import SigningKey

PREFIX = "ARCHIVER_"

Secret = Callable[[], str]
"""Gives a secret's value of now: it may be rotated while we run."""

MAX_DURATION = timedelta(days=36500)
"""Beyond this, adding a length of time to a date leaves the calendar."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def parse_duration(value: object) -> object:
    """`90s`, `15m`, `2h`, `7d`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,9})([smhd])", value.strip())
    if match is None:
        raise ValueError("takes a length of time such as 90s, 15m, 2h or 7d")
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds > MAX_DURATION.total_seconds():
        raise ValueError(f"takes at most {MAX_DURATION.days}d")
    return timedelta(seconds=seconds)


def parse_size(value: object) -> object:
    """`512`, `64KiB`, `2GiB`, with `/s` after it or not."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,12})\s*(|[kmgt]i?b|b)", value.strip().removesuffix("/s").lower())
    size = _SIZES.get(match[2]) if match else None
    if match is None or size is None:
        raise ValueError("takes a size such as 16KiB, 64MiB or 2GiB")
    return int(match[1]) * size


def _parse_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _parse_durations(value: object) -> object:
    """`1d,7d`, or `none`."""
    if not isinstance(value, str):
        return value
    items = () if value.strip() == "none" else value.split(",")
    return tuple(parse_duration(item) for item in items)


def _parse_moment(value: object) -> object:
    if not isinstance(value, str):
        return value
    moment = parse_time(value)
    if moment is None:
        raise ValueError("takes a date or an RFC 3339 time, such as 2024-01-15T10:00:00Z")
    return moment


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Durations = Annotated[tuple[timedelta, ...], NoDecode, BeforeValidator(_parse_durations)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_list), Field(min_length=1)]
Moment = Annotated[datetime, BeforeValidator(_parse_moment)]
S = TypeVar("S", bound="LogSettings")


class LogSettings(BaseSettings):
    """What every command reads."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        defer_build=True,  # a verb reads one of the classes: the others are not worked out
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged: debug, info, warning, error"
    )
    log_format: Literal["json", "console"] = Field(
        "json", description="json, or console for people"
    )


class StoreSettings(LogSettings):
    """What a reader of the archive needs."""

    s3_bucket: str = Field(min_length=1, description="the bucket")
    s3_prefix: str = Field("", description="puts the whole archive under a prefix")
    s3_endpoint_url: str | None = Field(None, description="the store's address, if it is not AWS")
    s3_region: str | None = Field(None, description="the store's region")
    s3_requests: Literal["signed", "boto3"] = Field(
        "signed", description="how frequent requests are sent: signed (faster), or by boto3"
    )
    http_transport: Literal["fast", "standard"] = Field(
        "fast", description="the HTTP client: fast (pyreqwest), or standard (httpx on OpenSSL)"
    )
    workers: int = Field(8, ge=1, le=256, description="calls archived at a time, by each process")

    @model_validator(mode="after")
    def _check_store(self) -> StoreSettings:
        if self.s3_endpoint_url and _split_url(self.s3_endpoint_url) is None:
            raise ValueError("ARCHIVER_S3_ENDPOINT_URL: takes a URL such as https://s3.example.com")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}|arn:[\w:/.-]+", self.s3_bucket):
            raise ValueError("ARCHIVER_S3_BUCKET: takes a bucket's name, such as call-archive")
        parts = self.s3_prefix.strip("/").split("/")
        wrong = any(part in ("", ".", "..") for part in parts) if parts != [""] else False
        if wrong or not re.fullmatch(r"[\w!./()*'-]{0,512}", self.s3_prefix, re.ASCII):
            raise ValueError(
                "ARCHIVER_S3_PREFIX: takes segments of letters, digits and !-_.*'() with one / "
                "between, such as archive/calls"
            )
        return self


class SourceSettings(StoreSettings):
    """What a reader of the source needs beside."""

    api_base_url: str = Field(description="base URL of the source, …/api/v1")
    api_token: SecretStr | None = Field(None, description="bearer token of the source; or")
    api_token_file: Path | None = Field(None, description="… a file with it, read when it changes")
    api_key: SecretStr | None = Field(None, description="API key of the source, with")
    api_key_file: Path | None = Field(None, description="… a file with it, read when it changes")
    api_hmac_secret: SecretStr | None = Field(None, description="the key's signing secret")
    api_hmac_secret_file: Path | None = Field(
        None, description="… a file with it, read when it changes"
    )
    allow_http: bool = Field(
        False, description="permits plain http for source and recordings: tests and demo only"
    )
    states: Names = Field(("Completed",), description="call states to archive, comma separated")
    campaign_id: str | None = Field(None, description="narrows the listing to a campaign")
    direction: str | None = Field(None, description="narrows the listing to a direction")
    window: Duration = Field(
        timedelta(hours=1), description="length of a window: divides 24 h, at least 1m"
    )
    api_rate: float | None = Field(
        None, gt=0, description="at most so many requests a second to the source"
    )

    @model_validator(mode="after")
    def _check_source(self) -> SourceSettings:
        for complaint in (self._check_api(), self._check_window()):
            if complaint:
                raise ValueError(complaint)
        return self

    def _check_api(self) -> str | None:
        url = _split_url(self.api_base_url)
        plain = _is_one_ascii_line(self.api_base_url) and " " not in self.api_base_url
        if url is None or not plain or url.query or url.fragment or url.username:
            return "ARCHIVER_API_BASE_URL: takes a URL such as https://api.example.com/api/v1"
        if url.scheme == "http" and not self.allow_http:
            return "ARCHIVER_API_BASE_URL: must be https (ARCHIVER_ALLOW_HTTP is for tests)"
        for name in ("api_token", "api_key", "api_hmac_secret"):
            secret: SecretStr | None = getattr(self, name)
            if secret and getattr(self, name + "_file"):
                return f"{_variable(name)} and {_variable(name)}_FILE: set one of the two"
            if secret and not _is_one_ascii_line(secret.get_secret_value().strip()):
                return f"{_variable(name)}: takes one line of ASCII"
        token, key = self.has("api_token"), self.has("api_key")
        if token == key or self.has("api_hmac_secret") != key:
            return (
                "ARCHIVER_API_TOKEN: set it, or ARCHIVER_API_KEY with ARCHIVER_API_HMAC_SECRET "
                "(each also as …_FILE), and not both"
            )
        return None

    def _check_window(self) -> str | None:
        if self.window < timedelta(minutes=1) or DAY % self.window:
            return "ARCHIVER_WINDOW: must divide 24h and be at least 1m"
        if self.window.total_seconds() % 60:
            return "ARCHIVER_WINDOW: must be whole minutes"
        return None

    def has(self, name: str) -> bool:
        return bool(getattr(self, name) or getattr(self, name + "_file"))

    def secret(self, name: str) -> Secret:
        """A secret's value of now; raises `UsageError` where its file cannot be read."""
        value: SecretStr | None = getattr(self, name)
        if value is not None:
            text = value.get_secret_value().strip()
            return lambda: text
        return secret_file(getattr(self, name + "_file"), _variable(name) + "_FILE")


class WriterSettings(StoreSettings):
    """What a writer of the archive needs beside, be there a source or not."""

    signing_key_file: Path = Field(
        description="Ed25519 private key, PKCS#8 PEM; `archiver keygen` makes one"
    )
    object_lock_mode: Literal["none", "GOVERNANCE", "COMPLIANCE"] = Field(
        "none", description="none, GOVERNANCE or COMPLIANCE"
    )
    retention_days: int | None = Field(
        None, ge=1, le=36500, description="with a lock mode: days, counted from the call's end"
    )
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        None, description="server-side encryption, passed on each write"
    )
    sse_kms_key_id: str | None = Field(None, description="the KMS key for it")
    storage_class: str | None = Field(None, description="storage class, passed on each write")

    @model_validator(mode="after")
    def _check_lock(self) -> WriterSettings:
        if self.object_lock_mode != "none" and self.retention_days is None:
            raise ValueError("ARCHIVER_RETENTION_DAYS: must be set with ARCHIVER_OBJECT_LOCK_MODE")
        if self.sse_kms_key_id is not None and not _is_one_ascii_line(self.sse_kms_key_id):
            raise ValueError("ARCHIVER_SSE_KMS_KEY_ID: takes one line of ASCII, an id or an ARN")
        return self

    def signing_key(self) -> SigningKey:
        """Raises `UsageError` where the key file cannot be read or is no Ed25519 key."""
        variable = f"ARCHIVER_SIGNING_KEY_FILE: {self.signing_key_file}"
        try:
            return SigningKey.from_pem(self.signing_key_file.read_bytes())
        except OSError as error:
            raise UsageError(
                f"{variable} cannot be read ({error.strerror}): `archiver keygen --out FILE` "
                "makes a key"
            ) from None
        except FormatError as error:
            raise UsageError(
                f"{variable} is {error}: `archiver keygen --out FILE` makes a key"
            ) from None


class Settings(WriterSettings, SourceSettings):
    """What the archiver itself needs."""

    recording_hosts: Names = Field(
        description="exact hosts (or host:port) that a recording URL may name, comma separated"
    )
    settle: Duration = Field(
        timedelta(hours=2), description="a window is sealed this long after its end"
    )
    relist: Durations = Field(
        (timedelta(days=1), timedelta(days=7)),
        description="ages at which a sealed window is listed again; none for never",
    )
    poll_interval: Duration = Field(
        timedelta(seconds=60), description="pause between rounds of the loop"
    )
    start: Moment | None = Field(
        None, description="where the loop begins in an empty archive (default: now)"
    )
    give_up: Duration = Field(
        DAY, description="a call not archived this long after its window is recorded as failed"
    )
    verify_writes: Literal["auto", "head", "full"] = Field(
        "auto",
        description="head (after each write), full (read every recording back), or auto: head of "
        "recordings and of what is locked, full where the store proved no checksums",
    )
    max_recording_bytes: Size = Field(
        2 << 30, description="a larger recording is an exception, not a crash"
    )
    tsa_url: str | None = Field(
        None, description="RFC 3161 time-stamp authority for seals (not used yet)"
    )
    min_rate: Size = Field(16 << 10, description="a slower download is cut and tried again")
    metrics_port: int = Field(
        9464, ge=0, le=65535, description="port of /metrics, /healthz and /readyz"
    )
    liveness_timeout: Duration = Field(
        timedelta(minutes=5),
        description="/healthz answers 503 once nothing has moved for so long; below 2m, a slow "
        "store may look like that",
    )

    @model_validator(mode="after")
    def _check(self) -> Settings:
        for complaint in (self._check_hosts(), self._check_times()):
            if complaint:
                raise ValueError(complaint)
        return self

    def _check_hosts(self) -> str | None:
        for host in self.recording_hosts:
            if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9A-Fa-f:]+\](:\d{1,5})?", host):
                return "ARCHIVER_RECORDING_HOSTS: takes exact hosts, such as recordings.example.com"
        return None

    def _check_times(self) -> str | None:
        if self.poll_interval < timedelta(seconds=1):
            return "ARCHIVER_POLL_INTERVAL: must be at least 1s"
        if self.liveness_timeout < timedelta(seconds=1):
            return "ARCHIVER_LIVENESS_TIMEOUT: must be at least 1s"
        if any(not age for age in self.relist):
            return "ARCHIVER_RELIST: takes ages such as 1d,7d, or none"
        return None


def secret_file(path: Path, variable: str) -> Secret:
    """A file's content, stripped, read again when the file changes. The first reading is at once;
    raises `UsageError`."""
    lock = threading.Lock()
    stamp: tuple[int, int, int] | None = None
    value = ""

    def read() -> str:
        nonlocal stamp, value
        with lock:
            try:
                # Kubernetes swaps a secret's file by a symbolic link: inode and time change.
                status = path.stat()
                found = (status.st_ino, status.st_mtime_ns, status.st_size)
                if found != stamp:
                    text = path.read_text("utf-8").strip()
                    if not _is_one_ascii_line(text):
                        raise UsageError(f"{variable}: {path} holds no secret in one ASCII line")
                    stamp, value = found, text
            except (OSError, UnicodeDecodeError, UsageError) as error:
                # A rotation may be under way: the value that we have counts until it is done.
                if stamp is None:
                    if isinstance(error, UsageError):
                        raise
                    why = error.strerror or "error" if isinstance(error, OSError) else "not UTF-8"
                    raise UsageError(f"{variable}: {path} cannot be read ({why})") from None
            return value

    read()
    return read


def _split_url(text: str) -> SplitResult | None:
    """None where `text` is no http or https URL with a host and a port that can be."""
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        return None
    return url if usable else None


def _is_one_ascii_line(text: str) -> bool:
    return bool(text) and text.isprintable() and text.isascii()


def load(kind: type[S]) -> S:
    """Read the environment; raises `UsageError` with one line for all that is wrong."""
    try:
        return kind()
    except ValidationError as error:
        raise UsageError("; ".join(_complaints(error))) from None


def _complaints(error: ValidationError) -> list[str]:
    missing, wrong = [], []
    for detail in error.errors(include_url=False, include_context=True, include_input=False):
        name = _variable(str(detail["loc"][0])) if detail["loc"] else ""
        if detail["type"] == "missing":
            missing.append(name)
            continue
        text = str(detail["msg"]).removeprefix("Value error, ")
        wrong.append(f"{name}: {text}" if name else text)
    if missing:
        names = ", ".join(missing)
        wrong.insert(0, f"{names} must be set (config.example.env lists all settings)")
    return wrong


def _variable(field: str) -> str:
    return PREFIX + field.upper()


def documented() -> list[tuple[str, str, str]]:
    """`(variable, default as one would write it, description)` of every setting, for the docs."""
    rows = []
    for name, field in Settings.model_fields.items():
        rows.append((_variable(name), _written(field), field.description or ""))
    return rows


def _written(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_plain(item) for item in value)
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        unit = next(u for u in "dhms" if seconds % _UNITS[u] == 0 and (u != "s" or seconds < 120))
        return "60s" if seconds == 60 else f"{seconds // _UNITS[unit]}{unit}"
    if isinstance(value, int) and value in (2 << 30, 16 << 10):
        return "2GiB" if value == 2 << 30 else "16KiB/s"
    return "" if value is None else str(value)
