"""An error as a value, for the test to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

Kind = TypeVar("Kind", bound=BaseException)


def error_of(kind: type[Kind], act: Callable[..., object], *args: Any, **options: Any) -> Kind:
    """The error that this call ends with; fails where it ends well."""
    with pytest.raises(kind) as caught:
        act(*args, **options)
    return caught.value
