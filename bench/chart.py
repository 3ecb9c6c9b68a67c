"""The results as one small SVG: bars, drawn by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from bench.arena import Run
from bench.results import Results, calls_per_second, cpu_per_gb

WIDTH, LEFT, RIGHT, ROW, BAR, TITLE = 760, 250, 90, 24, 15, 44
OURS, OTHERS, FLOOR, INK, PALE = "#1f6feb", "#9aa4b2", "#57606a", "#1f2328", "#57606a"
_COLOURS = {"archiver": OURS, "archiver-2": OURS, "floor": FLOOR}


@dataclass(frozen=True)
class _Panel:
    case: str
    title: str
    figure: Callable[[Run], float]
    contestants: tuple[str, ...] = ()
    """Who is shown; empty for all."""


@dataclass(frozen=True)
class _Bar:
    title: str
    value: float
    colour: str
    may_be_cut: bool


_LOOPS = ("s5cmd", "aws")
_DOERS = ("archiver", "archiver-2", "naive")
_PANELS = (
    _Panel("tls-5m", "CPU seconds per GB: 5 MB recordings over TLS (less is better)", cpu_per_gb),
    _Panel("tls-60m", "CPU seconds per GB: 60 MB recordings over TLS (less is better)", cpu_per_gb),
    _Panel(
        "tls-tiny-8", "whole calls per second: 100 KB, 8 workers (more is better)",
        calls_per_second, _DOERS,
    ),
    _Panel(
        "tls-tiny-32", "whole calls per second: 100 KB, 32 workers (more is better)",
        calls_per_second, _DOERS,
    ),
)  # fmt: skip


def draw(results: Results) -> str:
    """The whole picture."""
    parts: list[str] = []
    top = 0
    for panel in _PANELS:
        bars = _bars(results, panel)
        if bars:
            parts += _panel(panel.title, bars, top)
            top += TITLE + ROW * len(bars)
    height = top + 12
    begin = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13">'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    return "\n".join([begin, ground, *parts, "</svg>\n"])


def _bars(results: Results, panel: _Panel) -> list[_Bar]:
    bars = []
    for one in next((results.of(case) for case in results.cases if case.name == panel.case), []):
        value = results.median(panel.case, one.name, panel.figure)
        if value is not None and one.name in (panel.contestants or (one.name,)):
            title = one.title.replace("*", "").replace("\\", "")
            bars.append(_Bar(title, value, _COLOURS.get(one.name, OTHERS), one.name in _LOOPS))
    return bars


def _panel(title: str, bars: list[_Bar], top: int) -> list[str]:
    """The loops of a shell would leave no room for the others: their bars are cut off."""
    most = 1.3 * max((bar.value for bar in bars if not bar.may_be_cut), default=bars[0].value)
    room = WIDTH - LEFT - RIGHT
    parts = [f'<text x="16" y="{top + 28}" fill="{INK}" font-weight="600">{escape(title)}</text>']
    for number, bar in enumerate(bars):
        y = top + TITLE + ROW * number
        width = max(2.0, room * min(bar.value / most, 1.0))
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 12}" text-anchor="end" fill="{INK}">',
            f"{escape(bar.title)}</text>",
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"',
            f' fill="{bar.colour}"/>',
            *([_cut(LEFT + width - 34, y)] if bar.value > most else []),
            f'<text x="{LEFT + width + 8:.1f}" y="{y + 12}" fill="{PALE}">',
            f"{_number(bar.value)}</text>",
        ]
    return parts


def _cut(x: float, y: int) -> str:
    points = f"{x},{y - 1} {x + 8},{y - 1} {x + 2},{y + BAR + 1} {x - 6},{y + BAR + 1}"
    return f'<polygon points="{points}" fill="#ffffff"/>'


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
