"""A recording of 250 MB over a network that resets every 20 MB, with URLs that live 5 seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import MakeArchive
from tests.system.servers import Source
from tests.system.tcp_proxy import TcpProxy

BYTES, RESET_AFTER, PACE = 250_000_000, 20_000_000, 25e6
DATES = ("--from", "2024-04-01", "--to", "2024-04-02")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_it_arrives_whole(make_archive: MakeArchive, tmp_path: Path) -> None:
    huge = ("--calls", "0", "--huge", "1", "--huge-bytes", str(BYTES), "--sas-ttl", "5")
    with (
        TcpProxy(reset_after=RESET_AFTER, bytes_per_second=PACE) as proxy,
        Source(tmp_path, *huge, *DATES, "--blob-via", proxy.address) as source,
    ):
        proxy.upstream = source.addresses["blob_server"]
        archiver, bucket = make_archive(source.settings())
        result = archiver.run("backfill", *DATES, timeout=150).expect(0)
        [told] = [call["recording"] for call in source.truth.values()]
    [key] = [key for key in bucket.keys("recordings/") if key.endswith(".wav")]
    assert bucket.sha256(key) == told["sha256"]
    share = proxy.brought / told["bytes"]
    print(f"{proxy.resets} resets, {share:.3f} of its size, {result.seconds:.0f} s")
    assert proxy.resets >= 12
    assert share < 1.3
    assert bucket.open_uploads() == []
