"""A job that is stopped at any line leaves nothing behind: no file, no thread at work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, environment

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", ["video", "pictures"])
def test_a_job_stopped_at_any_line_leaves_nothing(tmp_path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.stopping", kind, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
