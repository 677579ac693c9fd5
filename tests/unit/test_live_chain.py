"""The way out of a source: whatever stands still in it, memory stays bounded and every frame is booked in its turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np

from streamdeblur.config import parse
from streamdeblur.frames import ColorSpec, Frame, FrameSpec
from streamdeblur.jobs.live.chain import Chain
from streamdeblur.jobs.live.line import Entry
from streamdeblur.jobs.live.options import LiveOptions
from streamdeblur.jobs.live.record import LiveLedger
from streamdeblur.jobs.live.treatment import WholeFrames
from streamdeblur.jobs.live.watching import LiveWatch
from streamdeblur.runtime.ledger import FrameRecord, LedgerGap
from streamdeblur.video.live.clock import TIME_BASE
from streamdeblur.video.live.source import Arrived

SPEC = FrameSpec(16, 8, ColorSpec("yuv", chroma_shift=(1, 1)))
WAIT = 60.0


def entry(index: int, fate: str = "passed") -> Entry:
    planes = tuple(np.zeros(s, np.uint8) for s in SPEC.color.plane_shapes(16, 8))
    arrived = Arrived(Frame(index, index * 3600, TIME_BASE, planes, SPEC), 0.0, 0.0, None, Fraction(25), None)  # type: ignore[arg-type]
    return Entry(arrived, 0.0, fate)  # type: ignore[arg-type]


class Books(LiveLedger):
    """A ledger that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.told: list[FrameRecord | LedgerGap] = []

    def record(self, record: FrameRecord) -> None:
        super().record(record)
        self.told.append(record)

    def gap(self, gap: LedgerGap) -> None:
        super().gap(gap)
        self.told.append(gap)


class Stuck:
    """Stands in for what draws into the pictures; holds the first of them until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def see(self, arrived: Arrived, after: Frame | None) -> Frame:
        self.reached.set()
        assert self.go.wait(WAIT)
        return arrived.frame


@contextmanager
def stuck_chain() -> Iterator[tuple[Chain, Books, Stuck]]:
    books, stuck = Books(), Stuck()
    chain = Chain("gate", parse(LiveOptions, {}), ("bypass",), (), WholeFrames(), books, lambda: (), _watch(stuck))
    chain.put(entry(0))
    assert stuck.reached.wait(WAIT)
    try:
        yield chain, books, stuck
    finally:
        stuck.go.set()
        chain.close()


def _watch(stuck: Stuck) -> LiveWatch:
    return stuck  # type: ignore[return-value]


def test_a_chain_that_stands_still_keeps_few_frames_and_accounts_for_all() -> None:
    with stuck_chain() as (chain, books, stuck):
        assert [chain.put(entry(n)) for n in range(1, 5000)] == [True] * 12 + [False] * 4987
        assert chain.behind == 4987
        assert sum(isinstance(i, Entry) for i in chain._queue) == 12
        assert len(chain._queue) <= 512
        stuck.go.set()
    assert books.counts == {"restored": 0, "bypassed": 13, "dropped": 4987, "failed": 0}
    # In order and without a hole: 0, those of which only the number is known, one by one, and the last twelve.
    index = 0
    for told in books.told:
        assert (told.first if isinstance(told, LedgerGap) else told.index) == index
        index += told.frames if isinstance(told, LedgerGap) else 1
    assert index == 5000
    assert sum(isinstance(t, LedgerGap) for t in books.told) == 1
    last = [t for t in books.told if isinstance(t, FrameRecord)][-12:]
    assert [(t.index, t.status, t.pts_out) for t in last] == [(n, "bypassed", n * 3600) for n in range(4988, 5000)]
    dropped = next(t for t in books.told if isinstance(t, FrameRecord) and t.status == "dropped")
    assert (dropped.reason, dropped.pts_out, dropped.pts_in) == ("encoding behind", None, dropped.index * 3600)


def test_frames_that_were_left_out_before_are_bounded_too() -> None:
    with stuck_chain() as (chain, books, stuck):
        for n in range(1, 3000):
            chain.put(entry(n, "passed" if n % 400 == 0 else "dropped"))
        # Those that were dropped before are none of the chain's; of 400, 800, … it had to let go.
        assert chain.behind == 7 - sum(isinstance(i, Entry) for i in chain._queue) > 0
        assert len(chain._queue) <= 512
        stuck.go.set()
    assert sum(books.counts.values()) == 3000
    assert books.counts["bypassed"] >= 2
