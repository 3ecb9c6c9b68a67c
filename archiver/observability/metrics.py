"""Every metric, declared once with its help text. docs/metrics.md is generated from this file.

Labels have values from closed sets only: never an id, a host or a URL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from structlog.contextvars import bound_contextvars

from archiver import __version__
from archiver.core.errors import ArchiverError, UsageError
from archiver.core.model import OTHER_DOCUMENTS

# The library adds a `…_created` series to each counter and histogram. They are not documented.
disable_created_metrics()  # type: ignore[no-untyped-call]

# With this variable the library keeps each value in a file there, from the first metric on.
for _name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
    _directory = os.environ.get(_name)
    if _directory is not None and not os.access(f"{_directory or '?'}/", os.W_OK | os.X_OK):
        raise UsageError(f"{_name}: {_directory!r} is not a writable directory: unset it")

REGISTRY = CollectorRegistry(auto_describe=True)

STAGES = ("list", "call", *OTHER_DOCUMENTS, "sas", "transfer", "verify", "record", "seal")

counter = partial(Counter, registry=REGISTRY)
gauge = partial(Gauge, registry=REGISTRY)

CALLS = counter(
    "archiver_calls", "Calls committed by a record of this process, by outcome.", ["outcome"]
)
BYTES = counter(
    "archiver_bytes", "Bytes written to the archive by this process, by kind of file.", ["kind"]
)
STAGE_SECONDS = Histogram(
    "archiver_stage_seconds",
    "Seconds that one pass through a stage took, retries included.",
    ["stage"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1200),
    registry=REGISTRY,
)
RETRIES = counter(
    "archiver_retries", "Requests that were sent again, by stage and reason.", ["stage", "reason"]
)
UNREADABLE_ENTRIES = counter(
    "archiver_unreadable_entries",
    "Entries of listings that could not be read as calls, once for each listing of a window.",
)
SAS_RENEWALS = counter(
    "archiver_sas_renewals",
    "Signed recording URLs asked for again because the first was refused or had expired.",
)
SOURCE_PAUSE = gauge(
    "archiver_source_pause_seconds",
    "Seconds left of a pause that the source asked for (`Retry-After`), in which it is sent no "
    "request; 0 where none.",
)
IN_FLIGHT = gauge("archiver_in_flight", "Calls that a worker is archiving right now.")
PENDING = gauge(
    "archiver_pending_calls", "Calls that the source lists and that have no record yet."
)
OLDEST_UNARCHIVED = gauge(
    "archiver_oldest_unarchived_seconds",
    "Age of the oldest call that the source lists and that has no record yet, of the oldest open "
    "window that cannot be listed, or of the last good round while rounds fail; 0 where none.",
)
WATERMARK = gauge(
    "archiver_watermark_timestamp_seconds",
    "Up to this Unix time every window is sealed with none left out.",
)
LAST_ROUND = gauge(
    "archiver_last_round_timestamp_seconds", "Unix time at which the loop last finished a round."
)
LAST_SEAL = gauge(
    "archiver_last_seal_timestamp_seconds", "Unix time of the newest seal that this process knows."
)
SEAL_SEQUENCE = gauge(
    "archiver_seal_sequence", "Number of the newest seal that this process knows."
)
CLOCK_SKEW = gauge(
    "archiver_clock_skew_seconds",
    "What the clock of the source or the store shows less what ours shows, by the `Date` of its "
    "latest answer; beyond 300 from every side that tells one, nothing is closed or sealed.",
    ["of"],
)
FINDINGS = counter(
    "archiver_findings", "Findings set down in records by this process, by code.", ["code"]
)
BUILD_INFO = gauge("archiver_build_info", "Always 1; the label tells the version.", ["version"])
BUILD_INFO.labels(__version__).set(1)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure one pass through a stage. Adds the stage to the log lines within, and to an
    `ArchiverError` that leaves it and names no stage yet."""
    start = perf_counter()
    try:
        with bound_contextvars(stage=name):
            yield
    except ArchiverError as error:
        error.stage = error.stage or name
        raise
    finally:
        STAGE_SECONDS.labels(name).observe(perf_counter() - start)
