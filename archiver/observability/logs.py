"""Logs: one JSON object a line on stderr, or plain lines for people.

The archiver never logs the query of a URL, a token or the text of a transcript. Two safeguards
catch URLs and tokens that reach a log line all the same: libraries that log URLs are limited to
WARNING, and every string of every line passes through `redact`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

_WORD = re.compile(r"[^\s\"'<>]+")
_TOKEN = re.compile(r"(?i)\b(bearer\s+|sig=|signature=|ak_live_)[^\s&\"',;]+")
_CHATTY = ("urllib3", "boto3", "botocore", "s3transfer", "httpx", "httpcore")


def redact(text: str) -> str:
    """Return `text` without URL queries, bearer tokens, signatures and API keys."""
    return _TOKEN.sub(r"\1…", _WORD.sub(_without_query, text))


def _without_query(word: re.Match[str]) -> str:
    """Cut a word that looks like a path or URL at its `?`. Takes linear time on any input, which a
    regular expression for URLs would not."""
    path, _, query = word[0].partition("?")
    return f"{path}?…" if query and "/" in path else word[0]


def _redact_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    """Return `value` with every string in it redacted. A value that JSON has no type for becomes
    its `repr`."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {redact(str(name)): _redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(inner) for inner in value]
    return redact(value if isinstance(value, str) else repr(value))


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to the `sys.stderr` of the moment, as structlog's logger in `configure` does."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def configure(level: str = "info", form: str = "json") -> None:
    """Set up structlog and the standard library's logging, both to stderr."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if form == "console"
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # Looks sys.stderr up for each line, because a progress bar replaces it. WriteLogger writes
        # a line and its newline in one call; PrintLogger writes them separately, and lines of other
        # threads came in between.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = _ToStderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns about each connection that a full pool discards, and the probe races many writers.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # It warns about response headers that it cannot parse, and quotes them.
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
