"""What the planner asks for, and what the composer makes of it: nothing that changed is left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import UsageError, WorkerError
from streamdeblur.frames import Array, ColorSpec, Frame, FrameSpec, apply_correction
from streamdeblur.jobs.run import Done, Spending, restored, settle, spending
from streamdeblur.models import MIMOUNet, MIMOUNetConfig
from streamdeblur.restore import Restorer, TorchEngine
from streamdeblur.restore.composer import Composer, fade
from streamdeblur.restore.cover import Box, Geometry, cover
from streamdeblur.restore.planner import CELL, Planner, Region, SpendOptions, TileRequest
from streamdeblur.runtime.pool import InProcessPool

YUV420 = ColorSpec("yuv", chroma_shift=(1, 1))
COLORS = [
    YUV420,
    ColorSpec("yuv", chroma_shift=(0, 0), depth=10),
    ColorSpec("yuv", chroma_shift=(2, 0)),
    ColorSpec("yuv", chroma_shift=(2, 2)),
    ColorSpec("rgb", full_range=True, alpha=True),
    ColorSpec("gray", depth=16),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise_frame(spec: FrameSpec, seed: int = 0, index: int = 0) -> Frame:
    rng = np.random.default_rng(seed)
    kind = np.uint8 if spec.color.depth == 8 else np.uint16
    top = spec.color.max_code
    planes = tuple(
        rng.integers(top // 4, top * 3 // 4, s).astype(kind) for s in spec.color.plane_shapes(spec.width, spec.height)
    )
    return Frame(index, index, Fraction(1, 25), planes, spec)


def changed_frame(frame: Frame, box: Box, levels: float, index: int, planes: Sequence[int] | None = None) -> Frame:
    """The frame with ``levels`` of 8 bits added under a box, in some of its colour planes."""
    color = frame.spec.color
    new = []
    for n, plane in enumerate(frame.planes):
        p = plane.copy()
        if n < color.color_planes and (planes is None or n in planes):
            sx, sy = color.chroma_shift if color.model == "yuv" and n else (0, 0)
            part = p[box.top >> sy : -(-box.bottom >> sy), box.left >> sx : -(-box.right >> sx)]
            part += np.asarray(levels * (1 << (color.depth - 8))).astype(p.dtype)
        new.append(p)
    return Frame(index, index, frame.time_base, tuple(new), frame.spec)


def everything(region: Region, size: tuple[int, int], halo: int) -> None:
    """What must hold for any region of a picture of size (height, width)."""
    w, k = region.window, region.kept
    assert 0 <= w.top <= k.top < k.bottom <= w.bottom <= size[0]
    assert 0 <= w.left <= k.left < k.right <= w.right <= size[1]
    assert w.top % 4 == w.left % 4 == k.top % CELL == k.left % CELL == 0
    assert w.bottom % 4 == 0 or w.bottom == size[0]
    assert w.right % 4 == 0 or w.right == size[1]
    assert w.top == 0 or k.top - w.top >= halo
    assert w.left == 0 or k.left - w.left >= halo
    assert w.bottom == size[0] or w.bottom - k.bottom >= halo
    assert w.right == size[1] or w.right - k.right >= halo


# --- the cover -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cover_holds_every_changed_cell_in_windows_of_the_picture(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 400))
    halo = data.draw(st.sampled_from([0, 4, 12, 16, 40]))
    shape = (-(-height // CELL), -(-width // CELL))
    changed = data.draw(arrays(bool, shape, elements=st.booleans(), fill=st.just(False)))
    geometry = Geometry(height, width, CELL, halo, 4000)
    windows = cover(changed, geometry)
    left = changed.copy()
    for window in windows:
        region = Region(window, geometry.kept(window))
        everything(region, (height, width), halo)
        k = region.kept
        left[k.top // CELL : -(-k.bottom // CELL), k.left // CELL : -(-k.right // CELL)] = False
    assert not left.any()
    assert bool(windows) == bool(changed.any())


def test_windows_have_few_sizes() -> None:
    """Of random changes in a picture of no round size; multiples of 4 in the padded picture."""
    rng = np.random.default_rng(4)
    geometry = Geometry(1079, 1922, CELL, 16, 4000)
    sizes = set()
    for _ in range(60):
        changed = np.zeros((68, 121), bool)
        for _ in range(int(rng.integers(1, 12))):
            top, left = int(rng.integers(0, 66)), int(rng.integers(0, 119))
            changed[top : top + int(rng.integers(1, 20)), left : left + int(rng.integers(1, 20))] = True
        for w in cover(changed, geometry):
            bottom, right = (1080 if w.bottom == 1079 else w.bottom), (1924 if w.right == 1922 else w.right)
            sizes.add((bottom - w.top, right - w.left))
    assert {side for size in sizes for side in size} <= {64, 96, 128, 192, 256}
    assert len(sizes) > 10


def test_a_cover_is_cheap() -> None:
    """Two far corners are two windows, near neighbours one, and an empty middle is not computed."""
    geometry = Geometry(640, 640, CELL, 16, 4000)
    corners = np.zeros((40, 40), bool)
    corners[0, 0] = corners[39, 39] = True
    assert sum(w.area for w in cover(corners, geometry)) == 2 * 64 * 64
    near = np.zeros((40, 40), bool)
    near[10, 10] = near[11, 11] = True
    assert len(cover(near, geometry)) == 1
    ring = np.zeros((40, 40), bool)
    ring[2:38, 2:38] = True
    ring[4:36, 4:36] = False
    windows = cover(ring, geometry)
    assert sum(w.area + 4000 for w in windows) < 0.6 * 640 * 640


# --- the planner ---------------------------------------------------------------------------------------------------


def block_means(plane: Array) -> Array:
    """Means over the 8x8 blocks that are complete, by another way than the planner's."""
    rows, columns = range(0, plane.shape[0] - 7, 8), range(0, plane.shape[1] - 7, 8)
    return np.array([[plane[r : r + 8, c : c + 8].mean() for c in columns] for r in rows])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(96, 160), (100, 131), (33, 50)]), st.sampled_from([2.0, 6.0]))
def test_what_is_not_computed_is_near_what_it_was_when_it_was(
    seed: int, size: tuple[int, int], threshold: float
) -> None:
    """Drift, however slow, never goes beyond the threshold; and every cell's turn comes within ``refresh`` frames."""
    rng = np.random.default_rng(seed)
    height, width = size
    spec = FrameSpec(width, height, YUV420)
    refresh = 7
    planner = Planner(SpendOptions(reuse=True, threshold=threshold, refresh=refresh))
    frame = noise_frame(spec, seed)
    seen = frame.planes[0].astype(float)
    age = np.zeros(size, int)
    for index in range(16):
        if index:
            top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
            box = Box(top, left, min(height, top + 40), min(width, left + 40))
            frame = changed_frame(frame, box, float(rng.choice([1, 2, 3, 20])), index)
        request = planner.plan(frame)
        age += 1
        if request.regions is None:
            seen, age[...] = frame.planes[0].astype(float), 0
        for region in request.regions or ():
            everything(region, size, 16)
            k = region.kept
            inside = slice(k.top, k.bottom), slice(k.left, k.right)
            seen[inside], age[inside] = frame.planes[0][inside], 0
        assert np.abs(block_means(frame.planes[0].astype(float)) - block_means(seen)).max() <= threshold + 1e-3
        assert age.max() < refresh
        cells = -(-height // CELL) * -(-width // CELL)
        assert request.cells_restored + request.cells_reused == cells
        assert request.cells_skipped == 0
        assert request.pixels == (
            height * width if request.regions is None else sum(r.window.area for r in request.regions)
        )


@pytest.mark.parametrize("color", COLORS, ids=lambda c: f"{c.model}{c.depth}{c.chroma_shift}")
def test_a_change_in_any_plane_is_seen_and_only_there(color: ColorSpec) -> None:
    spec = FrameSpec(320, 256, color)
    still = noise_frame(spec)
    box = Box(96, 112, 112, 128)
    for plane in range(color.color_planes):
        planner = Planner(SpendOptions(reuse=True))
        assert planner.plan(still).regions is None
        assert planner.plan(changed_frame(still, box, 5, 1, [plane])).regions == ()
        regions = planner.plan(changed_frame(still, box, 7, 2, [plane])).regions
        assert regions is not None
        assert len(regions) == 1
        kept = regions[0].kept
        assert kept.top <= 96
        assert kept.left <= 112
        assert kept.bottom >= 112
        assert kept.right >= 128
        assert regions[0].window.area <= 96 * 96


def test_noise_is_not_a_change() -> None:
    """A deviation of 4 levels, more than a good camera's, in every sample."""
    rng = np.random.default_rng(1)
    planner = Planner(SpendOptions(reuse=True))
    spec = FrameSpec(320, 256, YUV420)
    base = noise_frame(spec)
    for index in range(6):
        planes = tuple(np.clip(p + rng.normal(0, 4, p.shape), 0, 255).astype(np.uint8) for p in base.planes)
        request = planner.plan(Frame(index, index, Fraction(1, 25), planes, spec))
        assert (request.regions is None) == (index == 0)
        assert index == 0 or request.cells_restored <= 4 * 64  # the refreshed tile, at most


def test_refreshes_are_spread_over_the_frames() -> None:
    planner = Planner(SpendOptions(reuse=True, refresh=30))
    still = noise_frame(FrameSpec(512, 384, YUV420))
    shares = []
    for index in range(91):
        request = planner.plan(Frame(index, index, Fraction(1), still.planes, still.spec))
        shares.append(request.pixels / request.total)
    assert shares[0] == 1
    assert max(shares[1:]) < 0.2
    assert sum(s > 0 for s in shares[31:61]) == 4 * 3
    assert shares[31:61] == shares[61:91]


def test_a_cut_a_new_size_and_a_reset_begin_anew() -> None:
    planner = Planner(SpendOptions(reuse=True))
    spec = FrameSpec(320, 256, YUV420)
    still = noise_frame(spec)
    planner.plan(still)
    assert planner.plan(still).regions == ()
    other = changed_frame(still, Box(0, 0, 256, 320), 60, 2)
    cut = planner.plan(other)
    assert cut.regions is None
    assert cut.cut
    assert planner.plan(other).regions == ()
    assert planner.plan(noise_frame(FrameSpec(256, 320, YUV420))).regions is None
    assert planner.plan(other).regions is None
    planner.reset()
    assert planner.plan(other).regions is None


def test_when_most_changes_the_frame_goes_whole() -> None:
    planner = Planner(SpendOptions(reuse=True))
    still = noise_frame(FrameSpec(320, 256, YUV420))
    planner.plan(still)
    request = planner.plan(changed_frame(still, Box(0, 0, 210, 320), 10, 1))
    assert request.regions is None
    assert not request.cut
    assert request.pixels == request.total


@pytest.mark.parametrize("values", [{"threshold": -1}, {"refresh": 0}, {"halo": 6}, {"halo": -4}])
def test_values_without_meaning_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="give"):
        SpendOptions(reuse=True, **values)  # type: ignore[arg-type]


# --- planner, restorer and composer together ------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["progressive", "tff", "bff"])
@pytest.mark.parametrize("color", COLORS, ids=lambda c: f"{c.model}{c.depth}{c.chroma_shift}")
@pytest.mark.parametrize("size", [(320, 256), (131, 67), (50, 1)])
def test_a_known_step_is_exact_whatever_is_reused(color: ColorSpec, order: str, size: tuple[int, int]) -> None:
    spec = FrameSpec(*size, color, order)  # type: ignore[arg-type]
    restorer = Restorer("offset:0.06,-0.04,0.02", device="cpu")
    planner, composer = Planner(SpendOptions(reuse=True, refresh=5)), Composer()
    frame = noise_frame(spec, 3)
    computed = 0
    for index in range(8):
        box = Box(0, 8 * index, min(24, size[1]), 8 * index + 24)
        frame = changed_frame(frame, box, 9, index)
        request = planner.plan(frame)
        corrections = (
            restorer.correction(frame) if request.regions is None else restorer.correction(frame, request.regions)
        )
        done = composer.compose(frame, request, corrections)
        want = apply_correction(frame, restorer.correction(frame))
        assert all(np.array_equal(a, b) for a, b in zip(done.planes, want.planes, strict=True))
        computed += request.pixels
    if size == (320, 256):
        assert computed < 0.6 * 8 * 320 * 256


def test_a_region_with_enough_context_is_what_the_whole_frame_gives() -> None:
    """A random network of radius 53: with a halo of 56 px a region is exact, with one of 4 px it is not."""
    torch.manual_seed(5)
    model = MIMOUNet(MIMOUNetConfig(width=8, blocks=1))
    for parameter in model.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_uniform_(parameter, nonlinearity="relu")
    restorer = Restorer(engine=TorchEngine(model, torch.device("cpu")), tiling="whole")
    frame = noise_frame(FrameSpec(288, 240, ColorSpec("rgb", full_range=True)))
    whole = restorer.correction(frame)
    worst = {}
    for halo in (56, 4):
        geometry = Geometry(240, 288, CELL, halo, 4000)
        windows = [*geometry.windows(Box(5, 6, 7, 8)), *geometry.windows(Box(13, 14, 15, 18))]
        regions = [Region(w, geometry.kept(w)) for w in windows]
        parts = restorer.correction(frame, regions)
        assert len(parts) == 3 * len(windows)
        errors = []
        for n, part in enumerate(parts):
            k = regions[n // 3].kept
            errors.append(int(np.abs(part - whole[n % 3][k.top : k.bottom, k.left : k.right]).max()))
        worst[halo] = max(errors)
    assert worst[56] <= 1  # sums in another order may round the other way
    assert worst[4] > 1


def test_a_gap_leaves_nothing_stale() -> None:
    spec = FrameSpec(320, 256, YUV420)
    planner, composer = Planner(SpendOptions(reuse=True)), Composer()
    still = noise_frame(spec)
    ones: tuple[Array, ...] = tuple(np.full(p.shape, 3, np.int16) for p in still.planes)
    composer.compose(still, planner.plan(still), ones)
    moved = changed_frame(still, Box(64, 64, 96, 96), 20, 1)
    request = planner.plan(moved)
    assert request.regions
    composer.miss(request)
    calm = TileRequest(2, (), None, 0, 320, 0, 0, 320 * 256)
    out = composer.compose(moved, calm, ()).planes[0].astype(int) - moved.planes[0]
    k = request.regions[0].kept
    assert not out[k.top : k.bottom, k.left : k.right].any()
    assert (out == 3).sum() == 320 * 256 - k.area


def test_corrections_that_do_not_fit_are_refused() -> None:
    planner, composer = Planner(SpendOptions(reuse=True)), Composer()
    still = noise_frame(FrameSpec(320, 256, YUV420))
    with pytest.raises(ValueError, match="colour planes"):
        composer.compose(still, planner.plan(still), ())
    request = planner.plan(changed_frame(still, Box(64, 64, 96, 96), 20, 1))
    with pytest.raises(ValueError, match="regions"):
        composer.compose(still, request, ())
    with pytest.raises(ValueError, match="samples"):
        composer.compose(still, request, tuple(np.zeros((8, 8), np.int16) for _ in range(3)))


# --- what is sharp --------------------------------------------------------------------------------------------------


def half_sharp(spec: FrameSpec) -> Frame:
    """Noise at the left, a smooth wave at the right."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[: spec.height, : spec.width]
    luma = 128 + 60 * np.sin(x / 13) * np.sin(y / 17)
    luma[:, : spec.width // 2] = rng.integers(30, 220, (spec.height, spec.width // 2))
    planes = [luma.astype(np.uint8)]
    planes += [np.full(s, 128, np.uint8) for s in spec.color.plane_shapes(spec.width, spec.height)[1:]]
    return Frame(0, 0, Fraction(1, 25), tuple(planes), spec)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("order", ["progressive", "tff"])
def test_sharp_tiles_keep_every_code_value_and_no_edge_shows(order: str, reuse: bool) -> None:
    spec = FrameSpec(512, 256, YUV420, order)  # type: ignore[arg-type]
    frame = half_sharp(spec)
    restorer = Restorer("offset:0.1,0.1,0.1", device="cpu")
    planner, composer = Planner(SpendOptions(reuse=reuse, skip_sharp=True)), Composer()
    step = round(0.1 * 219)
    for index in range(3):
        request = planner.plan(frame)
        rows = 256 // CELL
        assert request.cells_skipped == rows * 16
        assert request.regions is not None
        assert request.cells_restored == (rows * 16 if index == 0 or not reuse else 0)
        out = composer.compose(frame, request, restorer.correction(frame, request.regions))
        change = out.planes[0].astype(int) - frame.planes[0]
        assert not change[:, :256].any()
        assert (change[:, 256 + CELL :] == step).all()
        assert (np.diff(change, axis=1) >= 0).all()  # it only rises
        assert np.diff(change, axis=1).max() <= 2  # and no faster than 22 levels over 16 pixels
        assert all(np.array_equal(a, b) for a, b in zip(out.planes[1:], frame.planes[1:], strict=True))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_fading_is_nothing_where_skipped_and_smooth(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 120))
    shift = data.draw(st.sampled_from([(0, 0), (1, 1), (2, 0)]))
    cells = (-(-height // CELL), -(-width // CELL))
    skipped = data.draw(arrays(bool, cells))
    weights = fade(skipped, (-(-height >> shift[1]), -(-width >> shift[0])), shift)
    where = skipped.repeat(CELL >> shift[1], 0).repeat(CELL >> shift[0], 1)[: weights.shape[0], : weights.shape[1]]
    assert (weights[where] == 0).all()
    assert weights.min() >= 0
    assert weights.max() <= 1
    for axis, s in ((0, shift[1]), (1, shift[0])):
        if weights.shape[axis] > 1:
            assert np.abs(np.diff(weights, axis=axis)).max() <= (1 << s) / CELL + 1e-5
    if not skipped.any():
        assert (weights == 1).all()


# --- in the round of a job ------------------------------------------------------------------------------------------


class Decoded(Frame):
    """A frame as the reader gives it, without what only the encoder needs."""

    def plain(self) -> Frame:
        return self


def test_a_frame_that_fails_is_made_good_by_the_next() -> None:
    spec = FrameSpec(320, 256, YUV420)
    still = noise_frame(spec)
    frames = iter([Decoded(i, i, Fraction(1, 25), still.planes, spec) for i in range(12)])
    asked: list[object] = []

    def work(frame: Frame, regions: Sequence[Region] | None = None) -> tuple[Array, ...]:
        asked.append((frame.index, regions))
        if frame.index == 0:
            raise RuntimeError("poison")
        return tuple(np.full(p.shape, 5, np.int16) for p in frame.planes)

    options = ProcessOptions(on_error="bypass", reuse=True)
    spent = spending(options)
    assert spent is not None
    outcome = []
    with InProcessPool(lambda: work, 1) as pool:
        done: Done[Decoded]
        for done in restored(pool, lambda _: next(frames, None), lambda f: f, plan=spent.plan):  # type: ignore[arg-type, return-value]
            out, record = settle(done.item, done, "frame", options, spent)  # type: ignore[arg-type]
            outcome.append((record.status, int(out.planes[0][0, 0]) - int(still.planes[0][0, 0])))
    assert outcome[0] == ("bypassed", 0)
    assert [s for s, _ in outcome[1:]] == ["restored"] * 11
    assert [d for _, d in outcome[3:]] == [5] * 9
    wholes = [i for i, regions in asked if regions is None]  # type: ignore[misc, has-type]
    assert wholes in ([0, 1], [0, 2])  # one was planned already when the first came back
    assert spent.share is not None
    assert spent.share < 0.5


def test_a_failure_still_ends_the_job_when_it_shall(caplog: pytest.LogCaptureFixture) -> None:
    from streamdeblur.frames import Gap

    still = noise_frame(FrameSpec(64, 64, YUV420))
    spent = Spending(SpendOptions(reuse=True))
    request = spent.plan(still)
    with pytest.raises(WorkerError, match="poison"):
        settle(still, Done(still, Gap(0, "poison"), request), "frame 0", ProcessOptions(reuse=True), spent)  # type: ignore[arg-type]


def test_options_without_effect_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert spending(ProcessOptions(reuse_threshold=3, sharp_below=0.3)) is None
    assert [r.getMessage() for r in caplog.records] == [
        "--reuse-threshold has no effect without --reuse",
        "--sharp-below has no effect without --skip-sharp",
    ]
