"""Legal holds as text, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from archiver.audit.holds import Standing, hold_document
from archiver.audit.render import printable
from archiver.manifest import canonical
from archiver.manifest.event import Act, Hold
from archiver.model import format_second

NO_ACTS = Standing(())
WIDEST = 40
"""What a column takes before it only pushes the next one along."""


def as_json(
    found: Mapping[str, Standing],
    call_ids: Sequence[str],
    unsealed: Sequence[str],
    damaged: Sequence[str] = (),
) -> str:
    """`type` holds, `v` 1, `calls` [{call_id, held, acts}], oldest act first, the keys of what is
    not sealed, and `damaged`, what could not be read, one line each. Without `call_ids` the calls
    that are held now."""
    wanted = call_ids or [call_id for call_id, one in found.items() if one.is_held]
    calls = [
        {"call_id": call_id, **found.get(call_id, NO_ACTS).document()}
        for call_id in dict.fromkeys(wanted)
    ]
    document = {
        "calls": calls,
        "damaged": list(damaged),
        "type": "holds",
        "unsealed": list(unsealed),
        "v": 1,
    }
    return canonical.dump(document).decode()


def held(found: Mapping[str, Standing], damaged: Sequence[str] = ()) -> str:
    """The calls that are held now, longest held first: a line for each act that holds one."""
    standing = sorted(
        (one.last for one in found.values() if one.is_held), key=lambda acts: acts[0].hold.at
    )
    if not standing:
        return (
            "no call is held, as far as the acts can be read\n" if damaged else "no call is held\n"
        )
    rows = [("call_id", "held since", "objects", "by", "reason")]
    rows += [_row(act.hold) for acts in standing for act in acts]
    widths = [min(max(len(row[column]) for row in rows), WIDEST) for column in range(4)]
    return "".join(_line(row, widths) for row in rows)


def _row(hold: Hold) -> tuple[str, str, str, str, str]:
    call_id, by, reason = (printable(text) for text in (hold.call_id, hold.by, hold.reason))
    return call_id, format_second(hold.at), str(len(hold.objects)), by, reason


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
    cells[2] = row[2].rjust(widths[2])
    return "  ".join([*cells, row[4]]).rstrip() + "\n"


def acts(found: Mapping[str, Standing], call_ids: Sequence[str]) -> str:
    """All acts about each of these calls, oldest first, and whether it is held."""
    return "".join(
        line + "\n"
        for call_id in dict.fromkeys(call_ids)
        for line in _acts(call_id, found.get(call_id, NO_ACTS))
    )


def _acts(call_id: str, one: Standing) -> Iterator[str]:
    yield f"{printable(call_id)}: {state(one)}"
    yield from (f"  {act_line(act)}" for act in one.acts)


def state(one: Standing) -> str:
    """How a call stands, in words."""
    if not one.acts:
        return "never held: the ledger has no act about it"
    word = "held" if one.is_held else "not held"
    return f"{word} since {format_second(one.last[0].hold.at)}"


def act_line(act: Act) -> str:
    hold = act.hold
    by, reason = printable(hold.by), printable(hold.reason)
    return (
        f"{format_second(hold.at)}  {hold.action:6}  {_count(hold)}, seal {act.seal}, "
        f"by {by}: {reason}"
    )


def unsealed_line(key: str) -> str:
    return f"archiver: note: {key} is not sealed: it does not count, and nothing comes of it"


def damaged_line(damage: str) -> str:
    return (
        f"archiver: left out: {printable(damage)}: run archiver verify; until then nobody can tell "
        "for certain what is held"
    )


def done_json(
    rows: Iterable[tuple[Hold, int, Collection[str], bool]], left: Sequence[str] = ()
) -> str:
    """`type` hold_done, `v` 1, `calls`. Of each call its act, the number of the seal, the keys of
    what is gone, and whether another command has reversed it; `left`, the ids of calls that are not
    done."""
    calls = [
        {"call_id": hold.call_id, "gone": sorted(gone), "reversed": undone, "seal": seal}
        | hold_document(hold)
        for hold, seal, gone, undone in rows
    ]
    document = {"calls": calls, "left": list(left), "type": "hold_done", "v": 1}
    return canonical.dump(document).decode()


def done_line(hold: Hold, seal: int, *, undone: bool) -> str:
    """What a command did about a call."""
    what = f"held, {_count(hold)}" if hold.action == "add" else f"hold taken off, {_count(hold)}"
    told = f"{printable(hold.call_id)}: {what}; seal {seal}"
    return f"{told}, and REVERSED since by another command" if undone else told


def _count(hold: Hold) -> str:
    count = len(hold.objects)
    return f"{count} object" + ("" if count == 1 else "s")
