"""A run on disk: parts, precision, a crash at any place, and what is no state."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from streamdeblur.errors import DiskFull, InputError, OutputError, UsageError
from streamdeblur.training import state as module
from streamdeblur.training.recipe import StateOptions
from streamdeblur.training.state import alone, has_state, load_state, make_folder, save_state

FP32 = StateOptions()


def some(scale: float = 1.0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "model/a": torch.randn(300, 70, generator=g) * scale,
        "model/b": torch.randn(64, 8, 3, 3, generator=g).to(memory_format=torch.channels_last) * scale,
        "model/c": torch.randn(5, generator=g) * scale,
        "count": torch.tensor(12345.0),
        "bytes": torch.arange(99, dtype=torch.uint8),
    }


def test_round_trip_to_the_bit(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "last"
    assert not has_state(folder)
    save_state(folder, some(), {"step": 3, "best": None, "x": [1.5]}, FP32)
    assert has_state(folder)
    tensors, values = load_state(folder)
    assert values == {"step": 3, "best": None, "x": [1.5]}
    assert set(tensors) == set(some())
    for name, tensor in some().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert [p.name for p in folder.parent.iterdir()] == ["last"]


@pytest.mark.parametrize("mib", [0.02, 0.05, 16])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_parts_are_no_larger_than_asked_for(tmp_path: Path, mib: float, dtype: Any) -> None:
    many = some() | {f"small/{k}/{'x' * 40}": torch.ones(2) * k for k in range(300)}  # more header than data
    save_state(tmp_path / "s", many, {}, StateOptions(part_mib=mib, dtype=dtype))
    parts = sorted((tmp_path / "s").glob("part-*.safetensors"))
    assert max(p.stat().st_size for p in parts) <= mib * 2**20
    assert len(parts) == 1 if mib == 16 else len(parts) > 2
    tensors, _ = load_state(tmp_path / "s")
    assert set(tensors) == set(many)
    for name, tensor in many.items():
        assert tensors[name].shape == tensor.shape
        wide = dtype == "fp32" or tensor.dtype != torch.float32 or not tensor.dim()
        assert torch.equal(tensors[name], tensor if wide else tensor.bfloat16().float()), name


def test_bf16_halves_the_files_and_keeps_counters_exact(tmp_path: Path) -> None:
    for dtype in ("fp32", "bf16"):
        save_state(tmp_path / dtype, some(), {}, StateOptions(dtype=dtype))  # type: ignore[arg-type]
    sizes = [(tmp_path / d / "part-000.safetensors").stat().st_size for d in ("fp32", "bf16")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.02)
    tensors, _ = load_state(tmp_path / "bf16")
    assert tensors["count"].item() == 12345
    assert tensors["model/a"].dtype == torch.float32


def step_of(folder: Path) -> int:
    assert has_state(folder)
    return int(load_state(folder)[1]["step"])


@pytest.mark.parametrize("survived", range(3))
def test_a_crash_at_any_rename_leaves_a_state(tmp_path: Path, survived: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a power cut would: nothing after it runs, no handler either."""

    class PowerCut(BaseException):
        pass

    folder = tmp_path / "last"
    save_state(folder, some(), {"step": 1}, FP32)
    rename, done = Path.rename, []

    def cut(self: Path, target: Path) -> Path:
        if len(done) == survived:
            raise PowerCut
        done.append(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        if survived < 2:
            with pytest.raises(PowerCut):
                save_state(folder, some(2.0), {"step": 2}, FP32)
        else:
            save_state(folder, some(2.0), {"step": 2}, FP32)
    assert step_of(folder) == (1 if survived < 2 else 2)
    save_state(folder, some(3.0), {"step": 3}, FP32)  # and the next one cleans up
    assert step_of(folder) == 3
    assert torch.equal(load_state(folder)[0]["model/c"], some(3.0)["model/c"])
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, OutputError)]
)
def test_a_disk_that_fails_is_said_and_the_state_before_stays(
    tmp_path: Path, number: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "last"
    save_state(folder, some(), {"step": 1}, FP32)

    def fail(*arguments: Any) -> None:
        raise OSError(number, "disk")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(kind, match=r"can't write the training state to .*last.*the state before it is untouched") as e:
        save_state(folder, some(), {"step": 2}, FP32)
    assert type(e.value) is kind
    assert step_of(folder) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_a_disk_that_fails_at_the_first_state_promises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "disk")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(DiskFull, match=r"; no state is kept yet$"):
        save_state(tmp_path / "last", some(), {"step": 1}, FP32)


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_state(tmp_path / "last", some(), {}, FP32)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "last").iterdir()}
    assert len(modes) == 2
    assert set(modes.values()) == {0o666 & ~umask}


HOLDER = """
import pathlib, sys
from streamdeblur.training.state import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"another process trains in {tmp_path}; wait for it"), alone(tmp_path):
            pytest.fail("both hold it")
        monkeypatch.setattr(module, "_PATIENCE", 60.0)
        assert other.stdin is not None
        other.stdin.close()  # it ends now, and that is waited for
        with alone(tmp_path):
            assert other.wait() == 0


def test_a_folder_that_cannot_be_written_is_not_held(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't write in the folder of the run"), alone(tmp_path / "missing"):
        pytest.fail("held")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="can't write the training state"):
        save_state(tmp_path / "file" / "last", some(), {}, FP32)


def test_damaged_and_foreign_states(tmp_path: Path) -> None:
    folder = tmp_path / "last"

    def fresh() -> None:
        save_state(folder, some(), {"step": 1}, StateOptions(part_mib=0.05))

    fresh()
    part = folder / "part-001.safetensors"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError, match="is damaged"):
        load_state(folder)
    fresh()
    part.unlink()
    with pytest.raises(InputError, match="is damaged"):
        load_state(folder)
    for text in ("{", "[]", "{}", json.dumps({"format": "other"})):
        fresh()
        (folder / "state.json").write_text(text)
        with pytest.raises(InputError, match=r"is damaged|holds no training state") as e:
            load_state(folder)
        assert "\n" not in str(e.value)
    assert not has_state(tmp_path / "other")


def test_a_run_whose_folder_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError, match=r"run can't be the folder of a run: .*; name another"):
        make_folder(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"
