"""The weights that come with the package: what they say of themselves, that jobs take them, what they do to frames."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from streamdeblur import Restorer
from streamdeblur.models import default_variant, read_metadata, registry
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.training.validation import psnr8
from streamdeblur.video.simple import write_clip
from tests.commands import run

pytestmark = pytest.mark.integration

FILES = sorted(registry.weights_folder().glob("*.safetensors"))


def test_weights_ship_for_three_variants_and_jobs_take_the_best() -> None:
    assert {"mimo-unet-small", "mimo-unet-medium", "mimo-unet"} == {f.stem for f in FILES}
    best = default_variant()
    assert best is not None
    assert best.name == max(FILES, key=lambda f: read_metadata(f).score or 0.0).stem


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_they_know_what_they_are(file: Path) -> None:
    assert os.path.getsize(file) <= 16 * 2**20
    metadata = read_metadata(file)
    assert metadata.variant == file.stem
    assert "GoPro" in metadata.training_data
    assert "CC BY 4.0" in metadata.training_data
    assert "steps of" in metadata.recipe
    assert "Apache-2.0" in metadata.licence
    assert metadata.score is not None
    assert "preview" in metadata.extra


def test_process_needs_no_option(tmp_path: Path) -> None:
    variant = default_variant()
    assert variant is not None
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    write_clip(tmp_path / "a.mp4", [picture] * 2, Fraction(25))
    done = run("process", tmp_path / "a.mp4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == variant.name
    preview = read_metadata(registry.weights_folder() / f"{variant.name}.safetensors").extra["preview"]
    assert ("preview" in done.stderr) == bool(preview)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
@pytest.mark.parametrize("name", ["gopro", "reds"])
def test_blurry_pictures_gain_and_sharp_ones_are_left_alone(data_dir: Path, name: str, file: Path) -> None:
    restore = Restorer(file.stem)
    gains, kept = [], []
    side, every = (256, 2) if file.stem == "mimo-unet" else (512, 1)  # less of them for the one that takes long
    for pair in find_pairs(data_dir / "data" / "val" / name, split="test")[::every]:
        blur, sharp = (np.ascontiguousarray(p[104 : 104 + side, 384 : 384 + side]) for p in read_pair(pair))
        batch = torch.from_numpy(np.stack((blur, sharp))).permute(0, 3, 1, 2).float() / 255
        out = restore(batch).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        gains.append(psnr8(out[0], sharp) - psnr8(blur, sharp))
        kept.append(psnr8(out[1], sharp))
    assert np.mean(gains) > 0
    assert min(gains) > -0.3
    assert np.mean(kept) > 38
