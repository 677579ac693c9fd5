"""Folders of pairs from frames: exposures end at cuts, and an earlier set is there until the new one is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.errors import InputError, OutputError, UsageError
from streamdeblur.training.synthesis import make
from streamdeblur.training.synthesis.make import synthesize


def frames(folder: Path, count: int) -> Path:
    """``count`` red frames, then as many green ones."""
    folder.mkdir()
    noise = cv2.GaussianBlur(np.random.default_rng(1).normal(size=(96, 128)), (0, 0), 1.5)
    light = np.clip(200 + 25 * noise / noise.std(), 120, 255).astype(np.uint8)
    for k in range(2 * count):
        picture: npt.NDArray[np.uint8] = np.zeros((96, 128, 3), np.uint8)
        picture[..., 2 if k < count else 1] = light
        assert cv2.imwrite(str(folder / f"{k:03d}.png"), picture)
    return folder


def unrelated(folder: Path, count: int) -> Path:
    """Pictures of squares, which have nothing to do with each other."""
    folder.mkdir()
    for k in range(count):
        squares = np.random.default_rng(k).choice(np.array([20, 235], np.uint8), (8, 11, 1))
        assert cv2.imwrite(str(folder / f"{k}.png"), np.kron(squares, np.ones((12, 12, 3), np.uint8)))
    return folder


def plain(source: Path, output: Path, count: int = 12, *, overwrite: bool = False) -> None:
    synthesize(
        source,
        output,
        method="average",
        frames="5-7",
        count=count,
        size=32,
        noise=False,
        demosaic=False,
        compression=False,
        overwrite=overwrite,
    )


def test_no_average_has_a_cut_in_it(tmp_path: Path) -> None:
    plain(frames(tmp_path / "in", 10), tmp_path / "out")
    for path in (tmp_path / "out" / "blur").iterdir():
        _, green, red = cv2.imread(str(path)).reshape(-1, 3).mean(axis=0)
        assert min(green, red) == 0
    chosen = {p["frame"] for p in json.loads((tmp_path / "out" / "pairs.json").read_text())["pairs"]}
    assert chosen == {3, 4, 5, 6, 13, 14, 15, 16}  # seven frames around each, of 0-9 or 10-19


def test_no_exposure_goes_on_from_one_folder_to_the_next(tmp_path: Path) -> None:
    """Nor are their frames compared, which are of one scene here, only brighter, or of another size."""
    for name, add, wide in (("a", 0, 128), ("b", 6, 128), ("c", 0, 120)):
        (tmp_path / "in" / name).mkdir(parents=True)
        noise = cv2.GaussianBlur(np.random.default_rng(1).normal(size=(96, wide)), (0, 0), 1.5)
        gray = np.clip(127 + 25 * noise / noise.std(), 10, 240).astype(np.uint8) + np.uint8(add)
        for k in range(9):
            assert cv2.imwrite(str(tmp_path / "in" / name / f"{k}.png"), gray)
    plain(tmp_path / "in", tmp_path / "out")
    chosen = {p["frame"] for p in json.loads((tmp_path / "out" / "pairs.json").read_text())["pairs"]}
    assert chosen == {3, 4, 5, 12, 13, 14, 21, 22, 23}  # seven frames around each, of 0-8, 9-17 or 18-26
    for path in (tmp_path / "out" / "blur").iterdir():  # nothing moves: the mean of one folder is its picture
        sharp = cv2.imread(str(path.parents[1] / "sharp" / path.name)).astype(int)
        assert np.abs(cv2.imread(str(path)) - sharp).max() <= 1
    with pytest.raises(InputError, match="has 9 frames in a row, and 11 are needed"):
        synthesize(tmp_path / "in", tmp_path / "more", method="average", frames="11", count=1, size=32)


def test_a_set_inside_the_source_is_not_read_again(tmp_path: Path) -> None:
    photos = unrelated(tmp_path / "photos", 3)
    inside = photos / "pairs"
    first = synthesize(photos, inside, count=4)
    assert (first.method, first.frames) == ("shake", 3)
    before = (inside / "pairs.json").read_bytes()
    (inside / "pairs.json").write_text("{}")  # by its place alone, too
    second = synthesize(photos, inside, count=4, overwrite=True)
    assert (second.method, second.frames) == ("shake", 3)
    assert (inside / "pairs.json").read_bytes() == before
    for source in (inside, inside / "sharp", inside / "sharp" / "00000.png"):
        with pytest.raises(UsageError, match=r"would replace .*, its source; name another folder"):
            synthesize(source, inside, count=1, overwrite=True)
    assert (inside / "pairs.json").read_bytes() == before


def test_folders_with_names_of_pictures_and_those_that_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    photos = unrelated(tmp_path / "photos", 3)
    (photos / "folder.png").mkdir()
    (photos / "locked").mkdir()
    scan = os.scandir

    def refused(path: Any) -> Any:
        if Path(path).name == "locked":  # root may read all there is
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert synthesize(photos, tmp_path / "out", count=2).frames == 3
    assert [r.getMessage() for r in caplog.records] == [
        f"folder {photos / 'locked'} can't be read (Permission denied): what it holds is left out"
    ]


@pytest.mark.parametrize("side", [32, 37, 41])
def test_frames_as_small_as_flow_takes_make_pairs(tmp_path: Path, side: int) -> None:
    (tmp_path / "in").mkdir()
    noise = cv2.GaussianBlur(np.random.default_rng(1).normal(size=(side, side + 20)), (0, 0), 1.5)
    gray = np.clip(127 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
    for k in range(9):
        assert cv2.imwrite(str(tmp_path / "in" / f"{k}.png"), gray[:, k : k + side])
    made = synthesize(tmp_path / "in", tmp_path / "out", method="flow", count=2)
    assert (made.width, made.height) == (32, 32)


@pytest.mark.parametrize("side", [16, 20])
def test_footage_too_small_for_flow_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "in").mkdir()
    for k in range(8):
        assert cv2.imwrite(str(tmp_path / "in" / f"{k}.png"), np.full((side, side, 3), 10 * k, np.uint8))
    for method in ("auto", "flow"):
        with pytest.raises(InputError, match=f"in is {side}x{side}, too small for .*; give frames of 32x32 or more"):
            synthesize(tmp_path / "in", tmp_path / "out", method=method, count=1)
    assert not (tmp_path / "out").exists()


def test_frames_of_unrelated_pictures_are_no_footage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="far enough from its ends and from cuts"):
        synthesize(unrelated(tmp_path / "in", 12), tmp_path / "out", method="flow", count=2)


def test_shots_shorter_than_the_exposure_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="far enough from its ends and from cuts"):
        plain(frames(tmp_path / "in", 6), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_set_comes_back_if_the_new_one_can_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = frames(tmp_path / "in", 10)
    plain(source, tmp_path / "out", 2)
    before = (tmp_path / "out" / "pairs.json").read_bytes()

    def failing(a: Path, b: Path) -> None:
        if ".partial-" in a.name:
            assert not b.exists()  # the old one is aside
            raise OSError(5, "broken disk")
        os.rename(a, b)

    monkeypatch.setattr(make.os, "replace", failing)
    with pytest.raises(OutputError, match="broken disk"):
        plain(source, tmp_path / "out", 3, overwrite=True)
    assert (tmp_path / "out" / "pairs.json").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}
    monkeypatch.undo()
    plain(source, tmp_path / "out", 3, overwrite=True)
    assert len(list((tmp_path / "out" / "blur").iterdir())) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_a_link_to_a_set_stays_one(tmp_path: Path) -> None:
    source = frames(tmp_path / "in", 10)
    plain(source, tmp_path / "real", 2)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    plain(source, tmp_path / "link", 3, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert len(list((tmp_path / "real" / "sharp").iterdir())) == 3


@pytest.mark.parametrize("method", ["flow", "shake"])
def test_pairs_are_rendered_as_the_options_say(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(1).normal(size=(160, 220)), (0, 0), 1.5)
    photo = np.clip(127 + 55 * noise / noise.std(), 0, 255).astype(np.uint8)
    (tmp_path / "in").mkdir()
    for k in range(4):
        assert cv2.imwrite(str(tmp_path / "in" / f"{k}.png"), np.roll(photo, 14 * k, axis=1))
    name = "expose_still" if method == "shake" else "expose_footage"
    render = getattr(make, name)
    seen: list[tuple[int | None, float | None, object]] = []

    def spy(*args: object, **kwargs: object) -> object:
        state = next((a for a in args if isinstance(a, np.random.Generator)), np.random.default_rng(0))
        seen.append((kwargs["steps"], kwargs.get("tremble"), state.bit_generator.state["state"]))  # type: ignore[arg-type]
        return render(*args, **kwargs)

    monkeypatch.setattr(make, name, spy)

    def drawn(output: str, **options: object) -> list[dict[str, object]]:
        seen.clear()
        calm = {"count": 4, "size": 64, "length": 30, "foreground": False, "highlights": False, "noise": False}
        synthesize(tmp_path / "in", tmp_path / output, method=method, **calm, **options)  # type: ignore[arg-type]
        pairs: list[dict[str, object]] = json.loads((tmp_path / output / "pairs.json").read_text())["pairs"]
        return pairs

    assert not any(p.keys() & {"steps_at_most", "tremble"} for p in drawn("usual"))
    usual = list(seen)
    assert {(steps, tremble) for steps, tremble, _ in usual} == {(None, 1.0 if method == "shake" else None)}
    stepped = drawn("stepped", stepped=1)
    # flow renders in the order of the frames, pairs.json is in that of the numbers
    assert sorted(p["steps_at_most"] for p in stepped) == sorted(steps or 0 for steps, _, _ in seen)  # type: ignore[type-var]
    assert {steps for steps, _, _ in seen} <= {7, 9, 11, 13}
    if method == "shake":
        drawn("steady", tremble=0)
        assert [state for _, _, state in seen] == [state for _, _, state in usual]  # one value draws nothing,
        assert {tremble for _, tremble, _ in seen} == {0}
        wild = drawn("wild", tremble=[1.5, 3])
        assert all(state not in [other for _, _, other in usual] for _, _, state in seen)  # and a range does
        assert [p["tremble"] for p in wild] == [round(tremble or 0, 3) for _, tremble, _ in seen]
        assert all(1.5 <= (tremble or 0) <= 3 for _, tremble, _ in seen)
        assert len({tremble for _, tremble, _ in seen}) == 4
