"""Every key's versions: more than one, or a delete marker, shows that somebody was at it.

The same listing tells what is there at all, and so what nothing names (`unnamed.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from archiver.audit.control import has_no_versions
from archiver.audit.gate import Gate
from archiver.audit.unnamed import Unnamed
from archiver.errors import StoreError
from archiver.manifest import layout

MAX_SUSPECTS = 100_000
"""Keys with more than one version that are told apart; beyond it they are all `overwritten`."""


def check(gate: Gate, prefixes: Sequence[str], unnamed: Unnamed) -> str | None:
    """Look through all versions below `prefixes`, and have `unnamed` see each key that is there.

    What an auditor must know where the store does not tell of versions; None where it does.
    """
    how, listed = "cannot list", False
    try:
        listed, kept = _check_versions(gate, prefixes, unnamed)
        if kept:
            return None
        how = "keeps no"
    except StoreError as error:
        if not has_no_versions(error):
            raise
    if not listed:
        unnamed.clear()
        for prefix in prefixes:
            for item in gate.list(prefix):
                unnamed.look(item.key)
    return f"the store {how} versions: overwriting leaves no trace there"


def _check_versions(gate: Gate, prefixes: Sequence[str], unnamed: Unnamed) -> tuple[bool, bool]:
    """Report each key that has more than one version, or a delete marker.

    A version that is not the newest shows that something lies over it; what, is told once all
    versions of the key are known. Whether anything was listed, and whether the store keeps
    versions: one that keeps none lists a `null` of each key, or nothing.
    """
    suspects: dict[str, set[str]] = {}
    listed = kept = False
    for prefix in prefixes:
        for version in gate.versions(prefix):
            listed, kept = True, kept or version.version_id not in ("", "null")
            if version.is_latest and not version.is_delete_marker:
                unnamed.look(version.key)
                continue
            if version.key == layout.PROBE:
                continue
            kind = "version" if not version.is_delete_marker else "marker"
            kind = "hidden" if version.is_delete_marker and version.is_latest else kind
            if version.key in suspects or len(suspects) < MAX_SUSPECTS:
                suspects.setdefault(version.key, set()).add(kind)
            else:
                gate.findings.add("overwritten", version.key)
    for key, kinds in sorted(suspects.items()):
        code = (
            "deleted" if "hidden" in kinds else "recreated" if "marker" in kinds else "overwritten"
        )
        gate.findings.add(code, key)
    return listed, kept
