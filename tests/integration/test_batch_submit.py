"""A batch job through ``ray job submit``, as docs/batch.md tells: token, working folder, exit code."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.batching import PATIENCE, clip, decoded, until
from tests.commands import environment

pytest.importorskip("ray")
pytest.importorskip("aiohttp_cors", reason="ray job submit needs the dashboard of ray[default]")

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class Head:
    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for s in held:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in held]
    finally:
        for s in held:
            s.close()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """``ray start --head`` with a token; ended by its process, and nothing else of Ray's on this machine."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    dashboard, client, agent, gcs = free_ports(4)
    scratch = tempfile.mkdtemp(prefix="r", dir="/tmp")  # the paths of its sockets must be short
    env = {k: v for k, v in environment().items() if k not in ("RAY_ADDRESS", "PYTHONPATH")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": scratch,
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--object-store-memory={100 << 20}",
    ]  # fmt: skip
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or _listens(dashboard), "the dashboard")
        assert process.poll() is None, (tmp_path / "head.log").read_text()
        yield Head(f"http://127.0.0.1:{dashboard}", env)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def submit(head: Head, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [
        RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", "python", "pipelines/batch.py",
        *words,
    ]  # fmt: skip
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=head.environment, capture_output=True, text=True,
        timeout=2 * PATIENCE, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_submitted_job_ends_with_its_own_code(tmp_path: Path, head: Head) -> None:
    slim = tmp_path / "checkout"
    for name in ("streamdeblur", "pipelines", "configs"):
        shutil.copytree(ROOT / name, slim / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "a.mp4", 60)
    words = (
        source,
        "-o",
        dest,
        "--config",
        "configs/batch.yaml",
        "--model=identity",
        "--lossless",
        "--reserve-gb=0.01",
    )
    done = submit(head, slim, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout.lower()
    assert [p for _, p in decoded(dest / "a.mp4")] == [p for _, p in decoded(source / "a.mp4")]

    (source / "wrong.mp4").write_text("no film")
    done = submit(head, slim, *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wrong.mp4 can't be opened as video" in done.stdout + done.stderr

    other = tmp_path / "other"
    other.write_text(secrets.token_hex(32))
    stranger = Head(head.dashboard, head.environment | {"RAY_AUTH_TOKEN_PATH": str(other)})
    assert submit(stranger, slim, *words).returncode != 0
