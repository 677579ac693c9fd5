"""Ablations: the rows are the paper's, and a study at a tiny budget trains, resumes and tables them."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from streamdeblur.cli.ablation import ablate
from streamdeblur.errors import ConfigError, InputError, UsageError
from streamdeblur.models.checkpoint import load_checkpoint
from streamdeblur.models.mimo_unet import MIMOUNet, MIMOUNetConfig
from streamdeblur.training.ablation import ROWS, load_study, run_study
from streamdeblur.training.networks import architecture
from streamdeblur.training.validation import psnr8, restore
from tests.training import pair, write_pairs, write_shards

CONFIG: dict[str, Any] = {
    "model": "mimo-unet",
    "architecture": {"width": 8, "blocks": 1},
    "data": {"shards": ["crops"], "crop": 16, "batch": 2},
    "optimizer": {"lr": "1e-3", "ema": 0},
    "validation": {"sets": [{"name": "blocks", "path": "pairs"}]},
    "state": {"every": 2},
    "steps": 3,
    "precision": "fp32",
    "log_every": 1,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_shards(tmp_path / "crops")
    write_pairs(tmp_path / "pairs")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


#: Tables 3 and 4 of the paper, typed off it: switches, PSNR, millions of parameters.
TABLE_4 = [
    ("", 31.16, 6.46),
    ("mise", 31.17, 6.72),
    ("mosd", 31.33, 6.47),
    ("aff", 31.33, 6.54),
    ("mise mosd", 31.38, 6.73),
    ("mosd aff", 31.38, 6.54),
    ("mise aff", 31.39, 6.80),
    ("mise mosd aff", 31.46, 6.81),
    ("mise mosd aff msfr", 31.73, 6.81),
]
TABLE_3 = {"concat": 31.66, "sum": 31.60, "fam": 31.73}


def test_rows_are_those_of_the_paper(place: Path) -> None:
    found = [
        (" ".join(k for k in ("mise", "mosd", "aff", "msfr") if getattr(r, k)), r.psnr, r.millions)
        for r in ROWS
        if 4 in r.tables
    ]
    assert found == TABLE_4
    assert {r.fusion: r.psnr for r in ROWS if 3 in r.tables} == TABLE_3
    study = load_study("a.yaml", ["architecture={}"])
    for row in ROWS:
        recipe = study.recipe_of(row)
        assert recipe.loss.msfr_weight == (0.1 if row.msfr else 0)
        with torch.device("meta"):
            count = sum(p.numel() for p in MIMOUNet(architecture(recipe)).parameters())
        if row.millions is not None:
            assert count / 1e6 == pytest.approx(row.millions, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [r.name for r in ROWS]),
        ({"tables": [3]}, ["full", "concat", "sum"]),
        ({"tables": [4], "rows": ["full", "aff"]}, ["aff", "full"]),
        ({"rows": ["sum"]}, ["sum"]),
    ],
)
def test_choice_of_rows(place: Path, arguments: dict[str, Any], expected: list[str]) -> None:
    assert [r.name for r in load_study("a.yaml", **arguments).rows] == expected
    by_file = {**CONFIG, "ablation": arguments}
    (place / "b.yaml").write_text(yaml.safe_dump(by_file), encoding="utf-8")
    assert [r.name for r in load_study("b.yaml").rows] == expected


@pytest.mark.parametrize(
    ("change", "arguments", "part"),
    [
        ("ablation.table=[3]", {}, "unknown key 'ablation.table'"),
        ("ablation.tables=3", {}, "ablation.tables 3"),
        ("ablation.minutes=-1", {}, "ablation.minutes -1"),
        ("ablation=3", {}, "ablation 3"),
        ("architecture.mise=true", {}, "architecture.mise"),
        ("architecture.width=9", {}, "width 9"),
        ("loss.msfr_weight=0", {}, "msfr_weight 0"),
        ("validation.sets=[]", {}, "validation.sets"),
        ("stpes=3", {}, "did you mean steps?"),
        ("steps=3", {"rows": ["everything"]}, "row 'everything' is unknown; known are plain, mise"),
        ("steps=3", {"tables": [5]}, "table 5 has no ablations"),
        ("steps=3", {"tables": [3], "rows": ["plain"]}, "none of the rows plain is in table 3"),
    ],
)
def test_faults_are_one_line(place: Path, change: str, arguments: dict[str, Any], part: str) -> None:
    with pytest.raises((ConfigError, UsageError)) as e:
        load_study("a.yaml", [change], **arguments)
    assert part in str(e.value)
    assert "\n" not in str(e.value)


def blurry_psnr() -> float:
    return float(np.mean([psnr8(*pair(100 + i, (40, 36))) for i in range(3)]))


def test_a_study_from_end_to_end(place: Path) -> None:
    done = CliRunner().invoke(
        ablate, ["-c", "a.yaml", "-o", "study", "--threads", "1", "-q"], catch_exceptions=False, standalone_mode=False
    )
    assert done.return_value == 0
    tables = json.loads((place / "study" / "ablation.json").read_text())
    assert {k: len(v) for k, v in tables.items()} == {"table_3": 3, "table_4": 9}
    for row in tables["table_4"]:
        # scored here again from the checkpoint that the row left
        weights, metadata = load_checkpoint(place / "study" / row["row"] / "last.safetensors")
        switches = {k: row[k] for k in ("mise", "mosd", "aff", "fusion")}
        assert metadata.config == MIMOUNetConfig(width=8, blocks=1, **switches)
        assert ("MSFR weight 0.1" in metadata.recipe) == row["msfr"]
        net = MIMOUNet(metadata.config).eval()
        net.load_state_dict({k: v.float() for k, v in weights.items()})
        pairs = [pair(100 + i, (40, 36)) for i in range(3)]
        with torch.no_grad():
            scores = [psnr8(restore(net, b, torch.device("cpu"), torch.float32), s) for b, s in pairs]
        assert row["psnr"] == pytest.approx(np.mean(scores), abs=0.02)  # the checkpoint is bf16
        assert row["gain"] == pytest.approx(row["psnr"] - blurry_psnr(), abs=1e-3)
        assert row["parameters"] == sum(p.numel() for p in net.parameters())
        assert (row["steps"], row["sets"]) == (3, {"blocks": row["psnr"]})
    full = tables["table_4"][-1]
    assert [r["against"] for r in tables["table_4"]] == pytest.approx(
        [r["psnr"] - full["psnr"] for r in tables["table_4"]], abs=2e-4
    )
    assert [r["paper_against"] for r in tables["table_3"]] == pytest.approx([0, -0.07, -0.13])
    with (place / "study" / "ablation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(x["table"], x["row"], float(x["psnr"])) for x in lines] == [
        (str(n), r["row"], r["psnr"]) for n in (3, 4) for r in tables[f"table_{n}"]
    ]
    text = (place / "study" / "ablation.md").read_text()
    assert text.count("\n|") == 12 + 4
    for wanted in ("| concatenation |", "31.66", "| ✓ | ✓ | ✓ | ✓ |", f"{full['psnr']:.2f}", "6.81 M"):
        assert wanted in text
        if "|" not in wanted:
            assert wanted in done.output  # and on the terminal


def test_a_study_goes_on_row_by_row(place: Path) -> None:
    study = load_study("a.yaml", rows=["plain", "aff", "sum"])
    begun: list[str] = []

    class Stop:
        def on_progress(self, progress: Any) -> None:
            if begun[-1] == "aff" and progress.step == 2 and begun.count("aff") == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        def on_validation(self, *arguments: Any) -> None:
            pass

        def close(self) -> None:
            pass

    def go(which: Any = study) -> Any:
        return run_study(
            which, place / "s", threads=1, observers=[Stop()], begin=lambda row, number, count: begun.append(row.name)
        )

    first = go()
    assert ([r.row.name for r in first.rows], first.stopped, begun) == (["plain"], "SIGTERM", ["plain", "aff"])
    second = go()
    assert ([r.row.name for r in second.rows], second.stopped) == (["plain", "aff", "sum"], "")
    assert begun == ["plain", "aff", "aff", "sum"]
    assert second.rows[0] == first.rows[0]
    alone = run_study(load_study("a.yaml", rows=["aff"]), place / "alone", threads=1)
    assert second.rows[1].psnr == alone.rows[0].psnr  # as if it had not been stopped
    assert go() == second
    assert len(begun) == 4
    go(load_study("a.yaml", ["steps=4"], rows=["sum"]))  # another budget is another result
    assert begun[4:] == ["sum"]
    kept = json.loads((place / "s" / "sum.json").read_text())
    del kept["recipe"]["data"]["zoom"]  # as it was written before the option came
    (place / "s" / "sum.json").write_text(json.dumps(kept))
    trained = (place / "s" / "sum" / "last.safetensors").stat().st_mtime_ns
    go()
    assert (place / "s" / "sum" / "last.safetensors").stat().st_mtime_ns == trained
    with pytest.raises(UsageError, match="holds row sum of a recipe with another optimizer"):
        go(load_study("a.yaml", ["optimizer.lr=1e-5"], rows=["sum"]))
    kept["recipe"]["data"]["zoom"] = 1.0
    for unknown in (None, {**kept["recipe"], "of_tomorrow": 1}):
        (place / "s" / "sum.json").write_text(json.dumps({**kept, "recipe": unknown}))
        go()  # what is no recipe that this version knows is scored again
        again = json.loads((place / "s" / "sum.json").read_text())
        assert again["recipe"].keys() == kept["recipe"].keys()
        assert "psnr" in again
    (place / "s" / "sum.json").write_text("{")
    with pytest.raises(InputError, match=r"sum\.json can't be read"):
        go()


def test_minutes_end_a_row_and_it_is_scored_all_the_same(place: Path) -> None:
    study = load_study("a.yaml", ["steps=100000"], rows=["plain"], minutes=0.003)
    results = run_study(study, place / "s", threads=1)
    assert 0 < results.rows[0].steps < 100_000
    assert results.rows[0].psnr == pytest.approx(blurry_psnr(), abs=6)
    assert run_study(study, place / "s", threads=1) == results


def test_the_study_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDEBLUR_DATA", "/data")
    study = load_study(Path(__file__).parents[2] / "configs" / "ablate.yaml")
    assert study.rows == ROWS
    assert study.recipe.optimizer.name == "adam"
    assert not study.minutes
