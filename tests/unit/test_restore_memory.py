"""Sizing: what is free (on made-up systems), what a network needs, and the tiling that fits."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamdeblur.errors import DeviceError, UsageError
from streamdeblur.models import registry
from streamdeblur.restore.memory import OVERHEAD, Tiling, activation_bytes, choose_tiling, free_memory, shrink

GIB = 1 << 30


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9999999 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n"}


def test_free_memory_without_limits(tmp_path: Path) -> None:
    assert free_memory(system(tmp_path, MEMINFO)) == 8 * GIB


def test_free_memory_under_cgroup_v2_counts_page_cache_as_free_and_obeys_parents(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/jobs/one\n",
        "sys/fs/cgroup/jobs/one/memory.max": "max\n",
        "sys/fs/cgroup/jobs/one/memory.current": "5\n",
        "sys/fs/cgroup/jobs/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/jobs/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/jobs/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 7\n",
    }
    assert free_memory(system(tmp_path, MEMINFO | files)) == 2 * GIB


def test_free_memory_in_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/not/visible/here\n",
        "sys/fs/cgroup/memory.max": f"{GIB}",
        "sys/fs/cgroup/memory.current": f"{GIB // 4}",
    }
    assert free_memory(system(tmp_path, MEMINFO | files)) == GIB * 3 // 4


def test_free_memory_under_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{3 * GIB}",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{2 * GIB}",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{6 * GIB}",
    }
    assert free_memory(system(tmp_path, MEMINFO | files)) == GIB


def test_free_memory_of_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert free_memory(tmp_path) > 0


class Wide(nn.Module):
    """Holds, at its peak, its input (3 channels), 8 and 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 3, 1)

    def residual(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(y)
        del y
        return self.last(z)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_activation_bytes_follow_what_is_alive(dtype: torch.dtype, size: int) -> None:
    model = Wide()
    assert activation_bytes(model, dtype) == (3 + 8 + 16) * size
    assert model.first.weight.device.type == "cpu"
    assert model.first.weight.dtype == torch.float32


def test_activation_bytes_of_real_networks() -> None:
    small, full = (registry.build(n, "random:0") for n in ("mimo-unet-small", "mimo-unet"))
    assert activation_bytes(full, torch.float32) == 2 * activation_bytes(full, torch.bfloat16)
    assert activation_bytes(full, torch.float32) == pytest.approx(2 * activation_bytes(small, torch.float32), rel=0.1)
    assert 4 * 32 * 3 < activation_bytes(full, torch.float32) < 4 * 32 * 12


def choose(mode: str, budget: float, size: tuple[int, int] = (1080, 1920), accelerator: bool = False) -> Tiling:
    return choose_tiling(*size, mode=mode, radius=241, bytes_per_pixel=740, budget=int(budget), accelerator=accelerator)


@pytest.mark.parametrize("budget", [0.15 * GIB, 0.4 * GIB, 1 * GIB, 4 * GIB, 40 * GIB])
@pytest.mark.parametrize("accelerator", [False, True])
def test_fast_fits_the_budget(budget: float, accelerator: bool) -> None:
    tiling = choose("fast", budget, accelerator=accelerator)
    plan = tiling.plan(1080, 1920, 241)
    assert tiling.mode == "fast"
    assert plan.area * tiling.batch * 740 * OVERHEAD < budget


def test_more_memory_never_means_smaller_tiles() -> None:
    areas = [choose("fast", x * GIB / 8).plan(1080, 1920, 241).area for x in range(2, 20)]
    assert areas == sorted(areas)
    assert areas[0] < areas[-1]


def test_whole_becomes_exact_where_it_does_not_fit() -> None:
    assert choose("whole", 40 * GIB).mode == "whole"
    tiling = choose("whole", 4 * GIB)
    assert tiling.mode == "exact"
    plan = tiling.plan(1080, 1920, 241)
    assert plan.count > 1
    assert plan.area * 740 * OVERHEAD < 4 * GIB


def test_exact_is_whole_where_that_is_cheapest() -> None:
    assert choose("exact", 40 * GIB).plan(1080, 1920, 241).count == 1


def test_exact_refuses_where_its_windows_do_not_fit() -> None:
    with pytest.raises(DeviceError, match="receptive radius 241"):
        choose("exact", 0.3 * GIB)


def test_nothing_fits() -> None:
    with pytest.raises(DeviceError, match="not even a tile"):
        choose("fast", 10 << 20)


def test_auto_takes_small_frames_whole_and_tiles_large_ones() -> None:
    assert choose("auto", 8 * GIB, (240, 320)).mode == "whole"
    assert choose("auto", 100 << 20, (480, 512)).mode == "fast"
    assert choose("auto", 80 * GIB).mode == "fast"
    assert choose("auto", 80 * GIB, accelerator=True).mode == "whole"


def test_batches_share_the_windows_of_a_frame_evenly() -> None:
    tiling = choose("fast", 80 * GIB, (2160, 3840), accelerator=True)
    count = tiling.plan(2160, 3840, 241).count
    batches = -(-count // tiling.batch)
    assert tiling.batch > 1
    assert batches * tiling.batch - count < batches


def test_shrinking_ends_and_always_needs_less() -> None:
    for mode, keep in (("whole", False), ("whole", True), ("fast", False), ("exact", True)):
        tiling: Tiling | None = Tiling(mode, 1200, 64 if mode == "fast" else 0, 4)  # type: ignore[arg-type]
        used = [10**12]
        while tiling is not None:
            plan = tiling.plan(1080, 1920, 241)
            used.append(plan.area * tiling.batch)
            assert used[-1] < used[-2]
            assert not (keep and tiling.mode == "fast")
            tiling = shrink(tiling, 1080, 1920, radius=241, keep_exact=keep)
        if not keep:
            assert used[-1] == 16  # 4 x 4


def test_shrinking_halves_the_batch_first() -> None:
    once = shrink(Tiling("fast", 256, 32, 5), 1080, 1920, radius=241, keep_exact=False)
    assert once == Tiling("fast", 256, 32, 2)
    assert once is not None
    assert pickle.loads(pickle.dumps(once)) == once


def test_senseless_tilings_are_refused() -> None:
    for bad in ({"mode": "best"}, {"mode": "fast", "tile": 0}, {"mode": "fast", "batch": 0}):
        with pytest.raises(UsageError):
            Tiling(**bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="choose from auto, exact"):
        choose("best", GIB)
