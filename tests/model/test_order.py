"""In whatever order things happen, the archive ends the same.

Each call has things that happen to it: it appears, is completed, changes, moves, its survey and its
recording come. They are brought to the source in two orders, with rounds, restarts, backfills and
other writers strewn in between. At the end the source tells the same, so the archive must too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from hypothesis import given, seed
from hypothesis import strategies as st

from tests.fakes.memory_rig import HOUR, Times
from tests.fakes.population import a_call, stamp
from tests.model.properties import examples, in_parts, seed_of
from tests.model.scene import MINUTE, POSITIONS, START, Audio, Place, Scene

TIMES = Times(settle=HOUR, give_up=2 * HOUR, relist=(2 * HOUR, 9 * HOUR))
"""The last age is beyond all that happens: so each window is listed after it."""
EVENTS = ("appears", "completes", "changes", "moves", "survey", "recording", "blinks")
DOINGS = ("round", "round", "wait", "restart", "second", "backfill")


@dataclass(frozen=True)
class Plot:
    """A call, and what will have happened to it in the end."""

    number: int
    start: timedelta
    moved: timedelta
    audio: Audio
    events: frozenset[str]


@dataclass
class Stage:
    """Brings plots about, one event after the other."""

    scene: Scene = field(default_factory=lambda: Scene(TIMES, page_size_cap=3))
    happened: dict[int, set[str]] = field(default_factory=dict)

    def act(self, step: str, cast: list[Plot]) -> None:
        """An event and its call's number, or something to do."""
        event, _, number = step.partition(" ")
        if number:
            self.happen(cast[int(number)], event)
        else:
            self.do(step)

    def happen(self, plot: Plot, event: str) -> None:
        """What a call is follows from what has happened to it, in whatever order."""
        past = self.happened.setdefault(plot.number, set())
        past.add(event)
        scene, call_id = self.scene, f"vc_{plot.number}"
        if "appears" not in past:
            return
        at = START + (plot.moved if "moves" in past else plot.start)
        done = "completes" in past
        call = a_call(
            call_id, at, audio=None,
            epa={"score": plot.number} if "survey" in past else None,
            state="Completed" if done else "InProgress",
            endTime=stamp(at + timedelta(seconds=1)) if done else None,
            durationSeconds=7 if "changes" in past else 1,
        )  # fmt: skip
        scene.platform.add(call)
        scene._set_audio(call_id, "there" if "recording" in past else plot.audio)
        if event == "blinks":
            scene.platform.hidden.add(call_id)
            scene.platform.later("page", 3, lambda: scene.platform.hidden.discard(call_id))

    def do(self, doing: str) -> None:
        """Something that the archiver does meanwhile."""
        scene = self.scene
        if doing == "wait":
            scene.pass_time(25)
        elif doing == "restart":
            scene.restart()
        elif doing == "second":
            scene.second_round()
        elif doing == "backfill":
            scene.backfill(Place(2, timedelta(0)), 2)
        else:
            scene.pass_time(1)
            scene.round()

    def end(self) -> dict[str, tuple[str, frozenset[tuple[str, str]]]]:
        """What the archive tells of each call that is listed, once all is at rest."""
        scene = self.scene
        scene.platform.hidden.clear()
        # The windows are closed in their time, and then listed again after all that has happened.
        scene.pass_time(180)
        scene.all_round()
        scene.come_to_rest()
        ledger = scene.ledger()
        assert not ledger.pending
        assert not scene.silent(ledger)
        return {
            call_id: (
                record["outcome"],
                frozenset((file["kind"], file["sha256"]) for file in record["files"]),
            )
            for call_id, record in ledger.listed.items()
            if record is not None
        }


starts = st.builds(lambda hour, at: hour * HOUR + at, st.integers(0, 1), st.sampled_from(POSITIONS))
starts = starts.map(lambda at: min(at, 70 * MINUTE))


@st.composite
def plots(draw: st.DrawFn) -> list[Plot]:
    """Up to five calls; all of them appear and are completed."""
    return [
        Plot(
            number, draw(starts), draw(starts),
            draw(st.sampled_from(("there", "none", "no blob", "blob down"))),
            frozenset({"appears", "completes", *draw(st.sets(st.sampled_from(EVENTS)))}),
        )
        for number in range(draw(st.integers(1, 5)))
    ]  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Plot], list[list[str]]]:
    """Plots, and two orders of their events with things to do in between."""
    cast = draw(plots())
    events = [f"{event} {plot.number}" for plot in cast for event in sorted(plot.events)]
    doings = st.lists(st.sampled_from(DOINGS), min_size=2, max_size=6)
    return cast, [
        list(draw(st.permutations([*events, *draw(doings)]))) for _ in range(2)
    ]  # fmt: skip


@in_parts
def test_the_order_of_events_makes_no_difference(part):
    @seed(seed_of(part))
    @examples(share=0.25)
    @given(histories())
    def in_any_order(history: tuple[list[Plot], list[list[str]]]) -> None:
        cast, orders = history
        ends = []
        for order in orders:
            stage = Stage()
            for step in order:
                stage.act(step, cast)
            ends.append(stage.end())
        one, other = ends
        assert one.keys() == other.keys() == {f"vc_{plot.number}" for plot in cast}
        for call_id, told in one.items():
            assert told == other[call_id], call_id

    in_any_order()
