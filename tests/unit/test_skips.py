"""CI with the footage at hand turns skips for want of it into failures (tests/conftest.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest
def test_footage(clips): pass
def test_no_gpu(): pytest.skip("no CUDA device")
"""


@pytest.mark.parametrize(
    ("variables", "code", "summary"),
    [
        ({}, 0, "2 skipped"),
        ({"CI": "true"}, 0, "2 skipped"),
        ({"STREAMDEBLUR_DATA": "EMPTY"}, 0, "2 skipped"),
        ({"CI": "true", "STREAMDEBLUR_DATA": "EMPTY"}, 1, "1 skipped, 1 error"),
    ],
)
def test_skips(tmp_path: Path, variables: dict[str, str], code: int, summary: str) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    empty = tmp_path / "empty"
    empty.mkdir()
    inherited = {k: v for k, v in os.environ.items() if k not in {"CI", "STREAMDEBLUR_DATA"}}
    given = {k: str(empty) if v == "EMPTY" else v for k, v in variables.items()}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, env=inherited | given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert summary in done.stdout
    assert done.returncode == code
