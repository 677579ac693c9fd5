"""Which device a process trains on."""

from __future__ import annotations

import pytest
import torch

from streamdeblur.errors import DeviceError
from streamdeblur.training import run


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, **variables: str) -> None:
    """As if there were so many, and torchrun or Ray had started this process."""
    monkeypatch.setattr(run, "resolve_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(run.dist, "is_initialized", lambda: True)
    for name in ("CUDA_VISIBLE_DEVICES", "TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_torchrun_with_more_processes_than_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1, TORCHELASTIC_RUN_ID="none", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2")
    with pytest.raises(
        DeviceError, match=r"torchrun starts 2 processes on a machine with 1 GPU; take --nproc-per-node 1"
    ):
        run.process_group("auto").__enter__()


@pytest.mark.parametrize(
    ("count", "variables", "place"),
    [
        (4, {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, 3),
        # each process sees its own alone: set by a script under torchrun, or by Ray
        (
            1,
            {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "1"},
            0,
        ),
        (1, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 0),
        (2, {}, 0),
    ],
)
def test_each_process_has_its_gpu(
    count: int, variables: dict[str, str], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count, **variables)
    with run.process_group("auto") as device:
        assert device == torch.device("cuda", place)
