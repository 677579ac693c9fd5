"""The log of a run, and TensorBoard where it is and where it is not."""

from __future__ import annotations

import errno
import json
import logging
import math
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from streamdeblur.errors import DiskFull
from streamdeblur.training import monitor
from streamdeblur.training.monitor import JsonLog, TensorBoard, open_observers
from streamdeblur.training.outcome import Progress
from streamdeblur.training.validation import Scores, SetScore, Strip

PROGRESS = Progress(
    step=7,
    steps=9,
    loss=0.123456789,
    parts={"content": 0.1, "msfr": 2.0},
    rate=1e-4,
    norm=math.inf,
    images_per_second=12.3456789,
    waiting=0.0,
    seconds=3.0,
    resumed=0,
    best=None,
)
STRIP = Strip("set/a", np.zeros((4, 12, 3), np.uint8))
SCORES = Scores((SetScore("set", 2, 25.0, 26.123456, -0.5),), 40.0, (STRIP,))


def test_the_log_is_json_whatever_the_numbers_are(tmp_path: Path) -> None:
    for _ in range(2):  # a run that goes on appends
        log = JsonLog(tmp_path / "run")
        log.on_progress(PROGRESS)
        log.on_validation(7, SCORES)
        log.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    values = [json.loads(line, parse_constant=refuse) for line in lines]
    assert values[:2] == values[2:]
    assert (values[0]["step"], values[0]["loss"], values[0]["norm"], values[0]["msfr"]) == (7, 0.123457, None, 2.0)
    assert values[1] == {
        "step": 7,
        "validation": {
            "score": 26.1235,
            "set/psnr": 26.1235,
            "set/gain": 1.1235,
            "set/worst_gain": -0.5,
            "sharp/psnr": 40.0,
        },
    }


def test_a_log_on_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = JsonLog(tmp_path)
    with pytest.raises(DiskFull, match=f"can't write {tmp_path}/log.jsonl: No space left on device; make room"):
        log.on_progress(PROGRESS)
    log.close()


def test_curves_end_on_a_full_disk_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    before = threading.excepthook
    board = TensorBoard(tmp_path)

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    said: list[str] = []
    # not through logging, whose handlers are those of whatever ran before in this process
    monkeypatch.setattr(monitor.log, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(RecordWriter, "write", full)
    for _ in range(3):
        board.on_validation(7, SCORES)
        board.on_progress(PROGRESS)
    board.close()
    assert said == [f"no more TensorBoard curves: {tmp_path / 'tensorboard'} can't be written: No space left on device"]
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is before


def test_without_tensorboard_there_is_one_warning_and_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    observers = open_observers(tmp_path)
    assert [type(o) for o in observers] == [JsonLog]
    assert [x.levelno for x in caplog.records] == [logging.WARNING]
    assert "pip install 'streamdeblur[train]'" in caplog.records[0].getMessage()
    caplog.clear()
    others = open_observers(tmp_path, tensorboard=False)
    assert ([type(o) for o in others], caplog.records) == ([JsonLog], [])
    for observer in (*observers, *others):
        observer.close()


def test_tensorboard_has_curves_and_strips(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    board.on_progress(PROGRESS)
    board.on_validation(7, SCORES)
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {tag: events.Scalars(tag)[0] for tag in events.Tags()["scalars"]}
    assert found["train/loss"].value == pytest.approx(0.12345679)
    assert (found["validation/set/psnr"].step, found["validation/set/psnr"].value) == (7, pytest.approx(26.123456))
    assert events.Tags()["images"] == ["validation/set/a"]
    assert events.Images("validation/set/a")[0].width == 12
