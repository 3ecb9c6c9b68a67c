"""Logs: one JSON object a line on stderr, or lines for people; never a secret.

Two nets under the rule that no URL's query, token or transcript text is ever logged: libraries
that log URLs are kept at WARNING, and every string of every line passes `redact`.
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
    """`text` without URL queries, bearer tokens, signatures and API keys."""
    return _TOKEN.sub(r"\1…", _WORD.sub(_without_query, text))


def _without_query(word: re.Match[str]) -> str:
    """A word that looks like a path or URL, up to its `?`. Linear in whatever is logged."""
    path, _, query = word[0].partition("?")
    return f"{path}?…" if query and "/" in path else word[0]


def _redact_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    """`value` with every string in it redacted; what JSON does not know becomes its `repr`."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {redact(str(name)): _redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(inner) for inner in value]
    return redact(value if isinstance(value, str) else repr(value))


class _ToStderr(logging.StreamHandler[TextIO]):
    """Asks for stderr at each line, as structlog's logger below does."""

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
        # Asked for at each line, so that a progress bar may put itself in stderr's place. It writes
        # a line with its end; PrintLogger writes them apart, and other lines came in between.
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
    # It warns of each connection that a full pool gives up: the store is tried out by a crowd.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # It warns of a head that cannot be parsed, and quotes it.
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
