"""A gate before a real store that lets through what AWS's policies allow, as AWS would.

    with Gate(store_url, [policy]) as gate:
        ...  # gate.url; afterwards gate.used and gate.denied

Behind it everybody has the store's own credentials: which policies hold is a matter of the gate
that one comes through. What it knows of AWS stands in `iam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.fakes import iam
from tests.fakes.forwarding import Forwarding, Front

_REFUSAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class Gate(Front):
    """Everything that came through it, and what did not."""

    upstream: str
    policies: Sequence[iam.Policy]
    used: set[str] = field(default_factory=set)
    """Actions without which an answer would have been another."""
    denied: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.handler = _Handler

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        assert self.broken == [], "a request that iam.py does not know"

    def allows(self, act: iam.Act) -> bool:
        if iam.allows(self.policies, act):
            self.used.add(act.action)
            return True
        self.denied.append(f"{act.action} {act.resource}")
        return False


class _Handler(Forwarding):
    front: Gate

    def serve(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = iam.Asked(self.command, self.path, headers, body)
        try:
            verdicts = [self.front.allows(act) for act in iam.acts(asked)]
        except Exception as error:
            self.front.broken.append(f"{asked.method} {asked.path}: {error!r}")
            raise
        if all(verdicts):
            self._forward(asked)
        else:
            self.answer(403, [], _REFUSAL)

    def _forward(self, asked: iam.Asked) -> None:
        status, headers, data = self.ask(asked.body)
        if self._hides_absence(asked, status):
            self.answer(403, [], _REFUSAL)
        else:
            self.answer(status, [pair for pair in headers if self._tells(asked, pair[0])], data)

    def _hides_absence(self, asked: iam.Asked, status: int) -> bool:
        """Who may not list is not told that there is no such key."""
        bucket, key = asked.place
        absent = status == 404 and key and asked.method in ("GET", "HEAD")
        listing = iam.Act("s3:ListBucket", f"arn:aws:s3:::{bucket}")
        return bool(absent) and not self.front.allows(listing)

    def _tells(self, asked: iam.Asked, header: str) -> bool:
        action = iam.SHOWN_TO.get(header.lower())
        resource = "arn:aws:s3:::" + "/".join(asked.place)
        return action is None or self.front.allows(iam.Act(action, resource))
