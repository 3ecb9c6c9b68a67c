"""The source's API, put together: apart from app.py, so that who only lists loads nothing that
writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from archiver.clock import Clock
from archiver.pressure import Pressure
from archiver.retry import Retry
from archiver.settings import SourceSettings
from archiver.source.auth import BearerAuth, Credentials, SignedKeyAuth
from archiver.source.client import Filter, VoiceCallsClient
from archiver.source.http import JsonApi
from archiver.source.listing import Lister
from archiver.tls import client_context
from archiver.wire import Wire


def source(
    settings: SourceSettings, clock: Clock, pressure: Pressure | None = None
) -> VoiceCallsClient:
    """The source's API client; raises `UsageError` where a secret's file cannot be read."""
    api = JsonApi(
        settings.api_base_url,
        _credentials(settings, clock),
        clock,
        Wire(client_context(), check=clock.check),
        retry=Retry(clock, pressure=pressure),
        requests_per_second=settings.api_rate,
        narrowing=_narrowing(settings),
    )
    return VoiceCallsClient(api)


def _narrowing(settings: SourceSettings) -> dict[str, str]:
    """The settings that narrow every listing: credentials may be good for that part alone."""
    asked = {"campaignId": settings.campaign_id, "direction": settings.direction}
    return {name: value for name, value in asked.items() if value}


def _credentials(settings: SourceSettings, clock: Clock) -> Credentials:
    if settings.has("api_token"):
        return BearerAuth(
            settings.secret("api_token"), may_change=settings.api_token_file is not None
        )
    files = (settings.api_key_file, settings.api_hmac_secret_file)
    return SignedKeyAuth(
        settings.secret("api_key"),
        settings.secret("api_hmac_secret"),
        clock,
        may_change=any(file is not None for file in files),
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
