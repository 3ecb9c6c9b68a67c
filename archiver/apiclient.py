"""The source's API, put together: apart from app.py, so that who only lists loads nothing that
writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from archiver.clock import Clock
from archiver.retry import Retry
from archiver.settings import SourceSettings
from archiver.source.auth import BearerAuth, SignedKeyAuth
from archiver.source.client import Filter, VoiceCallsClient
from archiver.source.listing import Lister
from archiver.tls import client_context


def source(settings: SourceSettings, clock: Clock) -> VoiceCallsClient:
    """The source's API client; raises `UsageError` where a secret's file cannot be read."""
    auth: httpx.Auth
    if settings.has("api_token"):
        auth = BearerAuth(settings.secret("api_token"))
    else:
        auth = SignedKeyAuth(settings.secret("api_key"), settings.secret("api_hmac_secret"), clock)
    return VoiceCallsClient(
        settings.api_base_url,
        auth,
        clock,
        retry=Retry(clock),
        tls=client_context(),
        connections=settings.workers + 4,
        requests_per_second=settings.api_rate,
    )


def lister(settings: SourceSettings, api: VoiceCallsClient, clock: Clock) -> Lister:
    filters = Filter(settings.states, settings.campaign_id, settings.direction)
    return Lister(api, filters, clock, settings.window)


@contextmanager
def listing(settings: SourceSettings, clock: Clock) -> Iterator[Lister]:
    """For who lists and does nothing else; on leaving, connections close."""
    api = source(settings, clock)
    try:
        yield lister(settings, api, clock)
    finally:
        api.close()
