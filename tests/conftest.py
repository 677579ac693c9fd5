"""What tests may need from outside the repository, and all that is skipped for want of it.

STREAMDEBLUR_DATA names a folder with real footage (``data/clips``, ``data/val``, ...) and detectors (``models``).
A test asks for it through a fixture and is skipped without it. Where both CI and STREAMDEBLUR_DATA are set, such a
skip is a failure: a machine that is meant to have the footage and the tools must not pass by lacking them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray lowers the priority of its workers, which starve where anything else is at work.
os.environ.setdefault("RAY_worker_niceness", "0")
# Several processes of tests share the cores: threads of PyTorch that wait for each other must not burn them meanwhile.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

#: A skip whose reason holds one of these is for want of something that CI has.
WANTED = (
    "STREAMDEBLUR_DATA", "ffprobe", "Chromium", "Mosquitto",
    "scikit-image", "onnxruntime", "TensorBoard",
    "openvino", "nncf", "onnxscript", "faster_coco_eval", "aiohttp", "paho",
)  # fmt: skip


def _skips_forbidden() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"} and bool(os.environ.get("STREAMDEBLUR_DATA"))


def _forbid(report: Any) -> None:
    """Turn a skip for want of something that CI has into a failure."""
    if not (report.skipped and _skips_forbidden() and isinstance(report.longrepr, tuple)):
        return
    path, line, reason = report.longrepr
    if any(word in reason for word in WANTED):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: skips are forbidden here (CI and STREAMDEBLUR_DATA are set): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid(report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """On CI, tell a failure when it happens: the summary never comes where the run is ended from outside."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Tell(reporter))


class _Tell:
    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._reporter.ensure_newline()
            self._reporter.write_line(f"{report.nodeid} failed ({report.when}):")
            self._reporter.write_line(report.longreprtext[-6000:])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that STREAMDEBLUR_DATA names."""
    value = os.environ.get("STREAMDEBLUR_DATA")
    if not value:
        pytest.skip("needs the folder of real footage: set STREAMDEBLUR_DATA")
    path = Path(value)
    if not path.is_dir():
        pytest.skip(f"needs the folder of real footage: STREAMDEBLUR_DATA={value} is none")
    return path


@pytest.fixture(scope="session")
def clips(data_dir: Path) -> Path:
    """The folder of real clips."""
    path = data_dir / "data" / "clips"
    if not path.is_dir():
        pytest.skip(f"needs data/clips in STREAMDEBLUR_DATA={data_dir}")
    return path


@pytest.fixture(scope="session")
def needs_ffprobe() -> str:
    """Path of ffprobe, the independent reader of what we write."""
    path = shutil.which("ffprobe")
    if path is None:
        pytest.skip("needs ffprobe: install ffmpeg")
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of engines of the test's own, and one thread: layers as small as a test's only wait for each other's."""
    import torch

    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "cache"
    torch.set_num_threads(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="module")
def small_products() -> Iterator[None]:
    """Ceilings of products that take no time: large ones of bfloat16 are slow without instructions for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamdeblur.evaluation.benchmark.ceiling._SIDES", {"cpu": (64, 128)})
        yield
