"""How a report and the table of codes read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from archiver import audit
from archiver.audit import tables
from archiver.audit.findings import CODES, Findings
from archiver.audit.verify import Options, verify
from archiver.manifest import layout
from tests.audit.builder import small_archive
from tests.audit.damage import WAV, flip
from tests.audit.foreign import sight


def report(level: str = "bytes", *, damaged: bool = False):
    builder = small_archive()
    if damaged:
        builder.store.rot(WAV, flip)
        builder.store.put("manifest/keys/\x1b[2J\u202e", b"")
    return verify(builder.store, Options(level=level))  # type: ignore[arg-type]


def test_a_clean_report_ends_with_ok() -> None:
    text = tables.report_text(report())

    assert text.endswith("OK: verified at level bytes; nothing found\n")
    assert "5 archived, 1 without recording, 1 failed, 0 pending" in text
    assert re.search(r"^head      4:[0-9a-f]{64}$", text, re.MULTILINE)


def test_findings_come_worst_first_and_say_what_they_mean() -> None:
    text = tables.report_text(report(damaged=True))

    assert text.index("error    file_hash") < text.index("info     unexpected_object")
    assert f"file_hash: {CODES['file_hash'].meaning}" in text
    assert text.endswith("NOT OK: verified at level bytes; 1 error, 1 info\n")


def test_no_control_character_reaches_a_terminal() -> None:
    text = tables.report_text(report(damaged=True))

    assert "manifest/keys/\\x1b[2J\\u202e" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_many_findings_are_summed_up() -> None:
    builder = small_archive()
    for number in range(tables.SHOWN + 20):
        builder.store.put(f"manifest/segments/odd{number:04}", b"")
    text = tables.report_text(verify(builder.store, Options()))

    assert text.count("\ninfo ") == tables.SHOWN + 1
    assert re.search(r"info +unexpected_object +and 20 more", text)


def test_the_json_form_is_stable() -> None:
    document = json.loads(tables.report_json(report(damaged=True)))

    assert set(document) == {
        "type", "v", "ok", "scope", "archive", "key_id", "key_given", "head", "counts",
        "findings", "totals", "notes",
    }  # fmt: skip
    assert (document["type"], document["v"], document["ok"]) == ("verify", 1, False)
    assert set(document["head"]) == {"seq", "sha256", "sealed_at", "watermark"}
    assert set(document["findings"][0]) == {"code", "severity", "key", "detail"}
    assert document["totals"] == {"file_hash": 1, "unexpected_object": 1}
    assert document["scope"] == {"level": "bytes", "from": None, "to": None, "sample": None}


def test_an_empty_bucket_reads_well() -> None:
    builder = small_archive()
    for key in builder.store.all_keys():
        builder.store.lose(key)
    empty = verify(builder.store, Options())

    assert "NOT OK: verified at level objects; 1 error" in tables.report_text(empty)
    assert json.loads(tables.report_json(empty))["head"] is None


def test_a_code_outside_the_table_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        Findings().add("no_such_code", "key")


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_commands_of_the_page_run_as_they_stand(tmp_path: Path) -> None:
    builder = small_archive()
    builder.seal(events=[builder.hold("add", "vc_c", "vc_d")])
    builder.seal(events=[builder.hold("remove", "vc_c")])
    sight("vc_c", "vc_a", "vc_x", "vc_lost")(builder)
    builder.store.save(tmp_path)
    page = Path(audit.__file__).with_name("VERIFY.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", page, re.DOTALL)
    blocks = [one for one in blocks if not one.startswith(("manifest/", "bash copy/"))]
    segment = "manifest/segments/dt=2024-01-15/1000.r1.jsonl"
    key = layout.public_key_key(builder.key.public.key_id)
    script = "set -eo pipefail\n" + "echo ---\n".join(blocks)
    script = script.replace("SEGMENT", segment).replace("KEY.pem", key)

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.split("---\n")
    pages, _, chain, signatures, segments, held, balance, listing, times, lost, sums, records = told
    rows = [line.split() for line in chain.splitlines()]
    assert [row[1] for row in rows[:-1]] == [row[0] for row in rows[1:]]
    assert signatures == "Signature Verified Successfully\n" * 7
    assert (pages, segments, held, balance, sums) == ("", "", "vc_d\n", "", "")
    assert lost == "2024-01-15T12:00:00Z\tvc_lost\n"
    assert len(set(listing.replace("  -", "").split())) == 1
    assert times.splitlines()[0] == "2024-01-15T10:00:00Z 2024-01-15T11:00:00Z"
    assert len(set(records.split())) == 2  # the hash, and sha256sum's "-"
