"""A record in the very form that the archiver writes, recognised by one regular expression.

Parsing a line, writing it anew and comparing takes five times as long, and of a million lines all
are in this form but a few. Its rules are those of docs/manifest-format.md, made narrower:

- Exactly these fields in their order; the files are recording, transcript, epa, each at most once.
- A call id that stands in keys as it is; every file below its call, and by its own name.
- Times in UTC, and no end or start on a later day than `archived_at`: whether the promise of such a
  record binds what covers it is to be looked at.
- No escapes, but for `\\"` and `\\\\` in the ETag, which some stores put in quotes. Numbers of up
  to 15 digits in their canonical spelling.

So a line that fits is one that `record.parse` takes and that `told.of_record` has nothing to report
of, and both ways tell the same. Of a line that does not fit nothing is known: it is to be parsed.
`tests/audit/test_glance.py` holds one against the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from itertools import compress
from operator import lt
from typing import NamedTuple

from archiver.audit.told import MAX_RECORD_BYTES, FileRef, Told
from archiver.manifest import record

_PLAIN = r"[ !#-\[\]-\U0010ffff]"  # all but control characters, `"` and `\`
_TEXT = rf'(?:"{_PLAIN}*+")'
_TEXT_OR_NULL = rf"(?:{_TEXT}|null)"
_QUOTED_OR_NULL = rf'(?:"(?:{_PLAIN}++|\\["\\])*+"|null)'
# With up to 15 digits every decimal is a double of its own, and its shortest spelling is the one
# that stands here: no needless zero at the end, and below 0.0001 it would have an exponent.
_NUMBER = r"(?:0|[1-9][0-9]{0,8}+)(?:\.(?:0|(?!0000)[0-9]{0,5}[1-9]))?"
_NUMBER_OR_NULL = rf"(?:{_NUMBER}|null)"
_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"  # faster than with {4} and {2}
_TIME = rf'"({_DAY})T[0-9:.]{{1,20}}+Z"'
"""Its day is a group."""


def _file(kind: str) -> str:
    """A file, and the comma before another one. Groups: bytes, key, SHA-256, version."""
    # As `told.is_file_key` has it: a recording's extension says what it is.
    suffix = (
        r"\.[a-z0-9]{1,8}+" if kind == "recording" else re.escape(record.FILE_KINDS[kind].suffix)
    )
    return (
        r'(?:\{"bytes":(0|[1-9][0-9]{0,17}+),'
        rf'"content_type":{_TEXT},'
        rf'"key":"(recordings/dt={_DAY}/(?P=call)/{kind}(?:-[0-9a-f]{{16}})?{suffix})",'
        rf'"kind":"{kind}",'
        r'"sha256":"([0-9a-f]{64})",'
        r'"version_id":(?:"([!#-\[\]-~]{1,1024}+)"|null)\}'
        r"(?:,(?=\{)|(?=\])))?"
    )


def _optional(name: str, value: str = _TEXT_OR_NULL) -> str:
    return rf'(?:,"{name}":{value})?'


_RECORD = re.compile(
    rf'^\{{"archived_at":{_TIME},'
    rf'(?:"attempts":{_NUMBER_OR_NULL},)?'
    rf'"audio":(?:\{{"bits_per_sample":{_NUMBER},"channels":{_NUMBER},'
    rf'"duration_seconds":{_NUMBER},"encoding":{_TEXT},"sample_rate_hz":{_NUMBER}\}}|null),'
    r'"call_id":"(?P<call>[A-Za-z0-9_-]{1,128}+)",'
    rf'"campaign_id":{_TEXT_OR_NULL},'
    rf'"direction":{_TEXT_OR_NULL},'
    rf'"duration_seconds":{_NUMBER_OR_NULL},'
    rf'"ended_at":(?:{_TIME}|null),'
    rf'"files":\[{_file("recording")}{_file("transcript")}{_file("epa")}\],'
    rf'"findings":\[(?:{_TEXT}(?:,{_TEXT})*+)?\],'
    r'"outcome":"(archived|no_recording|failed)",'
    rf'"reason":{_TEXT_OR_NULL},'
    rf'"record":"(records/dt=({_DAY})/(?P=call)/r(?P<revision>[1-9][0-9]{{0,8}}+)\.json)",'
    r'"retention":(?:\{"mode":"([A-Z]{1,16}+)","until":"([0-9TZ:.+-]{1,40}+)"\}|null),'
    r'"revision":(?P=revision),'
    rf'"source":\{{"api":{_TEXT}{_optional("content_md5")}{_optional("etag", _QUOTED_OR_NULL)}'
    rf"{_optional('last_modified')}{_optional('recording_host')}{_optional('request_id')}\}},"
    rf'"started_at":(?:{_TIME}|null),'
    rf'"state":{_TEXT_OR_NULL},'
    rf'(?:"status":{_NUMBER_OR_NULL},)?'
    r'"type":"call","v":1\}\n',
    re.MULTILINE,
)


class Files(NamedTuple):
    """A file of each record of a batch, all of one kind; texts as they stand there, and empty
    where a record has no such file, or a file no version."""

    sizes: Sequence[str]
    keys: Sequence[str]
    sha256s: Sequence[str]
    versions: Sequence[str]

    def without_gaps(self) -> Files:
        """Without the records that have no such file."""
        if "" not in self.keys:
            return self
        return Files(*(list(compress(column, self.keys)) for column in self))


class Batch(NamedTuple):
    """Records, as columns: of a million, objects for each would take as long as reading them."""

    call_ids: Sequence[str]
    outcomes: Sequence[str]
    keys: Sequence[str]
    revisions: Sequence[str]
    retentions: Sequence[tuple[str, str]]
    """Mode and date, empty where nothing is promised."""
    files: Sequence[Files]

    def told(self) -> Iterator[Told]:
        """The same, record by record."""
        kinds = [zip(*kind, strict=True) for kind in self.files]
        columns = (self.call_ids, self.outcomes, self.keys, self.revisions, self.retentions)
        for call_id, outcome, key, revision, (mode, until), *files in zip(
            *columns, *kinds, strict=True
        ):
            named = [
                FileRef(at, version_id or None, int(size), sha256)
                for size, at, sha256, version_id in files
                if at
            ]
            retention = {"mode": mode, "until": until} if mode else None
            yield Told(key, call_id, outcome, int(revision), named, named, retention)


def batch(lines: Sequence[bytes]) -> Batch | None:
    """What the records in lines tell; None where one is to be parsed, or comes out of order. Lines
    are what `lines.py` makes: each has one newline, at its end.

    Each match begins where a line does and ends with its newline, which is the only one in it: as
    many matches as lines are all lines.
    """
    if max(map(len, lines)) > MAX_RECORD_BYTES:
        return None
    try:
        text = b"".join(lines).decode()
    except UnicodeDecodeError:
        return None
    rows = _RECORD.findall(text)
    if len(rows) != len(lines):
        return None
    written, call_ids, ended, *files, outcomes, keys, days, revisions, modes, untils, started = zip(
        *rows, strict=True
    )
    kinds = [Files(*files[at : at + 4]) for at in (0, 4, 8)]
    incomplete = ("archived", "") in zip(outcomes, kinds[0].keys, strict=True)
    if incomplete or not all(map(_is_date, set(days))) or not all(map(lt, keys, keys[1:])):
        return None
    if any(map(lt, written, ended)) or any(map(lt, written, started)):
        return None
    retentions = list(zip(modes, untils, strict=True))
    return Batch(call_ids, outcomes, keys, revisions, retentions, kinds)


@lru_cache(1024)
def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
