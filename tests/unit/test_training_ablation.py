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
from streamdeblur.training.ablation import ROWS, Results, RowResult, load_study, run_study
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


def command(*arguments: str) -> Any:
    words = ["-c", "a.yaml", "-o", "s", "--threads", "1", *arguments]
    return CliRunner().invoke(ablate, words, catch_exceptions=False, standalone_mode=False)


def test_rows_that_are_done_stay_in_the_tables_and_other_steps_are_marked(place: Path) -> None:
    four, two = ["--row", "aff"], ["--row", "concat"]
    first = command("--row", "full", *four, *two, "-q")
    assert "steps" not in first.stdout
    assert first.stderr == ""
    before = json.loads((place / "s" / "ablation.json").read_text())
    more = command("--steps", "5", "--row", "full")
    for text in (more.stderr, (place / "s" / "ablation.md").read_text()):
        (line,) = [x for x in text.splitlines() if "rows were trained for different steps" in x]
        assert "(aff, concat: 3; full: 5)" in line
    after = json.loads((place / "s" / "ablation.json").read_text())
    assert {k: [(r["row"], r["steps"]) for r in v] for k, v in after.items()} == {
        "table_3": [("full", 5), ("concat", 3)],
        "table_4": [("aff", 3), ("full", 5)],
    }
    assert after["table_4"][0]["psnr"] == before["table_4"][0]["psnr"]
    assert [r["against"] for r in after["table_4"]] == [None, 0]  # five steps are no measure for three
    assert [r["against"] is None for r in before["table_4"]] == [False, False]
    for text in (more.stdout, (place / "s" / "ablation.md").read_text()):
        assert text.count("steps") >= 2
    assert "| steps |" in (place / "s" / "ablation.md").read_text()
    again = command("--steps", "5", *four, *two, "-q")  # and now all of them are alike
    assert "rows were trained" not in again.stderr
    assert "steps" not in (place / "s" / "ablation.md").read_text()


def test_a_row_that_was_extended_does_not_compare_with_one_that_was_not(place: Path) -> None:
    command("--row", "full", "-q")
    command("--row", "full", "--steps", "5", "-q")
    kept = json.loads((place / "s" / "full.json").read_text())
    assert kept["schedules"] == [3, 5]
    fresh = command("--row", "aff", "--steps", "5", "-q")
    for text in (fresh.stderr, (place / "s" / "ablation.md").read_text()):
        assert "rows went through different schedules (full: 3, then 5; aff: 5) and don't compare" in text
    rows = json.loads((place / "s" / "ablation.json").read_text())["table_4"]
    assert [(r["row"], r["steps"], r["against"]) for r in rows] == [("aff", 5, None), ("full", 5, 0)]
    command("--row", "full", "--steps", "5", "-q")  # again, and nothing is trained
    assert json.loads((place / "s" / "full.json").read_text()) == kept
    command("--row", "mosd", "-q", "--set", "schedule.kind=constant", "-o", "c")
    command("--row", "mosd", "-q", "--set", "schedule.kind=constant", "-o", "c", "--steps", "5")
    assert json.loads((place / "c" / "mosd.json").read_text())["schedules"] == [0]  # as if it had not been stopped


def test_rows_of_another_recipe_are_left_out_with_a_word(place: Path) -> None:
    command("--row", "aff", "-q")
    done = command("--row", "full", "--set", "optimizer.lr=2e-3", "-q")
    assert "rows of another recipe in s are not in the tables: aff (another optimizer)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [r["row"] for r in json.loads((place / "s" / "ablation.json").read_text())["table_4"]] == ["full"]


def test_a_table_that_was_not_asked_for_is_not_shown_nor_made_of_the_shared_row(place: Path) -> None:
    alone = command("--table", "3", "-q")
    for text in (alone.stdout, (place / "s" / "ablation.md").read_text()):
        assert "Table 3" in text
        assert "Table 4" not in text
    assert list(json.loads(command("--table", "3", "-q", "--json").stdout)) == ["table_3"]
    command("--row", "aff", "-q")
    shown = command("--table", "3", "-q").stdout
    assert "Table 4" not in shown
    assert "Table 4" in (place / "s" / "ablation.md").read_text()  # what the folder has stays there


def test_a_limit_in_minutes_compares_whatever_the_steps() -> None:
    def row(index: int, steps: int, minutes: float) -> RowResult:
        return RowResult(ROWS[index], 30.0, 1.0, {}, 10, steps, 60.0, minutes)

    assert not Results((row(0, 900, 5.0), row(8, 700, 5.0)), "").warning
    assert Results((row(0, 900, 5.0), row(8, 700, 5.0)), "").of(4)[0]["against"] == 0
    assert Results((row(0, 900, 5.0), row(8, 700, 6.0)), "").warning
