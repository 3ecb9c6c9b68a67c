"""A world whose processes run on the real `Bucket`, on a wire where everything can go wrong."""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archiver.core.errors import StoreError
from archiver.core.model import Retention
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.manifest.signing import SigningKey
from archiver.source.api import VoiceCallsClient
from archiver.source.recordings import RecordingClient
from archiver.store.bucket import ORPHANED_AFTER, Bucket
from archiver.store.client import StoreOptions
from archiver.store.probe import quick_probe, require_safe
from tests.fakes.harm import Harm, put_there, take_away
from tests.fakes.memory_rig import Times, World, Writer
from tests.fakes.memory_s3 import MemoryS3, S3Uploads
from tests.fakes.memory_store import MemoryStore
from tests.simulation.source import Front, api_of, blobs_of
from tests.simulation.store import StoreCarrier
from tests.simulation.wire import Process, ProcessClock, Turns, Wire

PAGES = {layout.VERIFY_PAGE: b"how to verify\n", layout.VERIFY_SCRIPT: b"exit 0\n"}


@cache
def the_key() -> SigningKey:
    """The same in each run: its id stands in keys, and so in the trace."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"simulated").digest()))


class SimWorld(World):
    """`chance` decides about everything that is nobody's choice. `lock_days` 0 is no lock."""

    def __init__(
        self,
        now: datetime,
        watermark: datetime,
        times: Times,
        chance: random.Random,
        *,
        lock_days: int = 0,
        haste: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(now, watermark, times, **options)
        self.key = the_key()
        self.chance = chance
        self.retention = Retention("GOVERNANCE", lock_days) if lock_days else Retention()
        self.store = MemoryStore(
            self.clock, writer="test", ticks=self.tick, lock_mode=self.retention.mode
        )
        self.uploads = S3Uploads()
        self.wire = Wire(self.clock, Turns(chance, haste))
        self.processes: dict[str, Process] = {}

    def spoil(self, harm: Harm) -> Harm:
        """From now on this is bad, until it is healed."""
        self.wire.harms.all.append(harm)
        self.platform.spoilt = self.wire.harms.answer
        for key, data in harm.objects.items():
            put_there(self.store, key, data)
        return harm

    def heal(self, harm: Harm) -> None:
        """Somebody has seen to it."""
        harm.healed = True
        for key in harm.objects:
            take_away(self.store, key)

    def start(self, name: str, part_bytes: int = 8 << 20) -> SimWriter:
        """A new process, which knows nothing. Its archive is not open yet: see `found`."""
        assert name not in self.processes, "two processes of one name"
        self.processes[name] = Process(name, ProcessClock(self.clock))
        return SimWriter(self, name, part_bytes)

    def clock_of(self, name: str) -> ProcessClock:
        return self.processes[name].clock

    def store_of(self, name: str) -> Bucket:
        process = self.processes[name]
        carrier = StoreCarrier(self.wire, process, self.chance)
        client = MemoryS3(self.store.by(name), self.uploads, self.clock.now, carrier)
        options = StoreOptions("simulated", lock_mode=self.retention.mode)
        clock: Any = process.clock
        return Bucket(options, clock, Retry(clock), client=client)

    def api_of(self, name: str) -> VoiceCallsClient:
        return api_of(self._front(name))

    def blobs_of(self, name: str) -> RecordingClient:
        return blobs_of(self._front(name))

    def _front(self, name: str) -> Front:
        return Front(self.platform, self.wire, self.processes[name], self.chance)

    def finish(self) -> None:
        """Nobody has done what nobody may do."""
        assert self.store.violations == [], self.store.violations
        assert self.platform.violations == [], self.platform.violations


class SimWriter(Writer):
    """One process. It begins as `App.ensure_archive` has it begin."""

    _world: SimWorld

    @property
    def process(self) -> Process:
        return self._world.processes[self.name]

    def found(self) -> None:
        """Open the archive, or begin it; then clear away what killed processes left."""
        world, bucket = self._world, self.store
        if not self.chain.open():
            self.chain.begin(
                capabilities={"create_once": True, "checksums": True, "whole_checksums": True},
                pages=PAGES,
                watermark=world.watermark,
            )  # fmt: skip
            return
        found = quick_probe(bucket, self.chain.genesis().document["store"])
        require_safe(found, single_writer=False)
        bucket.create_once, bucket.read_back = found.create_once, not found.checksums
        bucket.trust_put_checksum = found.whole_checksums
        with suppress(StoreError):
            bucket.abort_uploads(layout.RECORDINGS, world.clock.now() - ORPHANED_AFTER)
