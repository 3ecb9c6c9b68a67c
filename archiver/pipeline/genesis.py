"""An archive's beginning: the public key, the verifier's page and script, and seal 0.

Seal 0 comes last: it has the key, and names the pages by hash, so they are there before it. A crash
in between leaves objects that the next try finds and adopts.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from archiver import fixity
from archiver.clock import Clock
from archiver.errors import KeyTaken
from archiver.manifest import layout, seal
from archiver.manifest.signing import PublicKey
from archiver.model import Retention
from archiver.pipeline.ports import Store
from archiver.pipeline.sealing import Chain, new_archive_id


def found_archive(
    chain: Chain,
    store: Store,
    public_key: PublicKey,
    clock: Clock,
    *,
    capabilities: Mapping[str, Any],
    pages: Mapping[str, bytes],
    watermark: datetime,
    retention: Retention,
) -> bool:
    """Begin an archive and open its chain; `pages` are the verifier's, by key.

    False where another writer was faster.
    """
    until = retention.until(clock.now())
    store.put_once(
        layout.public_key_key(public_key.key_id),
        public_key.pem,
        content_type="application/x-pem-file",
        retain_until=until,
    )
    there = {}
    for key, page in pages.items():
        try:
            stored = store.put_once(key, page, content_type="text/plain", retain_until=until)
            there[key] = stored.sha256
        except KeyTaken:  # by an earlier version's page: it holds for this archive too
            there[key] = fixity.sha256_hex(store.read(key) or b"")
    return chain.found(
        lambda: seal.genesis(
            new_archive_id(),
            public_key,
            {**capabilities, "pages": there},
            sealed_at=clock.now(),
            watermark=watermark,
        )
    )
