"""Blur synthesis: Eq. 1 against float64, trajectories, flow, damage; seeds, alignment of the two sides, no borders."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.errors import InputError, UsageError
from streamdeblur.training.synthesis import flow, shake
from streamdeblur.training.synthesis.average import average, draw_count, draw_steps
from streamdeblur.training.synthesis.degrade import (
    CLEAN,
    Damage,
    Degradation,
    degrade,
    demosaic,
    draw_damage,
    through_h264,
    through_jpeg,
)
from streamdeblur.training.synthesis.render import expose_still, scaled_region, worth
from streamdeblur.training.synthesis.response import (
    RESPONSES,
    Response,
    draw_response,
    lift_highlights,
    to_coded,
    to_linear,
)

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def leaves(height: int, width: int, seed: int = 0, sigma: float = 1.5) -> Picture:
    """Texture with detail at every place."""
    noise = cv2.GaussianBlur(rng(seed).normal(size=(height, width, 3)).astype(np.float32), (0, 0), sigma)
    return np.clip(127 + 55 * noise / noise.std(), 0, 255).astype(np.uint8)


def natural(height: int, width: int, seed: int = 0) -> Picture:
    """Texture whose amplitude falls with frequency, as in photographs."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(6):
        noise = rng(seed + octave).normal(size=(height, width, 3)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 0.6 * 2**octave)
        total += smooth / smooth.std() * 1.4**octave
    return np.clip(127 + 50 * total / total.std(), 0, 255).astype(np.uint8)


def offset(sharp: npt.NDArray[np.generic], blurred: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Where the cross-correlation of two pictures peaks, (x, y) in pixels, to a fraction of one.

    Not phase correlation: the spectrum of a uniform motion changes its sign, which whitening turns into false peaks.
    """
    a, b = (np.asarray(p, np.float32).mean(axis=2) for p in (sharp, blurred))
    reach = 6
    scores = cv2.matchTemplate(a, np.ascontiguousarray(b[reach:-reach, reach:-reach]), cv2.TM_CCOEFF_NORMED)
    y, x = (int(v) for v in np.unravel_index(int(scores.argmax()), scores.shape))
    found = []
    for line, at in ((scores[y], x), (scores[:, x], y)):
        before, peak, after = (float(v) for v in line[at - 1 : at + 2])
        found.append(reach - at - 0.5 * (before - after) / (before - 2 * peak + after))
    return found[0], found[1]


def linear64(code: npt.NDArray[np.integer], response: Response) -> npt.NDArray[np.float64]:
    """The curves by their definitions, one value at a time."""

    def one(v: float) -> float:
        v /= 255
        if response == "none":
            return v
        if response == "gamma":
            return v**2.2
        return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4

    table = np.array([one(v) for v in range(256)])
    return np.asarray(table[code], np.float64)


def coded64(light: npt.NDArray[np.float64], response: Response) -> npt.NDArray[np.float64]:
    if response == "none":
        return light * 255
    if response == "gamma":
        return np.asarray(np.power(light, 1 / 2.2) * 255, np.float64)
    return np.asarray(np.where(light <= 0.0031308, light * 12.92, 1.055 * np.power(light, 1 / 2.4) - 0.055) * 255)


# -- response and Eq. 1 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("response", RESPONSES)
def test_every_code_survives_the_round_trip(response: Response) -> None:
    codes = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    light = to_linear(codes, response)
    assert light.dtype == np.float32
    assert np.allclose(light, linear64(codes, response), atol=1e-7)
    assert np.array_equal(to_coded(light, response), codes)


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("count", [1, 7, 15])
def test_average_is_equation_1(response: Response, count: int) -> None:
    frames = [leaves(24, 32, seed) for seed in range(count)]
    blurred, sharp = average(frames, response)
    expected = coded64(sum((linear64(f, response) for f in frames), np.zeros((24, 32, 3))) / count, response)
    assert blurred.dtype == np.uint8
    assert np.abs(blurred - expected).max() <= 0.5 + 1e-3
    assert np.array_equal(sharp, frames[count // 2])


def test_light_is_averaged_and_not_code() -> None:
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    half = {r: int(average([black, white, black, white], r)[0][0, 0, 0]) for r in RESPONSES}
    assert half == {"srgb": 188, "gamma": 186, "none": 128}


def test_counts_are_odd() -> None:
    drawn = {draw_count(rng(s), 6, 12) for s in range(200)}
    assert drawn == {7, 9, 11}
    with pytest.raises(UsageError, match="frames 8 is an even number, without a middle frame; give 7 or 9"):
        draw_count(rng(), 8, 8)
    for low, high in ((0, 3), (9, 7)):
        with pytest.raises(UsageError, match=f"frames {low}-{high}"):
            draw_count(rng(), low, high)


def test_responses_are_drawn_by_their_shares() -> None:
    generator = rng(3)
    drawn = [draw_response(generator, {"gamma": 3, "none": 1}) for _ in range(4000)]
    assert set(drawn) == {"gamma", "none"}
    assert drawn.count("gamma") / 4000 == pytest.approx(0.75, abs=0.03)
    with pytest.raises(UsageError, match="add up to 0"):
        draw_response(rng(), {"none": 0})
    with pytest.raises(UsageError, match="'log'"):
        draw_response(rng(), {"log": 1})  # type: ignore[dict-item]


def test_highlights_keep_their_colour_and_leave_the_rest_alone() -> None:
    light = np.array([[[0.5, 0.2, 0.1], [1.0, 0.5, 0.25]]], np.float32)
    lifted = lift_highlights(light, 8)
    assert np.array_equal(lifted[0, 0], light[0, 0])
    assert np.allclose(lifted[0, 1], [8, 4, 2])
    assert np.array_equal(lift_highlights(light, 1), light)


# -- shake ------------------------------------------------------------------------------------------------------------


def steady(
    width: int, height: int, *, shift: tuple[float, float] = (0, 0), turn: float = 0, zoom: float = 0
) -> shake.Trajectory:
    """A motion at constant speed: what it moves by over the whole exposure."""
    s = np.linspace(-0.5, 0.5, 65)
    zero = np.zeros_like(s)
    parameters = np.stack([shift[0] * s, shift[1] * s, turn * s, zoom * s, zero, zero], axis=1)
    return shake.Trajectory(parameters, ((width - 1) / 2, (height - 1) / 2))


def test_a_trajectory_is_the_identity_at_the_middle_and_turns_about_its_centre() -> None:
    path = steady(200, 100, turn=0.2, zoom=0.1)
    matrices = path.at(9)
    assert np.allclose(matrices[4], np.eye(3), atol=1e-12)
    center = np.array([99.5, 49.5, 1])
    for m in matrices:
        at = m @ center
        assert at[:2] / at[2] == pytest.approx(center[:2], abs=1e-9)
    # by hand, for the middle of the last ninth, which lies 4/9 of the exposure after its middle
    at = matrices[-1] @ np.array([199.5, 49.5, 1])
    r, turn = 100 * math.exp(0.1 * 4 / 9), 0.2 * 4 / 9
    assert at[:2] / at[2] == pytest.approx([99.5 + r * math.cos(turn), 49.5 + r * math.sin(turn)])


@pytest.mark.parametrize("seed", range(6))
def test_random_trajectories_have_the_extent_asked_for(seed: int) -> None:
    box = (500, 120, 256, 256)
    path = shake.draw_trajectory(rng(seed), (1280, 720), box, 30.0)
    assert np.allclose(path.at(33)[16], np.eye(3), atol=1e-12)
    # measured another way: how far apart two views of one corner get, over all corners
    corners = np.array([(x, y, 1.0) for x in (500, 755) for y in (120, 375)])
    seen = np.einsum("nij,pj->npi", path.at(400), corners)
    seen = seen[..., :2] / seen[..., 2:]
    widest = max(np.ptp(seen[:, p, 0]) for p in range(4)), max(np.ptp(seen[:, p, 1]) for p in range(4))
    assert math.hypot(*widest) >= 22
    assert max(widest) <= 31
    assert np.ptp(path.parameters[:, 2]) <= math.radians(14) + 1e-9


def test_rolls_are_among_the_random_trajectories() -> None:
    box = (500, 220, 256, 256)
    turns = [np.ptp(shake.draw_trajectory(rng(s), (1280, 720), box, 40.0).parameters[:, 2]) for s in range(60)]
    assert sum(t > math.radians(3) for t in turns) >= 8


def bend(path: shake.Trajectory) -> float:
    """How far a motion is from one at constant speed, as a share of its length."""
    way = path.parameters[:, :2]
    straight = np.linspace(0, 1, len(way))[:, None] * (way[-1] - way[0]) + way[0]
    return float(np.abs(way - straight).max() / np.ptp(way, axis=0).max())


def test_without_tremble_a_camera_moves_at_constant_speed() -> None:
    box, pan = (500, 220, 256, 256), (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    for seed in range(8):
        paths = [
            shake.draw_trajectory(rng(seed), (1280, 720), box, 30.0, weights=pan, tremble=t) for t in (0.0, 0.3, 1.0)
        ]
        still, some, hand = map(bend, paths)
        assert still < 1e-9
        assert 1e-3 < some < hand
        assert all(28 < path.extent(box) < 31 for path in paths)


def test_a_steady_pan_is_the_mean_of_shifted_pictures() -> None:
    picture = leaves(80, 120)
    light = to_linear(picture, "srgb")
    path = steady(120, 80, shift=(8, 0))
    blurred, sharp = shake.expose(light, (0, 0), (20, 10, 80, 60), path)
    expected = np.zeros((60, 80, 3))
    for k in range(401):  # by linear interpolation between columns, 401 moments
        s = 8 * ((k + 0.5) / 401 - 0.5)
        whole = math.floor(s)
        part = s - whole
        left = light[10:70, 20 + whole : 100 + whole].astype(np.float64)
        right = light[10:70, 21 + whole : 101 + whole].astype(np.float64)
        expected += (1 - part) * left + part * right
    assert np.array_equal(sharp, light[10:70, 20:100])
    assert np.abs(blurred - expected / 401).max() < 0.02


def test_a_stepped_exposure_shows_so_many_pictures() -> None:
    point = np.zeros((40, 160, 3), np.float32)
    point[20, 80] = 1
    path = steady(160, 40, shift=(63, 0))
    box = (30, 10, 100, 20)
    stepped, sharp = shake.expose(point, (0, 0), box, path, steps=9)
    assert np.array_equal(sharp, point[10:30, 30:130])
    row = stepped[10, :, 0]
    assert np.flatnonzero(row > 0.05).tolist() == [50 + 7 * k for k in range(-4, 5)]  # nine parts of 63 px
    assert row.sum() == pytest.approx(1, abs=1e-5)
    smooth = shake.expose(point, (0, 0), box, path)[0][10, :, 0]
    assert (smooth[20:80] > 0.005).all()
    short = steady(160, 40, shift=(6, 0))  # a pixel or so a moment anyway
    assert np.array_equal(
        shake.expose(point, (0, 0), box, short, steps=9)[0], shake.expose(point, (0, 0), box, short)[0]
    )


def test_stepped_exposures_have_7_to_13_frames_and_cost_no_draw_where_there_are_none() -> None:
    generator, untouched = rng(4), rng(4)
    assert draw_steps(generator, 0) is None
    assert generator.bit_generator.state == untouched.bit_generator.state
    drawn = [draw_steps(generator, 0.5) for _ in range(400)]
    assert {n for n in drawn if n is not None} == {7, 9, 11, 13}
    assert 150 < drawn.count(None) < 250


@pytest.mark.parametrize(
    "motion",
    [{"shift": (14, 0)}, {"shift": (-6, 10)}, {"turn": 0.12}, {"zoom": 0.08}],
    ids=["pan", "slant", "roll", "zoom"],
)
def test_blurred_and_sharp_are_aligned_for_symmetric_motion(motion: dict[str, float]) -> None:
    light = to_linear(leaves(200, 260, sigma=4), "srgb")
    blurred, sharp = shake.expose(light, (0, 0), (40, 40, 180, 120), steady(260, 200, **motion))  # type: ignore[arg-type]
    dx, dy = offset(sharp, blurred)
    assert abs(dx) < 0.25
    assert abs(dy) < 0.25


def test_the_centroid_of_a_lamp_stays_where_it_is() -> None:
    light = np.zeros((60, 80, 3), np.float32)
    light[30, 40] = 25.0
    blurred, _ = shake.expose(light, (0, 0), (10, 10, 60, 40), steady(80, 60, shift=(12, 6)))
    weight = blurred[..., 0].astype(np.float64)
    y, x = np.mgrid[:40, :60]
    assert float((x * weight).sum() / weight.sum()) == pytest.approx(30, abs=0.02)
    assert float((y * weight).sum() / weight.sum()) == pytest.approx(20, abs=0.02)
    assert weight.sum() == pytest.approx(25, rel=0.02)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_outside_the_still_is_seen(seed: int) -> None:
    """A white still, near its rim too, stays white: no border comes in."""
    photo = np.full((200, 300, 3), 255, np.uint8)
    box = (int(rng(seed).integers(0, 140)), int(rng(seed + 50).integers(0, 60)), 150, 130)
    blurred, sharp = expose_still(photo, box, rng(seed), extent=60, response="none")
    assert (sharp == 255).all()
    assert blurred.min() > 0.9999


def test_stills_without_motion_come_back_unchanged() -> None:
    photo = leaves(120, 140)
    blurred, sharp = expose_still(photo, (10, 20, 64, 48), rng(1), extent=0, response="srgb")
    assert np.array_equal(sharp, photo[20:68, 10:74])
    assert np.array_equal(to_coded(blurred, "srgb"), sharp)


def test_a_layer_in_front_covers_what_is_behind_it() -> None:
    still = np.full((60, 60, 3), 0.25, np.float32)
    pixels = np.zeros((20, 20, 4), np.float32)
    pixels[2:-2, 2:-2] = 1.0  # white and opaque
    layer = shake.Layer(pixels, (20, 20), steady(60, 60, shift=(4, 0)))
    blurred, sharp = shake.expose(still, (0, 0), (0, 0, 60, 60), steady(60, 60), [layer])
    assert np.allclose(sharp[30, 22:38], 1.0)
    assert np.allclose(sharp[30, :21], 0.25)
    assert np.allclose(blurred[30, 26:34], 1.0)
    assert (blurred[30, 21] > 0.3).all()  # the edge sweeps over what was background
    assert (blurred[30, 22] < 0.95).all()
    assert np.allclose(blurred[:15], 0.25)


def test_masks_are_soft_and_end_before_their_rim() -> None:
    for seed in range(5):
        mask = shake.draw_mask(rng(seed), 90, 70)
        assert mask.shape == (70, 90)
        assert mask.max() == pytest.approx(1, abs=1e-3)
        rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert (rim == 0).all()
        assert ((mask > 0.1) & (mask < 0.9)).any()


def test_scaled_regions_are_parts_of_the_scaled_picture() -> None:
    photo = leaves(120, 160, sigma=4)
    whole = cv2.resize(photo, (80, 60), interpolation=cv2.INTER_AREA)
    part = scaled_region(photo, (10, 6, 50, 40), 0.5)
    assert np.array_equal(part, whole[6:40, 10:50])


# -- flow -------------------------------------------------------------------------------------------------------------


def moved(picture: Picture, dx: float, dy: float) -> Picture:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return cv2.warpAffine(picture, matrix, picture.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def test_flow_finds_a_shift_and_crops_of_it_are_in_place() -> None:
    a = leaves(120, 160, sigma=3)
    half = flow.dense_flow(flow.luma(a), flow.luma(moved(a, 4, -2)))
    assert half.shape == (60, 80, 2)
    part = flow.crop_flow(half, 40, 30, 60, 50, (160, 120))
    assert part.shape == (50, 60, 2)
    assert np.median(part[..., 0]) == pytest.approx(4, abs=0.15)
    assert np.median(part[..., 1]) == pytest.approx(-2, abs=0.15)
    ramp = np.dstack([np.tile(np.arange(80, dtype=np.float16), (60, 1))] * 2)
    # the pixel centre of full column 40 lies at 40.5 / 2 - 0.5 of the half-size one
    assert flow.crop_flow(ramp, 40, 30, 4, 4, (160, 120))[0, :, 0] == pytest.approx([19.75, 20.25, 20.75, 21.25])


def test_moments_between_frames_lie_where_they_should() -> None:
    a = leaves(100, 140, sigma=3)
    b = moved(a, 6, 3)
    la, lb = to_linear(a, "none"), to_linear(b, "none")
    shift = np.zeros((100, 140, 2), np.float32)
    shift[:] = 6, 3
    between = flow.Between(la, lb, shift, -shift).prepared((0, 0, 140, 100))
    for t in (0.25, 0.5, 0.8):
        expected = to_linear(moved(a, 6 * t, 3 * t), "none")
        got = between.at(t)[..., :3]
        assert np.abs(got - expected)[12:-12, 12:-12].mean() < 0.01
        assert np.abs(got - expected)[12:-12, 12:-12].mean() < 0.2 * np.abs(la - expected)[12:-12, 12:-12].mean()


def test_occluded_pixels_disagree() -> None:
    """A square moves 8 px right over a still ground: what it covers next is what has no partner."""
    forward, backward = np.zeros((60, 80, 2), np.float32), np.zeros((60, 80, 2), np.float32)
    forward[20:40, 20:40, 0] = 8
    backward[20:40, 28:48, 0] = -8
    lost = flow.disagreement(forward, backward)
    assert lost[30, 42:46].min() > 0.9  # about to be covered
    assert lost[30, 22:38].max() < 0.05
    assert lost[5].max() < 0.05


def test_moments_are_symmetric_about_the_middle() -> None:
    times = flow.moments(1.5, 20)
    assert len(times) % 2 == 1
    assert times[len(times) // 2] == 0
    assert np.allclose(times, -times[::-1])
    assert np.allclose(np.diff(times), 1.5 / len(times))  # equal parts, that fill the shutter
    assert np.diff(times).max() * 20 < 1.6
    few = flow.moments(1.5, 20, 9)
    assert len(few) == 9
    assert np.allclose(few, -few[::-1])
    assert np.allclose(np.diff(few), 1.5 / 9)
    assert np.array_equal(flow.moments(0.5, 10, 9), flow.moments(0.5, 10))  # five would do


def test_exposure_of_steady_footage_is_aligned_and_blurred() -> None:
    frames = [to_linear(moved(leaves(120, 160, sigma=3), 8 * k, 0), "srgb") for k in (-1, 0, 1)]
    ahead = np.zeros((120, 160, 2), np.float32)
    ahead[..., 0] = 8
    blurred = flow.expose(
        flow.Between(frames[1], frames[0], -ahead, ahead),
        flow.Between(frames[1], frames[2], ahead, -ahead),
        flow.moments(1.0, 8),
        (20, 20, 120, 80),
    )
    sharp = frames[1][20:100, 20:140]
    dx, dy = offset(sharp, blurred)
    assert abs(dx) < 0.25
    assert abs(dy) < 0.25
    # the same exposure without flow: the picture itself, shifted in fine steps
    fine = [to_linear(moved(leaves(120, 160, sigma=3), 8 * ((k + 0.5) / 81 - 0.5), 0), "srgb") for k in range(81)]
    expected = np.mean(fine, axis=0, dtype=np.float64)[20:100, 20:140]
    assert np.abs(blurred - expected).mean() < 0.1 * np.abs(sharp - expected).mean()


def test_cuts_and_blurred_frames_are_no_truths() -> None:
    first, second = leaves(108, 192, 1), 255 - leaves(108, 192, 2, sigma=3) // 2
    frames = [moved(first, k, 0) for k in range(12)] + [moved(second, k, 0) for k in range(12)]
    frames[5] = cv2.blur(frames[5], (9, 1))
    usable = flow.usable_centers([flow.measure(f) for f in frames])
    assert 5 not in usable
    assert not {0, 11, 12, 23} & set(usable)
    assert {2, 3, 8, 9, 15, 16, 20} <= set(usable)


def test_sharpness_is_compared_within_a_shot_alone() -> None:
    soft, crisp = leaves(108, 192, 1, sigma=3), 255 - leaves(108, 192, 2) // 2
    frames = [moved(soft, k, 0) for k in range(8)] + [moved(crisp, k, 0) for k in range(8)]
    frames[3] = cv2.blur(frames[3], (15, 1))
    measures = [flow.measure(f) for f in frames]
    assert measures[6].sharpness < 0.5 * measures[9].sharpness
    assert flow.usable_centers(measures) == [1, 2, 4, 5, 6, 9, 10, 11, 12, 13, 14]


def test_cuts_are_the_same_of_a_part_and_look_near_it_only() -> None:
    first, second = leaves(108, 192, 1), 255 - leaves(108, 192, 2, sigma=3) // 2
    frames = [moved(first, k, 0) for k in range(12)] + [moved(second, k, 0) for k in range(12)]
    asked: set[int] = set()

    def thumb(index: int) -> npt.NDArray[np.float32]:
        asked.add(index)
        return flow.thumbnail(flow.luma(frames[index]))

    assert flow.cuts(thumb, 24) == [11]
    assert flow.cuts(thumb, 24, 10, 13) == [11]
    assert flow.cuts(thumb, 24, 12, 20) == []
    asked.clear()
    assert flow.cuts(thumb, 24, 2, 11) == []  # frame 11 is the last before the cut
    assert asked == set(range(2, 12))


def shots(count: int, every: int) -> list[Picture]:
    """Frames that pan by 3 px over squares, others after every so many."""
    found = []
    for k in range(count):
        squares = np.random.default_rng(k // every).choice(np.array([20, 235], np.uint8), (9, 16 + count, 1))
        wide = np.kron(squares, np.ones((12, 12, 3), np.uint8))
        found.append(np.ascontiguousarray(wide[:, 3 * k : 3 * k + 192]))
    return found


@pytest.mark.parametrize("every", [1, 2, 3])
def test_dense_cuts_are_found(every: int) -> None:
    measures = [flow.measure(f) for f in shots(16, every)]
    found = flow.cuts(lambda i: measures[i].thumb, len(measures))
    assert found == list(range(every - 1, 15, every))
    if every < 3:
        assert flow.usable_centers(measures) == []


def test_fast_motion_is_no_cut() -> None:
    wide = leaves(216, 1200, 3, sigma=12)
    thumbs = [flow.thumbnail(flow.luma(wide[:, 40 * k : 40 * k + 384])) for k in range(16)]
    jumps = [float(np.abs(a - b).mean()) for a, b in itertools.pairwise(thumbs)]
    assert min(jumps) > 32  # more than what would be a cut of unrelated pictures
    assert flow.cuts(lambda i: thumbs[i], 16) == []


@pytest.mark.parametrize(("width", "height"), [(16, 16), (20, 20), (31, 200), (200, 31)])
def test_frames_too_small_for_flow_are_refused(width: int, height: int) -> None:
    with pytest.raises(InputError, match=rf"a.mp4 is {width}x{height}, too small .*; give frames of 32x32 or more"):
        flow.check_size(np.zeros((height, width, 3), np.uint8), "a.mp4")
    flow.check_size(np.zeros((32, 32, 3), np.uint8), "a.mp4")


@pytest.mark.parametrize("shape", [(60, 1200), (1200, 60)])
def test_panoramas_are_compared_at_a_size_that_flow_takes(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def recorded(a: Picture, b: Picture) -> npt.NDArray[np.float16]:
        asked.append(a.shape)  # not the real one, which may crash of a size below
        return np.zeros(((a.shape[0] + 1) // 2, (a.shape[1] + 1) // 2, 2), np.float16)

    monkeypatch.setattr(flow, "dense_flow", recorded)
    picture = np.zeros(shape, np.uint8)
    assert flow.unexplained(picture, picture) == 0
    assert min(asked[0]) == 32


# -- degradation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", range(4))
def test_demosaicing_keeps_colours_and_ramps_in_place(phase: int) -> None:
    light = np.zeros((40, 40, 3), np.float32)
    light[:] = 0.8, 0.4, 0.1
    assert np.abs(demosaic(light, phase) - light).max() < 1e-4
    ramp = np.repeat(np.tile(np.linspace(0.1, 0.9, 40, dtype=np.float32), (40, 1))[..., None], 3, axis=2)
    assert np.abs(demosaic(ramp, phase) - ramp)[4:-4, 4:-4].max() < 0.005


def test_compression_keeps_the_picture_in_place() -> None:
    picture = np.repeat(leaves(50, 71, sigma=3)[..., :1], 3, axis=2)  # gray: 4:2:0 takes sharp colour away
    for back in (through_jpeg(picture, 90), through_h264(picture, 18)):
        assert back.shape == picture.shape
        assert back.dtype == np.uint8
        error = np.abs(back.astype(int) - picture).mean()
        assert 0 < error < 6
        assert error < np.abs(np.roll(picture, 1, axis=1).astype(int) - picture).mean() / 3


def test_noise_has_the_variance_of_photons() -> None:
    generator = rng(5)
    damage = draw_damage(generator, Degradation(1, 0, 0, 0))
    assert damage.noise is not None
    shot, read = damage.noise
    light = np.full((300, 300, 3), 0.5, np.float32)
    codes = degrade(light, "none", damage).astype(np.float64) / 255
    assert codes.var() == pytest.approx(shot * 0.5 + read**2 + (1 / 255) ** 2 / 12, rel=0.05)
    assert codes.mean() == pytest.approx(0.5, abs=0.003)


def test_damage_of_one_kind_does_not_depend_on_another() -> None:
    every = Degradation(1, 1, 1, 0)
    only = Degradation(1, 0, 0, 0)
    assert draw_damage(rng(1), every).noise == draw_damage(rng(1), only).noise
    assert draw_damage(rng(1), CLEAN) == Damage(seed=draw_damage(rng(1), every).seed)


def test_damage_is_the_same_for_the_same_seed() -> None:
    light = to_linear(leaves(48, 64), "srgb")
    options = Degradation(1, 1, 0.5, 0.5)
    one, two = (degrade(light, "srgb", draw_damage(rng(9), options)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, degrade(light, "srgb", draw_damage(rng(10), options)))


def test_probabilities_are_checked() -> None:
    with pytest.raises(UsageError, match="noise"):
        Degradation(noise=1.5)
    with pytest.raises(UsageError, match="together"):
        Degradation(jpeg=0.7, h264=0.7)


def test_blurred_and_flat_crops_are_worth_less() -> None:
    sharp = natural(160, 160)
    assert worth(sharp) >= 1
    assert worth(cv2.blur(sharp, (21, 3))) < 1
    assert worth(np.full((128, 128, 3), 99, np.uint8)) == 0
