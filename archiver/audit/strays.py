"""What lies in the manifest and in no seal: segments that wait, and traces of what is gone.

Writers may be at work: a key seen in a listing may belong to a seal that is newer than our reading
of the chain. So before anything is called a trace, the bucket is asked again.
"""

from __future__ import annotations

from archiver.audit.chain import ChainView
from archiver.audit.gate import Gate
from archiver.audit.segments import is_events, segment_name
from archiver.manifest import layout, seal

_EXTENSIONS = (".jsonl", ".sha256", ".seal")


def check(gate: Gate, chain: ChainView) -> None:
    """List the manifest and report what no seal explains."""
    for prefix in (layout.SEGMENTS, layout.EVENTS):
        for listed in gate.reader.list(prefix):
            stem, dot, extension = listed.key.rpartition(".")
            segment = f"{stem}.jsonl"
            named = segment_name(segment) is not None or is_events(segment)
            if dot + extension not in _EXTENSIONS or not named:
                gate.findings.add("unexpected_object", listed.key)
            elif segment not in chain.segments:
                _stray(gate, chain, listed.key, segment)
    known = {layout.VERIFY_PAGE, layout.VERIFY_SCRIPT, chain.key_object}
    for listed in gate.reader.list(layout.KEYS):
        if listed.key not in known and chain.key_object is not None:
            gate.findings.add("unexpected_object", listed.key)


def _stray(gate: Gate, chain: ChainView, key: str, segment: str) -> None:
    """One of the three objects of a segment that no seal names."""
    pointer = layout.pointer_key(segment)
    if key == pointer:
        _dangling(gate, chain, key)
    elif key == segment:
        if gate.reader.head(pointer) is None:
            gate.findings.add("unsealed_segment", key)
    elif gate.reader.head(segment) is None:
        gate.findings.add("segment_missing", segment, "its .sha256 is there")


def _dangling(gate: Gate, chain: ChainView, pointer: str) -> None:
    """A pointer is written after its seal: without a seal, the seal is gone, or was read badly."""
    data = gate.read(pointer, seal.POINTER_BYTES, "pointer_missing")
    if data is None:
        return
    if (seq := seal.parse_pointer(data)) is not None:
        newer = seq > chain.last and gate.reader.head(layout.seal_key(seq)) is not None
        unread = seq <= chain.last and seq not in chain.read
        if newer or unread:
            return
    gate.findings.add("pointer_dangling", pointer)
