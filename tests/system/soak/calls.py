"""Calls that keep appearing, at a source over Azurite: some of them late, some in pieces.

What an archive must hold in the end stands in `truth`, in the words of `outcome.py`.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.system.azure_api import AzureApi, AzureCall, Blobs, audio, call_document
from tests.system.servers import Azurite

Kind = Literal[
    "plain",
    "silent",  # the source has no recording, ever
    "lost",  # there is a signed URL, and no blob behind it, ever
    "recording later",
    "survey later",
    "listed later",
    "of yesterday",  # listed today, in the range that only backfills look at
    "blocks",  # large, and without a Content-MD5
    "large",  # large, in one shot
]
KINDS: dict[Kind, float] = {
    "plain": 72,
    "silent": 4,
    "lost": 1,
    "recording later": 5,
    "survey later": 5,
    "listed later": 5,
    "of yesterday": 6,
    "blocks": 1,
    "large": 1,
}
"""So many of a hundred."""
LATEST_SECONDS = 90.0
"""Nothing comes later than this after its call."""
LARGE_SECONDS = 600
"""16 kB each: over 8 MiB, so such a recording is uploaded in parts."""

FIRST_LARGE = 8
"""So many large ones come first: what their buffers take is taken from the beginning."""


@dataclass(frozen=True)
class Truth:
    """What is to be archived of a call: `recording` is `(bytes, SHA-256)`, None for none."""

    document: dict[str, Any]
    epa: dict[str, Any] | None
    recording: tuple[int, str] | None
    lost: bool = False
    """There was a recording once, and it cannot be had: to be told of as failed."""


class BlobsBehind(Blobs):
    """Signed URLs name a proxy, and not Azurite itself."""

    def __init__(self, azurite: Azurite, via: str) -> None:
        super().__init__(azurite)
        self._via = via

    def signed_url(self, name: str, *, expired: bool = False) -> tuple[str, datetime]:
        url, expiry = super().signed_url(name, expired=expired)
        return urlsplit(url)._replace(netloc=self._via).geturl(), expiry


class Calls:
    """New calls, `per_second`, from `start` until `stop`; what was to come later still comes.

    Calls of yesterday have their start in the range that begins at `yesterday`.
    """

    def __init__(
        self,
        api: AzureApi,
        blobs: Blobs,
        seed: str,
        *,
        per_second: float,
        yesterday: tuple[datetime, datetime],
    ) -> None:
        self.truth: dict[str, Truth] = {}
        self.kinds: Counter[Kind] = Counter()
        self.last: datetime = datetime.now(UTC)
        """The start of the newest call of today."""
        self._api = api
        self._blobs = blobs
        self._chance = random.Random(f"{seed} calls")
        self._interval = 1 / per_second
        self._yesterday = yesterday
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No new ones; back when all that was to come has come."""
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            at = time.monotonic()
            while not self._over.is_set() or self._later:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    heapq.heappop(self._later)[2]()
                if now >= at and not self._over.is_set():
                    self._appear()
                    at = max(at + self._interval, now)
                time.sleep(0.05)
        except BaseException as error:
            self.error = error

    def _appear(self) -> None:
        chance = self._chance
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        if len(self.truth) < FIRST_LARGE:
            kind = "blocks"
        self.kinds[kind] += 1
        large = kind in ("blocks", "large")
        seconds = LARGE_SECONDS if large else chance.randint(1, 6)
        document = self._document(kind, seconds)
        call_id = document["id"]
        epa = _survey(chance) if kind == "survey later" or chance.random() < 0.8 else None
        recording = None
        name = f"{call_id}.wav"
        if kind not in ("silent", "lost"):
            data = audio(chance, seconds)
            recording = len(data), hashlib.sha256(data).hexdigest()
            self._blobs.put(name, data, in_blocks=kind == "blocks")
        self.truth[call_id] = Truth(document, epa, recording, lost=kind == "lost")
        self._tell(kind, AzureCall(document, epa, None if kind == "silent" else name))

    def _tell(self, kind: Kind, call: AzureCall) -> None:
        """Have the call listed, as much of it as there is at first."""
        if kind == "listed later":
            self._defer(partial(self._api.add, call))
            return
        if kind == "recording later":
            self._defer(partial(setattr, call, "blob", call.blob))
            call.blob = None
        elif kind == "survey later":
            self._defer(partial(setattr, call, "epa", call.epa))
            call.epa = None
        self._api.add(call)

    def _defer(self, action: Callable[[], None]) -> None:
        at = time.monotonic() + self._chance.uniform(LATEST_SECONDS / 3, LATEST_SECONDS)
        heapq.heappush(self._later, (at, len(self.truth), action))

    def _document(self, kind: Kind, seconds: int) -> dict[str, Any]:
        chance, number = self._chance, len(self.truth)
        at = datetime.now(UTC)
        if kind == "of yesterday":
            start, end = self._yesterday
            at = start + (end - start) * chance.random()
        else:
            self.last = at
        turn = {"role": "agent", "text": f"Grüß Gott, {number} 👋", "timestamp": "0.5"}
        return call_document(
            f"vc_{chance.getrandbits(40):010x}",
            at,
            seconds,
            campaignId=f"camp_{number % 7}",
            direction=chance.choice(("Inbound", "Outbound")),
            transcript=[turn],
        )


def _survey(chance: random.Random) -> dict[str, Any]:
    return {"state": "Completed", "calculatedScore": chance.randint(0, 100) / 10}
