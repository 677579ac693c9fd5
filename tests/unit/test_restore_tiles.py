"""Tile plans: every pixel accounted for, far enough from cut edges; padding."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdeblur.errors import UsageError
from streamdeblur.restore.blend import Canvas, pad_frame
from streamdeblur.restore.tiles import TilePlan, plan_tiles


def total_weight(plan: TilePlan) -> np.ndarray:
    total = np.zeros((plan.height, plan.width))
    for row, column in plan.windows:
        high = np.ones(row.stop - row.start) if row.weights is None else row.weights
        wide = np.ones(column.stop - column.start) if column.weights is None else column.weights
        assert (high > 0).all()
        assert (wide > 0).all()
        total[row.start : row.stop, column.start : column.stop] += np.outer(high, wide)
    return total


def check_geometry(plan: TilePlan) -> None:
    for size, padded, window, spans in (
        (plan.height, plan.padded[0], plan.window[0], plan.rows),
        (plan.width, plan.padded[1], plan.window[1], plan.columns),
    ):
        assert size <= padded < size + 4
        assert padded % 4 == window % 4 == 0
        assert spans[0].origin == 0
        assert spans[-1].origin + window == padded
        for span in spans:
            assert span.origin % 4 == 0
            assert span.origin <= span.start < span.stop <= min(size, span.origin + window)


sizes = st.integers(1, 600)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.integers(1, 60), st.integers(0, 200))
def test_fast_weights_add_up_to_one(height: int, width: int, tile4: int, overlap: int) -> None:
    tile = 4 * tile4
    overlap = min(overlap, tile - 4) // 4 * 4
    plan = plan_tiles(height, width, tile, overlap, "fast")
    check_geometry(plan)
    assert max(plan.window) <= tile
    assert np.abs(total_weight(plan) - 1).max() < 1e-6


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.integers(0, 60), st.integers(1, 40))
def test_exact_takes_each_pixel_once_and_far_from_cuts(height: int, width: int, radius: int, core: int) -> None:
    tile = (2 * -(-radius // 4) + core) * 4
    plan = plan_tiles(height, width, tile, radius, "exact")
    check_geometry(plan)
    assert (total_weight(plan) == 1).all()
    for spans, window, padded in (
        (plan.rows, plan.window[0], plan.padded[0]),
        (plan.columns, plan.window[1], plan.padded[1]),
    ):
        assert [s.start for s in spans[1:]] == [s.stop for s in spans[:-1]]
        for span in spans:
            assert span.weights is None
            assert span.origin == 0 or span.start - span.origin >= radius
            end = span.origin + window
            assert end == padded or end - span.stop >= radius


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (4320, 7680)])
def test_whole_is_one_window(size: tuple[int, int]) -> None:
    plan = plan_tiles(*size, 4, 0, "whole")
    assert plan.count == 1
    assert plan.window == plan.padded
    check_geometry(plan)


def test_windows_are_no_larger_than_an_even_split_needs() -> None:
    plan = plan_tiles(720, 1280, 512, 64, "fast")
    assert (len(plan.rows), len(plan.columns)) == (2, 3)
    assert plan.window == (392, 472)  # (720 + 64) / 2 and (1280 + 2 * 64) / 3, up to a multiple of 4


def test_plans_pickle() -> None:
    plan = plan_tiles(100, 90, 48, 16, "fast")
    again = pickle.loads(pickle.dumps(plan))
    assert np.array_equal(total_weight(plan), total_weight(again))


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ((0, 5, 64, 8, "fast"), "no pixels"),
        ((500, 500, 64, 64, "fast"), "cannot share"),
        ((500, 500, 64, 32, "exact"), "cannot share"),
        ((50, 50, 2, 0, "fast"), "tile of 2"),
        ((50, 50, 64, -1, "fast"), "overlap of -1"),
        ((50, 50, 64, 8, "slow"), "slow"),
    ],
)
def test_impossible_plans_are_refused(args: tuple[int, int, int, int, str], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        plan_tiles(*args)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 2), (6, 7), (8, 4), (1, 9)])
def test_padding_reflects_where_it_can(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)
    want = x
    for axis in (2, 3):
        pad = -x.shape[axis] % 4
        widths = [(0, 0)] * 4
        widths[axis] = (0, pad)
        want = np.pad(want, widths, mode="reflect" if pad < x.shape[axis] else "edge")
    padded = pad_frame(torch.from_numpy(x), (size[0] + -size[0] % 4, size[1] + -size[1] % 4))
    assert np.array_equal(padded.numpy(), want)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_canvas_puts_a_frame_together_again(mode: str) -> None:
    plan = plan_tiles(61, 83, 32, 8 if mode == "fast" else 5, mode)  # type: ignore[arg-type]
    frames = torch.randn(2, 3, *plan.padded)
    canvas = Canvas(plan, 2, torch.device("cpu"))
    for n in range(2):
        for row, column in plan.windows:
            high, wide = plan.window
            canvas.add(
                n, row, column, frames[n, :, row.origin : row.origin + high, column.origin : column.origin + wide]
            )
    want = frames[:, :, :61, :83]
    assert torch.allclose(canvas.correction, want, atol=1e-6)
    if mode == "exact":
        assert torch.equal(canvas.correction, want)
