"""What lies in the manifest and in no seal: segments that wait, and traces of what is gone.

Writers may be at work: a key seen in a listing may belong to a seal that is newer than our reading
of the chain. So before anything is called a trace, the bucket is asked again.
"""

from __future__ import annotations

from archiver.audit.chain import ChainView
from archiver.audit.gate import Gate
from archiver.audit.segments import SegmentCheck, is_events, segment_name
from archiver.manifest import layout, seal

MAX_READ = 1000
"""Unsealed segments that are read; the others are only reported. In a sound archive there are as
many as windows that are being sealed just now."""
_EXTENSIONS = (".jsonl", ".sha256", ".seal")


def check(gate: Gate, chain: ChainView, segments: SegmentCheck) -> None:
    """List the manifest and report what no seal explains."""
    strays = _Strays(gate, chain, segments)
    for prefix in (layout.SEGMENTS, layout.EVENTS):
        for listed in gate.list(prefix):
            stem, dot, extension = listed.key.rpartition(".")
            segment = f"{stem}.jsonl"
            named = segment_name(segment) is not None or is_events(segment)
            if dot + extension not in _EXTENSIONS or not named:
                gate.findings.add("unexpected_object", listed.key)
            elif segment not in chain.segments:
                strays.take(listed.key, segment)
    known = {layout.VERIFY_PAGE, layout.VERIFY_SCRIPT, chain.key_object}
    for listed in gate.list(layout.KEYS):
        if listed.key not in known and chain.key_object is not None:
            gate.findings.add("unexpected_object", listed.key)


class _Strays:
    """Objects of segments that no seal names."""

    def __init__(self, gate: Gate, chain: ChainView, segments: SegmentCheck) -> None:
        self._gate = gate
        self._chain = chain
        self._segments = segments
        self._read = 0

    def take(self, key: str, segment: str) -> None:
        """One of the three objects of such a segment."""
        pointer = layout.pointer_key(segment)
        if key == pointer:
            self._dangling(key)
        elif key == segment:
            if self._gate.is_there(pointer) is False:
                self._unsealed(key)
        elif self._gate.is_there(segment) is False:
            self._gate.findings.add("segment_missing", segment, "its .sha256 is there")

    def _unsealed(self, key: str) -> None:
        """A segment that waits for its seal, or something else at its key."""
        self._read += 1
        if self._read > MAX_READ:
            self._gate.findings.add("unsealed_segment", key, "not read: there are very many")
            return
        verdict = self._segments.unsealed(key)
        if verdict.companion is not None:
            self._gate.findings.add("unsealed_segment", key)
            self._segments.check_unsealed_companion(key, verdict.companion)
        elif verdict.code is not None and verdict.code != "unreadable":
            self._gate.findings.add(verdict.code, key, verdict.detail)

    def _dangling(self, pointer: str) -> None:
        """A pointer is written after its seal: without a seal, the seal is gone, or was read
        badly."""
        data = self._gate.read(pointer, seal.POINTER_BYTES, "pointer_missing")
        if data is None:
            return
        if (seq := seal.parse_pointer(data)) is not None:
            newer = seq > self._chain.last and self._gate.is_there(layout.seal_key(seq))
            unread = seq <= self._chain.last and seq not in self._chain.read
            if newer or unread:
                return
        self._gate.findings.add("pointer_dangling", pointer)
