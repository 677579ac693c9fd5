"""The rendered street: repeatable, moving, textured, and blurred as a shutter blurs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.errors import UsageError
from streamdeblur.jobs.scene import Scene

SIZE = (320, 180)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(SIZE, seed=3)


def edges(picture: npt.NDArray[np.uint8]) -> float:
    """Mean squared horizontal and vertical difference of neighbours: falls when a picture is blurred."""
    p = picture.astype(np.float64)
    return float((np.diff(p, axis=0) ** 2).mean() + (np.diff(p, axis=1) ** 2).mean())


def test_a_picture_has_the_size_asked_for_and_uses_the_range(scene: Scene) -> None:
    picture = scene.render(0.3)
    assert picture.shape == (180, 320, 3)
    assert picture.dtype == np.uint8
    assert np.percentile(picture, 2) < 50
    assert np.percentile(picture, 98) > 200


def test_same_seed_same_picture_other_seed_another(scene: Scene) -> None:
    assert np.array_equal(Scene(SIZE, seed=3).render(0.7), scene.render(0.7))
    assert not np.array_equal(Scene(SIZE, seed=4).render(0.7), scene.render(0.7))


def test_pictures_do_not_depend_on_what_was_rendered_before(scene: Scene) -> None:
    late = scene.render(1.9)
    scene.render(0.1)
    assert np.array_equal(scene.render(1.9), late)


@pytest.mark.parametrize("t", [0.0, 1.1, 3.7, 40.0])
def test_no_hole_shows_wherever_the_camera_looks(scene: Scene, t: float) -> None:
    # Where layers leave a hole nothing adds light: whole black rows or columns at the border.
    light = scene.render_linear(t).sum(axis=2)
    for border in (light[0], light[-1], light[:, 0], light[:, -1]):
        assert (border > 0).mean() > 0.98


def test_every_part_of_the_picture_has_detail(scene: Scene) -> None:
    luma = scene.render(0.5).astype(np.float64).mean(axis=2)
    parts = luma[:176].reshape(4, 44, 8, 40).std(axis=(1, 3))
    assert parts[1:].min() > 3


def test_exposure_is_the_mean_of_sharp_pictures_in_linear_light(scene: Scene) -> None:
    t, shutter, samples = 0.4, 1 / 40, 5
    times = t + shutter * (np.arange(samples) - 2) / samples
    mean = sum(scene.render_linear(float(v)).astype(np.float64) for v in times) / samples
    expected = 255 * np.clip(mean, 0, 1) ** (1 / 2.2)
    exposure = scene.expose(t, shutter, samples)
    assert np.abs(exposure.blurry - expected).max() <= 0.51
    assert np.array_equal(exposure.sharp, scene.render(t))


def test_a_longer_shutter_blurs_more(scene: Scene) -> None:
    sharpness = [edges(scene.expose(0.5, shutter, 9).blurry) for shutter in (1e-6, 1 / 40, 1 / 15)]
    assert sharpness[0] > 1.3 * sharpness[1] > 1.3 * 1.3 * sharpness[2]


def test_one_sample_is_sharp_and_frames_follow_the_rate(scene: Scene) -> None:
    frames = list(scene.frames(3, Fraction(25), samples=1))
    assert [np.array_equal(f.blurry, f.sharp) for f in frames] == [True] * 3
    assert np.array_equal(frames[2].sharp, scene.render(2 / 25))


def test_sound_knocks_when_the_ball_touches_the_ground(scene: Scene) -> None:
    rate = 8000
    sound = scene.sound(2.4, rate)
    assert sound.shape == (19200, 2)
    assert np.abs(sound).max() <= 1
    # the knock is the only thing at 520 Hz
    t = np.arange(len(sound)) / rate
    power = np.abs(sound[:, 0] * np.exp(-2j * np.pi * 520 * t))
    band = np.abs(np.convolve(sound[:, 0] * np.exp(-2j * np.pi * 520 * t), np.ones(400) / 400, "valid"))
    assert power.max() > 0.2
    for bounce in (0.8, 1.6):
        at = int(bounce * rate)
        assert band[at + 20] > 3 * band[at - 800]


@pytest.mark.parametrize("size", [(32, 360), (640, 5000)])
def test_sizes_that_can_not_be_rendered_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"{size[0]}x{size[1]}"):
        Scene(size)


def test_an_even_number_of_samples_has_no_middle(scene: Scene) -> None:
    with pytest.raises(UsageError, match="4 samples"):
        scene.expose(0, 0.01, 4)
