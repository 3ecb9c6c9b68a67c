"""A recording's signed URL, and until when it opens anything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote_plus

from archiver.model import parse_time

_EXPIRY = re.compile(r"[?&]se=([^&#]*)")


@dataclass(frozen=True)
class SignedUrl:
    """A recording's URL. Its query is a secret: never log it.

    `expires_at` is the earlier of what the source says and of the URL's own `se` (a shared access
    signature has one); None where neither tells.
    """

    url: str
    request_id: str | None
    expires_at: datetime | None = None

    def __repr__(self) -> str:
        return "SignedUrl(…)"

    @classmethod
    def told(cls, url: str, request_id: str | None, expires_at: object) -> SignedUrl:
        moments = [parse_time(expires_at), _own_expiry(url)]
        return cls(url, request_id, min((m for m in moments if m is not None), default=None))


def _own_expiry(url: str) -> datetime | None:
    """By the first `se` of its query."""
    found = _EXPIRY.search(url)
    return parse_time(unquote_plus(found[1])) if found else None
