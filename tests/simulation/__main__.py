"""`make simulate`: many seeds, or one of them with everything that passed."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import structlog

from tests.fakes.log_lines import quiet
from tests.simulation import harms
from tests.simulation.faults import KINDS
from tests.simulation.judge import check
from tests.simulation.story import LINES, Story

EVERY_KIND = [*KINDS, *(f"permanent.{kind}" for kind in harms.KINDS)]
"""Every kind of fault, and of what is bad for ever."""
ENOUGH = 2000
"""So many seeds must hit every kind of fault."""
PATIENCE = 10
"""After so many failures there is no point in going on."""
COLLECT = 100
"""Worlds whose garbage may lie about: looking for it takes longer than all else."""


@dataclass
class Tally:
    """What many seeds came to."""

    seeds: int = 0
    requests: int = 0
    turns: int = 0
    hit: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)

    def add(self, story: Story) -> None:
        self.seeds += 1
        self.requests += len(story.wire.trace)
        self.turns += story.wire.turns.passed
        self.hit.update(story.wire.hit)
        self.hit.update(f"permanent.{kind}" for kind, one in story.spoilt.items() if one.harm.met)

    @property
    def missing(self) -> list[str]:
        return [kind for kind in EVERY_KIND if not self.hit[kind]]


def tell(seed: int, verbose: bool = False) -> Story:
    """A seed's history, judged; raises whatever is wrong with it."""
    story = Story(seed)
    try:
        story.run()
        check(story)
    finally:
        if verbose:
            for kind, one in story.spoilt.items():
                print(f"bad for ever: {kind}: {one.aim.plan.id}, window {one.aim.window}")
            print(*story.wire.trace, sep="\n")
    return story


def many(first: int, seeds: int) -> Tally:
    """Seed after seed; what fails is told at once, with the command that replays it."""
    tally = Tally()
    gc.freeze()
    gc.disable()
    for seed in range(first, first + seeds):
        story = Story(seed)
        try:
            story.run()
            check(story)
        except Exception as error:
            tally.failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            print(f"  make simulate SEED={seed}", flush=True)
        tally.add(story)
        if len(tally.failed) == PATIENCE:
            break
        if seed % COLLECT == 0:
            gc.collect()
    gc.enable()
    return tally


def report(tally: Tally, seconds: float) -> bool:
    """Print what was hit; whether all is well."""
    for kind in EVERY_KIND:
        print(f"{tally.hit[kind]:8} {kind}")
    print(f"{tally.requests:8} requests, {tally.turns} times another process went on in between")
    pace = 60 * tally.seeds / seconds
    print(f"{tally.seeds} seeds in {seconds:.0f} s of one core: {pace:.0f} a minute")
    missing = tally.missing if tally.seeds >= ENOUGH else []
    if missing:
        print(f"never hit: {', '.join(missing)}")
    if tally.failed:
        print(f"FAILED: {len(tally.failed)} seeds: {tally.failed[:20]}")
    return not (missing or tally.failed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=5000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, help="just this one, with all that passed")
    asked = parser.parse_args(arguments)
    structlog.configure(**quiet(LINES))
    if asked.seed is not None:
        tell(asked.seed, verbose=True)
        print(f"seed {asked.seed} is well")
        return 0
    began = time.process_time()
    tally = many(asked.first, asked.seeds)
    return 0 if report(tally, time.process_time() - began) else 1


if __name__ == "__main__":
    sys.exit(main())
