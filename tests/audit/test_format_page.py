"""docs/manifest-format.md: each of its commands runs as it stands, on an archive that the real
pipeline has made, prints what the page says, and notices damage.

What it must print is worked out from the files (plain.py), with nothing of the archiver's.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from archiver.audit.verify import Options, verify
from archiver.core.retry import Retry
from archiver.pipeline.call import HAD_RECORDING
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions
from tests.audit import tamper
from tests.audit.builder import Builder, hour, unordered_archive
from tests.audit.eventful import CALL, ODD, STORY, live, save
from tests.audit.plain import (
    COUNTS,
    OUTCOMES,
    Copy,
    Revision,
    ids_sha256,
    listed,
    newest,
    recompute,
    sha256,
    told_by,
)
from tests.conftest import LOCKED
from tests.fakes.clock import HandClock
from tests.fakes.merkle import merkle_root
from tests.fakes.platform import Platform
from tests.fakes.rig import new_key
from tests.system.servers import Weed

PAGE = Path(__file__).parents[2] / "docs" / "manifest-format.md"
TOOLS = ("bash", "jq", "openssl", "sha256sum")
TEN, ONE = "2024-01-15T10:00:00Z", "2024-01-15T13:00:00Z"

pytestmark = [
    pytest.mark.weed,
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
    ),
]


@dataclass(frozen=True)
class Block:
    """A command of the page, and the paragraph that leads to it."""

    intro: str
    code: str

    def at(self, n: int, start: str = TEN) -> Block:
        """The same for another revision, and another window, where it is about one."""
        code = self.code.replace("2024-01-15/1000 n=2", f"{start[:10]}/{start[11:13]}00 n={n}")
        return replace(self, code=code)

    def run(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """In a fresh bash, where an auditor would: in the copy."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.code],
            capture_output=True,
            text=True,
            cwd=folder,
        )


def page_blocks(page: Path = PAGE) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    pieces = re.split(r"^```sh\n(.*?)^```\n", text, flags=re.DOTALL | re.MULTILINE)
    intros = [piece.strip().split("\n\n")[-1] for piece in pieces[0::2]]
    return [Block(*pair) for pair in zip(intros, pieces[1::2], strict=False)]


def block(fragment: str) -> Block:
    (found,) = [one for one in page_blocks() if fragment in one.intro]
    return found


# --- what each command must print


def tsv(row: list[Any]) -> str:
    escapes = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
    return "\t".join("".join(escapes.get(c, c) for c in str(cell)) for cell in row) + "\n"


def state_of_a_window(copy: Copy, start: str = TEN, n: int = 2) -> str:
    revisions = copy.windows[start][:n]
    recomputed, told = recompute(revisions), told_by(revisions[-1].line)
    whole = {"recomputed": recomputed, "told": told, "same": recomputed == told}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def digest_of_a_window(copy: Copy, start: str = TEN, n: int = 2) -> str:
    revisions = copy.windows[start][:n]
    return f"{ids_sha256(listed(revisions))}  -\n{revisions[-1].line['listed_sha256']}\n"


def all_windows(copy: Copy) -> str:
    rows = ((start, one) for start, revisions in copy.windows.items() for one in revisions)
    return "".join(f"{start} r{one.line['revision']} OK\n" for start, one in rows)


def table(copy: Copy) -> str:
    names = ("listed", *OUTCOMES, "pending", "vanished", "of these archived")
    rows = []
    for revisions in copy.windows.values():
        line, outcomes = revisions[-1].line, newest(revisions)
        kept = sum(outcomes.get(call_id) == "archived" for call_id in line["vanished"])
        lengths = [len(line["pending"]), len(line["vanished"]), kept]
        rows.append([*(line[name] for name in COUNTS), *lengths])
    body = [[start, *row] for start, row in zip(copy.windows, rows, strict=True)]
    total = ["total", *(sum(column) for column in zip(*rows, strict=True))]
    return "".join(map(tsv, [["window", *names], *body, total]))


def histories(copy: Copy) -> str:
    return "".join(map(tsv, _histories(copy)))


def _histories(copy: Copy) -> Iterator[list[str]]:
    for start, revisions in copy.windows.items():
        line, outcomes = revisions[-1].line, newest(revisions)
        failed = [call_id for call_id, outcome in outcomes.items() if outcome == "failed"]
        for call_id in sorted({*line["pending"], *line["vanished"], *failed}):
            tales = [_tale(one, call_id) for one in revisions]
            yield [start, call_id, *(tale for tale in tales if tale)]


def _tale(one: Revision, call_id: str) -> str | None:
    record = one.records.get(call_id, {})
    words = [record.get(name) for name in ("outcome", "reason", "status")]
    words += [name for name in ("pending", "vanished") if call_id in one.line[name]]
    told = [str(word) for word in words if word is not None]
    return " ".join([f"r{one.line['revision']}", *told]) if told else None


def one_call(copy: Copy) -> str:
    lines = []
    for one in (one for revisions in copy.windows.values() for one in revisions):
        for record in (r for call_id, r in one.records.items() if call_id == CALL):
            names = ("record", "revision", "outcome", "reason", "archived_at")
            row = {
                "segment": str(one.path.relative_to(copy.folder)),
                **{name: record[name] for name in names},
                "files": [file["key"] for file in record["files"]],
            }
            lines.append(json.dumps(row, separators=(",", ":")) + "\n")
    return "".join(lines)


def held(copy: Copy) -> str:
    newest = {act["call_id"]: act for act in _acts(copy)}
    names = ("at", "call_id", "by", "reason")
    on = [[act[name] for name in names] for act in newest.values() if act["action"] == "add"]
    assert len(on) == 2
    return "".join(map(tsv, sorted(on)))


def acts_about(copy: Copy) -> str:
    names = ("at", "action", "by", "reason")
    found = [[act[name] for name in names] for act in _acts(copy) if act["call_id"] == CALL]
    assert len(found) == 1
    return "".join(map(tsv, found))


def _acts(copy: Copy) -> Iterator[dict[str, Any]]:
    """All acts, in the order of the chain."""
    for entry in (entry for _, seal in copy.seals for entry in seal["segments"]):
        if entry["key"].startswith("manifest/events/"):
            yield from map(json.loads, (copy.folder / entry["key"]).read_bytes().splitlines())


def key_id(copy: Copy) -> str:
    return 2 * f"{copy.seals[0][1]['key_id']}\n"


def head(copy: Copy) -> str:
    data, seal = copy.seals[-1]
    records = sum(e["records"] for _, one in copy.seals for e in one["segments"])
    mark = seal["watermark"]
    return f"head {len(copy.seals) - 1}:{sha256(data)}, {records} records, watermark {mark}\n"


def root(copy: Copy) -> str:
    return 2 * f"{merkle_root(copy.revision('1000', 1).lines).hex()}\n"


def silence(_: Copy) -> str:
    return ""


def counted_twice(copy: Copy) -> str:
    ids = [call_id for revisions in copy.windows.values() for call_id in listed(revisions)]
    return "".join(f'"{i}"\n' for i, count in sorted(Counter(ids).items()) if count > 1)


EXPECTED: dict[str, Callable[[Copy], str]] = {
    "One window after revision n": state_of_a_window,
    "The digest of its listed ids": digest_of_a_window,
    "All windows, all revisions": all_windows,
    "Does every call have its recording?": table,
    "with its history": histories,
    "that does not balance": silence,
    "that two windows count": silence,
    "All revisions of one call": one_call,
    "one for each of its records in order": silence,
    "Which calls are held?": held,
    "Every act about one call": acts_about,
    "The public key's id": key_id,
    "Every signature": silence,
    "It ends with the head": head,
    "Every sealed segment has the bytes": silence,
    "No window is missing": silence,
    "It lets one show a single record": root,
}
"""By a fragment of the paragraph that leads to a command: what it prints."""


# --- the archive


@pytest.fixture(scope="module")
def intact(weed: Weed, s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy of an archive that `verify` has nothing to say against."""
    clock, folder = HandClock(), tmp_path_factory.mktemp("copy")
    options = StoreOptions(
        LOCKED, prefix=folder.name, endpoint_url=weed.endpoint_url, region="us-east-1"
    )
    bucket = Bucket(options, clock, Retry(clock), client=s3)
    with Platform(clock=clock.now) as platform:
        live(platform, bucket, clock, new_key())
        assert platform.violations == []
    assert verify(bucket, Options(level="bytes")).findings == []
    save(bucket, folder)
    return Copy(folder)


@pytest.fixture
def copy(intact: Copy, tmp_path: Path) -> Copy:
    """One to damage."""
    shutil.copytree(intact.folder, tmp_path / "copy")
    return Copy(tmp_path / "copy")


def test_the_archive_has_seen_everything(intact: Copy) -> None:
    records: dict[str, dict[int, str]] = {}
    for path in (intact.folder / "records").glob("*/*/*.json"):
        one = json.loads(path.read_bytes())
        records.setdefault(one["call_id"], {})[one["revision"]] = one["outcome"]
    told = {i: [outcomes[n] for n in sorted(outcomes)] for i, outcomes in records.items()}
    assert told == {call_id: outcomes for call_id, outcomes in STORY.items() if outcomes}
    lines = [one.line for one in intact.windows[TEN]]
    assert [line["pending"] for line in lines] == [["vc_brief", "vc_broken"], [], [], []]
    gone, back = ["vc_brief", "vc_fleeting"], ["vc_brief", "vc_fleeting", "vc_gone"]
    assert [line["vanished"] for line in lines] == [
        ["vc_fleeting"], gone, ["vc_back", *back], back
    ]  # fmt: skip
    assert [one.line["vanished"] for one in intact.windows["2024-01-15T11:00:00Z"]] == [[], [ODD]]
    assert intact.windows["2024-01-15T16:00:00Z"][-1].line["pending"] == ["vc_stuck"]
    empty = intact.windows["2024-01-15T12:00:00Z"][1]
    assert (empty.line["listed"], empty.records) == (0, {})


# --- the page


def test_each_command_is_known_here() -> None:
    intros = [one.intro for one in page_blocks()]
    known = [[f for f in EXPECTED if f in intro] for intro in intros]
    assert [(f, i) for f, i in zip(known, intros, strict=True) if len(f) != 1] == []
    assert sorted(f for [f] in known) == sorted(EXPECTED)


def test_the_page_says_which_commands_print_nothing() -> None:
    silent = {f for f, expected in EXPECTED.items() if expected is silence}
    assert silent == {f for f in EXPECTED if "rints nothing" in " ".join(block(f).intro.split())}


@pytest.mark.parametrize("fragment", EXPECTED)
def test_a_command_runs_as_it_stands(fragment: str, intact: Copy) -> None:
    before = sorted(intact.folder.rglob("*"))
    done = block(fragment).run(intact.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == EXPECTED[fragment](intact)
    assert sorted(intact.folder.rglob("*")) == before, "it leaves nothing behind"


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("One window after revision n", state_of_a_window),
        ("The digest of its listed ids", digest_of_a_window),
    ],
)
def test_any_window_and_any_revision(
    fragment: str, expected: Callable[[Copy, str, int], str], intact: Copy
) -> None:
    for start, revisions in intact.windows.items():
        for n in range(1, len(revisions) + 1):
            done = block(fragment).at(n, start).run(intact.folder)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == expected(intact, start, n)
            told = done.stdout.replace("  -\n", "\n").split()
            assert '"same": true' in done.stdout or told[0] == told[1]


def test_what_is_newest_need_not_come_last(tmp_path: Path) -> None:
    builder = unordered_archive()
    builder.store.save(tmp_path)
    copy = Copy(tmp_path)

    assert verify(builder.store, Options()).findings == []
    for fragment in (AUDIT, "Does every call have its recording?", "with its history"):
        assert block(fragment).run(tmp_path).stdout == EXPECTED[fragment](copy)
    for start, revisions in copy.windows.items():
        for n in range(1, len(revisions) + 1):
            assert '"same": true' in block(STATE).at(n, start).run(tmp_path).stdout
    guide = PAGE.with_name("auditor-guide.md")
    (one,) = [one for one in page_blocks(guide) if one.code.startswith("call=")]
    for call, newest_one in (("vc_a", "r10"), ("vc_b", "r10"), ("vc_c", "r2"), ("vc_d", "r1")):
        code = one.code.replace("call=vc_abc123", f"call={call}") + "echo $record\n"
        done = replace(one, code=code).run(tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(f"/{call}/{newest_one}.json\n")


def test_a_call_that_two_windows_count_is_named(tmp_path: Path) -> None:
    builder = Builder().genesis()
    found = [builder.call(call_id, hour(10)) for call_id in ("vc_a", "vc_b", "vc_c")]
    builder.close(hour(10), found, pending=["vc_p"])
    builder.close(hour(11), found[:2], pending=["vc_p"])
    builder.close(hour(10), revision=2, pending=["vc_p"], vanished=["vc_b"],
            outcomes={"vc_a": "archived", "vc_c": "archived"}, watermark=hour(11).end)  # fmt: skip
    builder.store.save(tmp_path)

    printed = block("that two windows count").run(tmp_path).stdout

    assert printed == counted_twice(Copy(tmp_path)) == '"vc_a"\n"vc_p"\n'
    report = verify(builder.store, Options())
    assert report.totals == {"call_in_two_windows": 1}
    assert report.findings[0].detail.startswith("2 calls")


def test_the_commands_of_the_guide_run(intact: Copy) -> None:
    """Those of docs/auditor-guide.md that need neither the bucket nor the archiver."""
    blocks = page_blocks(PAGE.with_name("auditor-guide.md"))
    offline = [
        one for one in blocks if not re.search(r"^ *(aws|archiver) ", one.code, re.MULTILINE)
    ]
    assert len(offline) > 8
    for one in offline:
        done = one.run(intact.folder)
        assert (done.returncode, done.stderr) == (0, ""), one.code
        assert "BAD" not in done.stdout
        assert "FAILED" not in done.stdout
        assert one.code.count("&& echo ok") == done.stdout.splitlines().count("ok")


def test_the_page_names_the_reasons_that_show_a_recording() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (listing,) = re.findall(r"shows that the source had a recording\s\(([^)]*)\)", text)
    assert set(re.findall(r"`(\w+)`", listing)) == HAD_RECORDING


# --- damage


AUDIT, STATE, BALANCE = "All windows, all revisions", "One window after", "not balance"
SEALED, GAPS, CHAIN = "Every sealed segment", "No window is missing", "ends with the head"
COMPANION, SIGNATURES = "records in order", "Every signature"
FAILED, GONE = ": FAILED\n", ": FAILED open"
HOLE = f"{ONE} to 2024-01-15T14:00:00Z\n"
SEAL_4 = "manifest/seals/000000000004.json"
DAMAGES: list[tuple[Callable[[Copy], None], int, dict[str, str]]] = [
    (tamper.one_more, 3, {
        AUDIT: f"{TEN} r3 archived\n", BALANCE: '"revision":3', STATE: '"same": false',
        SEALED: f"1000.r3.jsonl{FAILED}",
    }),
    (tamper.one_for_another, 3, {AUDIT: f"{TEN} r3 archived failed\n", STATE: '"same": false'}),
    (tamper.not_pending, 1, {AUDIT: f"{TEN} r1 listed_sha256\n", SEALED: f"1000.r1.jsonl{FAILED}"}),
    (tamper.no_record, 1, {
        AUDIT: f"{TEN} r1 listed no_recording listed_sha256\n", STATE: '"same": false',
        COMPANION: f"1000.r1.jsonl{FAILED}",
    }),
    (tamper.not_vanished, 3, {
        AUDIT: f"{TEN} r3 listed archived listed_sha256\n", STATE: '"same": false',
    }),
    (tamper.unheard_of, 4, {AUDIT: f"{TEN} r4 vanished\n"}),
    (tamper.no_second_revision, 3, {AUDIT: f"{TEN} r3 revision ", SEALED: f"1000.r2.jsonl{GONE}"}),
    (tamper.no_window, 1, {GAPS: HOLE, SEALED: f"1300.r1.jsonl{GONE}"}),
    (tamper.another_window, 1, {AUDIT: f"{ONE} r1 from\n", GAPS: HOLE}),
    (tamper.other_record, 1, {COMPANION: f"{CALL}/r1.json{FAILED}"}),
    (tamper.other_recording, 1, {COMPANION: f"{CALL}/recording.wav{FAILED}"}),
    (tamper.no_seal, 1, {CHAIN: f"GAP before {SEAL_4}\n"}),
    (tamper.other_seal, 1, {
        SIGNATURES: f"BAD SIGNATURE: {SEAL_4}\n",
        CHAIN: f"BAD prev: {SEAL_4.replace('4', '5')}\n",
    }),
    (tamper.other_key, 1, {SIGNATURES: f"BAD SIGNATURE: {SEAL_4}\n"}),
]  # fmt: skip
"""What is done to a copy, to which revision, and what the commands print of it then."""


@pytest.mark.parametrize(
    ("damage", "n", "noticed"), [pytest.param(*one, id=one[0].__name__) for one in DAMAGES]
)
def test_damage_is_noticed(
    damage: Callable[[Copy], None], n: int, noticed: dict[str, str], copy: Copy
) -> None:
    damage(copy)
    for fragment, said in noticed.items():
        assert said in block(fragment).at(n).run(copy.folder).stdout


def test_another_digest(copy: Copy) -> None:
    tamper.not_pending(copy)
    printed = block("The digest of its listed ids").at(1).run(copy.folder).stdout
    recomputed, _, told = printed.split()
    assert recomputed != told


def test_what_the_audit_does_not_name_is_sound(copy: Copy) -> None:
    """A damaged revision is named, and those of other windows are not."""
    tamper.one_more(copy)
    printed = block(AUDIT).run(copy.folder).stdout
    wrong = [line for line in printed.splitlines() if not line.endswith(" OK")]
    assert wrong == [f"{TEN} r3 archived"]
