"""The interface through which a backfill reports its progress."""

from __future__ import annotations

from typing import Protocol

from archiver.core.model import Window


class BackfillProgress(Protocol):
    """Receives the progress of a backfill. Called from many threads at once."""

    def window_listed(self, window: Window, new_calls: int) -> None: ...

    def call_done(self, outcome: str, recording_bytes: int) -> None: ...

    def window_done(self, window: Window) -> None: ...

    def source_paused(self, seconds: float) -> None: ...


class NoProgress:
    """Discards the progress."""

    def window_listed(self, window: Window, new_calls: int) -> None:
        pass

    def call_done(self, outcome: str, recording_bytes: int) -> None:
        pass

    def window_done(self, window: Window) -> None:
        pass

    def source_paused(self, seconds: float) -> None:
        pass
