"""Each kind of damage is found, by its own code, at its level, and nothing else is said."""

from __future__ import annotations

from typing import Any

import pytest

from archiver.audit.chain import KnownHead
from archiver.audit.findings import CODES
from archiver.manifest.signing import SigningKey
from tests.audit.builder import Builder, small_archive
from tests.audit.damage import DAMAGES, Damage, damaged
from tests.audit.foreign import FOREIGN


def codes(builder: Builder, **options: Any) -> set[str]:
    report = builder.audit(**options)
    assert report.exit_code == (0 if report.ok else 1)
    return set(report.totals)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_has_its_code(damage: Damage) -> None:
    builder, head = damaged(damage)
    known = KnownHead.parse(head) if damage.head else None

    assert codes(builder, level=damage.level, head=known) == damage.codes


@pytest.mark.parametrize(
    "damage", [damage for damage in DAMAGES if damage.head], ids=lambda damage: damage.name
)
def test_without_the_known_head_it_cannot_be_seen(damage: Damage) -> None:
    """But for what a lost seal leaves behind, which is no more than information."""
    found = codes(damaged(damage)[0], level="bytes")
    assert {code for code in found if CODES[code].severity != "info"} == set()


def test_a_whole_chain_of_another_key_needs_the_key_from_outside() -> None:
    forged = small_archive()
    real = SigningKey.generate().public

    assert codes(forged) == set()
    assert codes(forged, public_key=real) == {"key_mismatch", "signature_invalid"}


@pytest.mark.parametrize("level", ["manifest", "objects", "bytes"])
def test_a_sound_archive_is_clean(level) -> None:
    builder = small_archive()
    head = KnownHead.parse(builder.head)
    options = {"level": level, "public_key": builder.key.public, "head": head}

    report = builder.audit(**options, workers=1)

    assert (report.ok, report.exit_code, report.totals, report.notes) == (True, 0, {}, [])
    assert builder.audit(**options).counts == report.counts


def test_every_code_is_provoked_by_some_test() -> None:
    elsewhere = {  # test_hostile.py, test_retention.py, test_strays.py
        "retention_weaker", "retention_missing", "too_large", "unreadable", "unexpected_object",
        "unsealed_segment", "unlistable",
    }  # fmt: skip
    provoked = set().union(*(damage.codes for damage in [*DAMAGES, *FOREIGN]))
    assert provoked | elsewhere == set(CODES)
