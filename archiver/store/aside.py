"""botocore's client for tasks: what it does blocks, and so is done on another thread."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from archiver.clock import RemoteClock
from archiver.hub import offload


class Aside:
    """As `client`, whose methods a task may call; `get_object` gives a body that it may read.
    `remote` hears of the `Date` of each answer."""

    def __init__(self, client: Any, remote: RemoteClock | None = None) -> None:
        self.client = client
        self._remote = remote

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.client, name)
        return partial(self._ask, found) if callable(found) else found

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        answer = dict(self._ask(self.client.get_object, **arguments))
        return {**answer, "Body": _Body(answer["Body"])}

    def _ask(self, method: Any, *arguments: Any, **options: Any) -> Any:
        try:
            answer = offload(method, *arguments, **options)
        except ClientError as error:
            self._hear(error.response)
            raise
        self._hear(answer)
        return answer

    def _hear(self, answer: Any) -> None:
        if self._remote is not None and isinstance(answer, dict):
            headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            self._remote.tells(headers.get("date"))


class _Body:
    def __init__(self, body: Any) -> None:
        self._body = body

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        chunks = self._body.iter_chunks(size)
        while chunk := offload(next, chunks, b""):
            yield chunk

    def close(self) -> None:
        self._body.close()
