"""The settings: `ARCHIVER_…` environment variables, checked before a command does anything.

A setting is one field, in the class of the commands that read it. Its default is written as a
person would write it; its description appears in `config.example.env` and `docs/settings.md`. An
invalid value gives one line that names the variable and says what it takes.
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
"""Returns the current value of a secret, which may be rotated while the process runs."""

MAX_DURATION = timedelta(days=36500)
"""Upper limit of all durations. With a much longer one, adding it to a date would overflow."""
MINUTE = timedelta(minutes=1)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def parse_duration(text: str) -> timedelta:
    """Parse `90s`, `15m`, `2h`, `7d`. Raises `ValueError`."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    if match is None:
        raise ValueError("takes a length of time such as 90s, 15m, 2h or 7d")
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds > MAX_DURATION.total_seconds():
        raise ValueError(f"takes at most {MAX_DURATION.days}d")
    return timedelta(seconds=seconds)


def parse_size(text: str) -> int:
    """Parse `512`, `64KiB`, `2GiB`, with or without a final `/s`. Raises `ValueError`."""
    match = re.fullmatch(r"(\d{1,12})\s*([a-z]*)", text.strip().removesuffix("/s").lower())
    if match is None or match[2] not in _SIZES:
        raise ValueError("takes a size such as 16KiB, 64MiB or 2GiB")
    return int(match[1]) * _SIZES[match[2]]


def _parse_list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _parse_durations(text: str) -> tuple[timedelta, ...]:
    """Parse `1d,7d`, or `none`."""
    items = () if text.strip() == "none" else text.split(",")
    return tuple(map(parse_duration, items))


def _parse_moment(text: str) -> datetime:
    moment = parse_time(text)
    if moment is None:
        raise ValueError("takes a date or an RFC 3339 time, such as 2024-01-15T10:00:00Z")
    return moment


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Durations = Annotated[tuple[timedelta, ...], NoDecode, BeforeValidator(_parse_durations)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_list), Field(min_length=1)]
Moment = Annotated[datetime, BeforeValidator(_parse_moment)]
S = TypeVar("S", bound="LogSettings")


def row(default: Any, description: str, **limits: Any) -> Any:
    """Declare a setting with a default, written as a person would; None for no default."""
    return Field(default, description=description, **limits)


def required(description: str, **limits: Any) -> Any:
    """Declare a setting without a default, which must be set."""
    return Field(description=description, **limits)


class LogSettings(BaseSettings):
    """The settings of every command."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        # A command needs one of the classes. Building a validator for the others takes time.
        defer_build=True,
    )

    log_level: Literal["debug", "info", "warning", "error"] = row(
        "info", "least level that is logged: debug, info, warning, error"
    )
    log_format: Literal["json", "console"] = row("json", "json, or console for people")


class StoreSettings(LogSettings):
    """The settings of commands that read the archive."""

    s3_bucket: str = required("the bucket", min_length=1)
    s3_prefix: str = row("", "puts the whole archive under a prefix")
    s3_endpoint_url: str | None = row(None, "the store's address, if it is not AWS")
    s3_region: str | None = row(None, "the store's region")
    s3_addressing_style: Literal["auto", "path", "virtual"] = row(
        "auto",
        "where the bucket's name stands: path, virtual (in the host), or auto: as addressing_style "
        "of the AWS configuration says, else in the path if S3_ENDPOINT_URL is set",
    )
    s3_requests: Literal["signed", "boto3"] = row(
        "signed", "how frequent requests are sent: signed (faster), or by boto3"
    )
    http_transport: Literal["fast", "standard"] = row(
        "fast", "the HTTP client: fast (pyreqwest), or standard (httpx on OpenSSL)"
    )
    workers: int = row(8, "calls archived at a time, by each process", ge=1, le=256)

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
    """The settings of commands that also read the source."""

    api_base_url: str = required("base URL of the source, …/api/v1")
    api_token: SecretStr | None = row(None, "bearer token of the source; or")
    api_token_file: Path | None = row(None, "… a file with it, read when it changes")
    api_key: SecretStr | None = row(None, "API key of the source, with")
    api_key_file: Path | None = row(None, "… a file with it, read when it changes")
    api_hmac_secret: SecretStr | None = row(None, "the key's signing secret")
    api_hmac_secret_file: Path | None = row(None, "… a file with it, read when it changes")
    allow_http: bool = row(
        "false", "permits plain http for source and recordings: tests and demo only"
    )
    states: Names = row("Completed", "call states to archive, comma separated")
    campaign_id: str | None = row(None, "narrows the listing to a campaign")
    direction: str | None = row(None, "narrows the listing to a direction")
    window: Duration = row("1h", "length of a window: divides 24 h, at least 1m")
    api_rate: float | None = row(None, "at most so many requests a second to the source", gt=0)

    @model_validator(mode="after")
    def _check_source(self) -> SourceSettings:
        url = _split_url(self.api_base_url)
        is_plain = _is_one_ascii_line(self.api_base_url) and " " not in self.api_base_url
        if url is None or not is_plain or url.query or url.fragment or url.username:
            raise ValueError(
                "ARCHIVER_API_BASE_URL: takes a URL such as https://api.example.com/api/v1"
            )
        if url.scheme == "http" and not self.allow_http:
            raise ValueError(
                "ARCHIVER_API_BASE_URL: must be https (ARCHIVER_ALLOW_HTTP is for tests)"
            )
        for name in ("api_token", "api_key", "api_hmac_secret"):
            secret: SecretStr | None = getattr(self, name)
            if secret and getattr(self, name + "_file"):
                raise ValueError(
                    f"{_variable(name)} and {_variable(name)}_FILE: set one of the two"
                )
            if secret and not _is_one_ascii_line(secret.get_secret_value().strip()):
                raise ValueError(f"{_variable(name)}: takes one line of ASCII")
        token, key = self.has("api_token"), self.has("api_key")
        if token == key or self.has("api_hmac_secret") != key:
            raise ValueError(
                "ARCHIVER_API_TOKEN: set it, or ARCHIVER_API_KEY with ARCHIVER_API_HMAC_SECRET "
                "(each also as …_FILE), and not both"
            )
        if self.window < MINUTE or DAY % self.window or self.window % MINUTE:
            raise ValueError("ARCHIVER_WINDOW: must be whole minutes that divide 24h")
        return self

    def has(self, name: str) -> bool:
        return bool(getattr(self, name) or getattr(self, name + "_file"))

    def secret(self, name: str) -> Secret:
        """Return a function that returns the current value of a secret. Raises `UsageError` if its
        file cannot be read."""
        value: SecretStr | None = getattr(self, name)
        if value is not None:
            text = value.get_secret_value().strip()
            return lambda: text
        return secret_file(getattr(self, name + "_file"), _variable(name) + "_FILE")


class WriterSettings(StoreSettings):
    """The settings of commands that write to the archive, with or without a source."""

    signing_key_file: Path = required(
        "Ed25519 private key, PKCS#8 PEM; `archiver keygen` makes one"
    )
    object_lock_mode: Literal["none", "GOVERNANCE", "COMPLIANCE"] = row(
        "none", "none, GOVERNANCE or COMPLIANCE"
    )
    retention_days: int | None = row(
        None, "with a lock mode: days, counted from the call's end", ge=1, le=36500
    )
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = row(
        None, "server-side encryption, passed on each write"
    )
    sse_kms_key_id: str | None = row(None, "the KMS key for it")
    storage_class: str | None = row(None, "storage class, passed on each write")

    @model_validator(mode="after")
    def _check_lock(self) -> WriterSettings:
        if self.object_lock_mode != "none" and self.retention_days is None:
            raise ValueError("ARCHIVER_RETENTION_DAYS: must be set with ARCHIVER_OBJECT_LOCK_MODE")
        if self.sse_kms_key_id is not None and not _is_one_ascii_line(self.sse_kms_key_id):
            raise ValueError("ARCHIVER_SSE_KMS_KEY_ID: takes one line of ASCII, an id or an ARN")
        return self

    def signing_key(self) -> SigningKey:
        """Load the signing key. Raises `UsageError` if its file cannot be read or is no Ed25519
        key."""
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
    """The settings of commands that archive calls."""

    recording_hosts: Names = required(
        "exact hosts (or host:port) that a recording URL may name, comma separated"
    )
    settle: Duration = row("2h", "a window is sealed this long after its end")
    relist: Durations = row(
        "1d,7d", "ages at which a sealed window is listed again; none for never"
    )
    poll_interval: Duration = row("60s", "pause between rounds of the loop")
    start: Moment | None = row(None, "where the loop begins in an empty archive (default: now)")
    give_up: Duration = row(
        "1d", "a call not archived this long after its window is recorded as failed"
    )
    verify_writes: Literal["auto", "head", "full"] = row(
        "auto",
        "head (after each write), full (read every recording back), or auto: head of recordings "
        "and of what is locked, full where the store proved no checksums",
    )
    max_recording_bytes: Size = row("2GiB", "a larger recording is an exception, not a crash")
    tsa_url: str | None = row(None, "RFC 3161 time-stamp authority for seals (not used yet)")
    min_rate: Size = row("16KiB/s", "a slower download is cut and tried again")
    metrics_port: int = row(9464, "port of /metrics, /healthz and /readyz", ge=0, le=65535)
    liveness_timeout: Duration = row(
        "5m",
        "/healthz answers 503 once nothing has moved for so long; below 2m, a slow store may look "
        "like that",
    )

    @model_validator(mode="after")
    def _check(self) -> Settings:
        host_form = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?"
        if not all(re.fullmatch(host_form, host) for host in self.recording_hosts):
            raise ValueError(
                "ARCHIVER_RECORDING_HOSTS: takes exact hosts, such as recordings.example.com"
            )
        for name in ("poll_interval", "liveness_timeout"):
            if getattr(self, name) < timedelta(seconds=1):
                raise ValueError(f"{_variable(name)}: must be at least 1s")
        if not all(self.relist):
            raise ValueError("ARCHIVER_RELIST: takes ages such as 1d,7d, or none")
        return self


def secret_file(path: Path, variable: str) -> Secret:
    """Return a function that returns a file's stripped content, and reads it again when the file
    changes. Reads it once here, and raises `UsageError` if that fails."""
    lock = threading.Lock()
    stamp: tuple[int, int, int] | None = None
    value = ""

    def read() -> str:
        nonlocal stamp, value
        with lock:
            try:
                # Kubernetes updates a mounted secret by replacing a symbolic link, so inode and
                # modification time change.
                status = path.stat()
                found = (status.st_ino, status.st_mtime_ns, status.st_size)
                if found != stamp:
                    text = path.read_text("utf-8").strip()
                    if not _is_one_ascii_line(text):
                        raise UsageError(f"{variable}: {path} holds no secret in one ASCII line")
                    stamp, value = found, text
            except (OSError, UnicodeDecodeError, UsageError) as error:
                # The file may be missing or incomplete in the middle of a rotation. The last value
                # stays in use until the new one can be read.
                if stamp is None:
                    if isinstance(error, UsageError):
                        raise
                    why = error.strerror or "error" if isinstance(error, OSError) else "not UTF-8"
                    raise UsageError(f"{variable}: {path} cannot be read ({why})") from None
            return value

    read()
    return read


def _split_url(text: str) -> SplitResult | None:
    """Split a URL. Returns None unless it is http or https, with a host and a valid port."""
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        return None
    return url if usable else None


def _is_one_ascii_line(text: str) -> bool:
    return bool(text) and text.isprintable() and text.isascii()


def load(kind: type[S]) -> S:
    """Read the settings from the environment. Raises one `UsageError` that names all problems."""
    try:
        return kind()
    except ValidationError as error:
        missing, wrong = [], []
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            name = _variable(str(detail["loc"][0])) if detail["loc"] else ""
            text = detail["msg"].removeprefix("Value error, ")
            if detail["type"] == "missing":
                missing.append(name)
            else:
                wrong.append(f"{name}: {text}" if name else text)
        if missing:
            names = ", ".join(missing)
            wrong.insert(0, f"{names} must be set (config.example.env lists all settings)")
        raise UsageError("; ".join(wrong)) from None


def _variable(field: str) -> str:
    return PREFIX + field.upper()


def documented() -> list[tuple[str, str, str]]:
    """Return `(variable, default as written, description)` of every setting, for the docs."""
    return [
        (
            _variable(name),
            "required" if field.is_required() else str(field.default or ""),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]
