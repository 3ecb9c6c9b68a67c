"""The results as Markdown, put into README.md between their markers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bench.arena import Run
from bench.cases import Case
from bench.contestants import Contestant
from bench.goals import Goal, goals
from bench.results import (
    Results,
    calls_per_second,
    cpu_per_call_ms,
    cpu_per_gb,
    mb_per_second,
    peak_mb,
    requests_per_call,
)

HERE = Path(__file__).parent
README = HERE / "README.md"


def publish(results: Results) -> None:
    """Write the tables."""
    put_between("results", "\n".join(page(results)))


def put_between(name: str, text: str, path: Path = README) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(f"<!-- {name} -->\n")
    _, ends, after = rest.partition(f"<!-- /{name} -->")
    if not (found and ends):
        raise ValueError(f"{path} has no place for {name}")
    path.write_text(f"{before}{found}{text.strip()}\n{ends}{after}", encoding="utf-8")


def page(results: Results) -> Iterator[str]:
    """All that the results say, line by line."""
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    sha = "with" if about["sha_instructions"] else "without"
    runs = f"medians of {about['runs']} interleaved runs" if about["runs"] > 1 else "one run"
    yield f"{about['date']}, {runs}; the load when it began was {about['load']}."
    yield f"{about['machine']}, {sha} SHA instructions. {versions}."
    yield ""
    yield from _goals(goals(results))
    for case in results.cases:
        yield from _case(results, case)


def _goals(found: list[Goal]) -> Iterator[str]:
    if not found:
        return
    yield "| goal | wanted | reached | |"
    yield "| --- | ---: | ---: | --- |"
    for goal in found:
        sign = "≤" if goal.at_most else "≥"
        holds = "holds" if goal.holds else "**missed**"
        yield f"| {goal.title} | {sign} {goal.wanted:g} | {_number(goal.reached)} | {holds} |"
    yield ""


def _case(results: Results, case: Case) -> Iterator[str]:
    """CPU by the byte, or by the call where the calls are the work; ratios beside."""
    small = case.whole_calls
    figure = cpu_per_call_ms if small else cpu_per_gb
    unit = "CPU ms/call" if small else "CPU s/GB"
    yield f"### {case.title}"
    yield ""
    yield (
        f"| | does | {unit} | × floor | × rclone | calls/s | MB/s | peak MB | store requests/call |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for one in results.of(case):
        yield _row(results, case, one, figure)
    yield ""


def _row(results: Results, case: Case, one: Contestant, figure: Callable[[Run], float]) -> str:
    def of(what: Callable[[Run], float]) -> float | None:
        return results.median(case.name, one.name, what)

    def beside(peer: str) -> str:
        ours, theirs = of(figure), results.median(case.name, peer, figure)
        return _number(ours / theirs) if ours and theirs else "–"

    figures = (calls_per_second, mb_per_second, peak_mb, requests_per_call)
    cells = [one.title, one.job_in(case), _number(of(figure)), beside("floor"), beside("rclone")]
    return "| " + " | ".join([*cells, *(_number(of(what)) for what in figures)]) + " |"


def _number(value: float | None) -> str:
    if not value:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
