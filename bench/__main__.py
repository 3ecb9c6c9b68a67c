"""`python -m bench`: run the comparison, print it, and with everything measured write it down."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import contestants, report
from bench.arena import Lab, Run, lab
from bench.cases import CASES, QUICK, Case
from bench.contestants import Contestant


def main() -> int:
    asked = _parser().parse_args()
    if asked.archiver:
        contestants.BIN = asked.archiver.resolve().parent
    if asked.report:
        report.publish(report.load())
        return 0
    cases = _cases(asked)
    with lab({case.recordings for case in cases}) as place:
        about = report.about(asked.runs)
        runs: dict[tuple[str, str], list[Run]] = {}
        for case, one, run in _runs(place, cases, asked.who, asked.runs):
            runs.setdefault((case.name, one.name), []).append(run)
            print(_line(case, one, run), flush=True)
    found = report.Results(about, runs)
    print("\n" + "\n".join(report.page(found)))
    if asked.write:
        found.save()
        report.publish(found)
    return 0


def _parser() -> argparse.ArgumentParser:
    names, who = [case.name for case in CASES], list(contestants.BY_NAME)
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--only", nargs="+", choices=names, metavar="CASE", help=", ".join(names))
    parser.add_argument(
        "--who", nargs="+", choices=who, default=who, metavar="WHO", help=", ".join(who)
    )
    parser.add_argument("--runs", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--quick", action="store_true", help="fewer recordings: some four minutes")
    parser.add_argument("--calls", type=int, help="so many recordings in each case, at most")
    parser.add_argument("--write", action="store_true", help="write README.md and results.json")
    parser.add_argument("--report", action="store_true", help="write README.md from results.json")
    parser.add_argument("--archiver", type=Path, help="another archiver's command")
    return parser


def _cases(asked: argparse.Namespace) -> list[Case]:
    chosen = [case for case in CASES if case.name in (asked.only or case.name)]
    if asked.quick:
        few = [(case, QUICK[case.recordings.name]) for case in chosen]
        chosen = [case.smaller(count) for case, count in few if count]
    return [case.smaller(asked.calls) for case in chosen] if asked.calls else chosen


def _runs(
    place: Lab, cases: list[Case], who: list[str], times: int
) -> Iterator[tuple[Case, Contestant, Run]]:
    """All take turns, so that a slow minute of the machine is everybody's; who begins, changes."""
    for number in range(times):
        for case in cases:
            taking_part = [contestants.BY_NAME[one] for one in case.contestants if one in who]
            turn = number % max(len(taking_part), 1)
            for one in taking_part[turn:] + taking_part[:turn]:
                yield case, one, place.run(one, case)


def _line(case: Case, one: Contestant, run: Run) -> str:
    figures = ", ".join(
        f"{figure(run):.2f} {unit}"
        for unit, figure in report.FIGURES.items()
        if "store" not in unit
    )
    return f"{case.name:13} {one.name:10} {run.wall_s:7.2f} s, CPU {run.cpu_s:6.2f} s: {figures}"


if __name__ == "__main__":
    sys.exit(main())
