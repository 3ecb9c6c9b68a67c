"""What listings asked for, as window lines tell it (`filter`): whether it is the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def as_text(document: object) -> str:
    """The same ASCII text for the same filter, in whatever order it names its states. JSON."""
    states = document.get("state") if isinstance(document, dict) else None
    if isinstance(states, list) and all(isinstance(state, str) for state in states):
        document = {**document, "state": sorted(set(states))}  # type: ignore[dict-item]
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def asks_for(document: Mapping[str, Any], call: Mapping[str, str | None]) -> bool:
    """Whether a filter certainly asks for a call, of which `call` has the `state`, `campaign_id`
    and `direction`: what is not known of it, the source may not have known either."""
    return all(_holds(wanted, call.get(name)) for name, wanted in document.items())


def _holds(wanted: object, value: str | None) -> bool:
    among = wanted if isinstance(wanted, list) else [wanted]
    return value is not None and value.casefold() in {str(one).casefold() for one in among}
