"""What somebody may do to a copy of the eventful archive. Each is small, and some of it adds up."""

from __future__ import annotations

import shutil

from tests.audit.eventful import CALL
from tests.audit.plain import DAY, Copy
from tests.fakes.rig import new_key


def one_more(copy: Copy) -> None:
    one = copy.revision("1000", 3)
    one.write(list(one.records.values()), {**one.line, "archived": one.line["archived"] + 1})


def one_for_another(copy: Copy) -> None:
    """It balances."""
    one = copy.revision("1000", 3)
    line = {**one.line, "archived": one.line["archived"] + 1, "failed": one.line["failed"] - 1}
    one.write(list(one.records.values()), line)


def not_pending(copy: Copy) -> None:
    """It balances, too, and nothing but the digest knows better."""
    one = copy.revision("1000", 1)
    line = {**one.line, "pending": ["vc_brief"], "listed": one.line["listed"] - 1}
    one.write(list(one.records.values()), line)


def no_record(copy: Copy) -> None:
    one = copy.revision("1000", 1)
    one.write([r for i, r in one.records.items() if i != "vc_none"], one.line)


def not_vanished(copy: Copy) -> None:
    one = copy.revision("1000", 3)
    vanished = [call_id for call_id in one.line["vanished"] if call_id != "vc_gone"]
    one.write(list(one.records.values()), {**one.line, "vanished": vanished})


def unheard_of(copy: Copy) -> None:
    one = copy.revision("1000", 4)
    line = {**one.line, "vanished": [*one.line["vanished"], "vc_nobody"]}
    one.write(list(one.records.values()), line)


def no_second_revision(copy: Copy) -> None:
    for path in (copy.folder / DAY).glob("1000.r2.*"):
        path.unlink()


def no_window(copy: Copy) -> None:
    for path in (copy.folder / DAY).glob("1300.*"):
        path.unlink()


def another_window(copy: Copy) -> None:
    shutil.copy(copy.revision("1400", 1).path, copy.revision("1300", 1).path)


def other_record(copy: Copy) -> None:
    path = copy.folder / f"records/dt=2024-01-15/{CALL}/r1.json"
    path.write_bytes(path.read_bytes().replace(b'"archived"', b'"failed"'))


def other_recording(copy: Copy) -> None:
    path = copy.folder / f"recordings/dt=2024-01-15/{CALL}/recording.wav"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def no_seal(copy: Copy) -> None:
    (copy.folder / "manifest/seals/000000000003.json").unlink()


def other_seal(copy: Copy) -> None:
    path = copy.folder / "manifest/seals/000000000004.json"
    path.write_bytes(path.read_bytes().replace(b"2024-01-15T13", b"2024-01-15T12"))


def other_key(copy: Copy) -> None:
    (path,) = (copy.folder / "manifest/keys").glob("*.pem")
    path.write_bytes(new_key().public.pem)
