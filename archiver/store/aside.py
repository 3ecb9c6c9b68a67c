"""botocore's client for tasks: what it does blocks, and so is done on another thread."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from archiver.hub import offload


class Aside:
    """As `client`, whose methods a task may call; `get_object` gives a body that it may read."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.client, name)
        return partial(offload, found) if callable(found) else found

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        answer = dict(offload(self.client.get_object, **arguments))
        return {**answer, "Body": _Body(answer["Body"])}


class _Body:
    def __init__(self, body: Any) -> None:
        self._body = body

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        chunks = self._body.iter_chunks(size)
        while chunk := offload(next, chunks, b""):
            yield chunk

    def close(self) -> None:
        self._body.close()
