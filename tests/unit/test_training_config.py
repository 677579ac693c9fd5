"""The YAML of recipes: strict, every fault one line; all of the repository's files are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdeblur.errors import ConfigError
from streamdeblur.models import registry
from streamdeblur.training.config import load, parse
from streamdeblur.training.networks import architecture
from streamdeblur.training.recipe import Preparation, Recipe, Schedule

CONFIGS = Path(__file__).parents[2] / "configs"

BASE = "data: {shards: [crops]}\nsteps: 10\n"


def written(folder: Path, text: str = BASE) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_reach_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOTAGE", "/footage")
    text = """
model: mimo-unet-plus
architecture: {width: 8, fusion: sum}
data:
  sources:
    - {kind: pairs, path: "${FOOTAGE}/pairs", share: 2, options: {layout: gopro}}
    - {kind: stills, path: b}
  crop: 128
optimizer: {lr: 1e-3, betas: [0.8, 0.9]}
schedule: {kind: step, every: 5}
epochs: 3
"""
    recipe = load(Recipe, written(tmp_path, text))
    assert recipe.data.sources[0].path == "/footage/pairs"
    assert recipe.data.sources[0].options == {"layout": "gopro"}
    assert (recipe.data.crop, recipe.optimizer.lr, recipe.optimizer.betas) == (128, 1e-3, (0.8, 0.9))
    assert recipe.schedule == Schedule(kind="step", every=5)
    assert (architecture(recipe).width, architecture(recipe).blocks, architecture(recipe).fusion) == (8, 20, "sum")
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steps: 1\ndata: {shards: [a]}\noptimzer: {lr: 1}", ["unknown key 'optimzer'", "did you mean optimizer?"]),
        ("steps: 1\ndata: {shards: [a], cropp: 3}", ["unknown key 'data.cropp'", "did you mean crop?"]),
        (
            "steps: 1\ndata: {sources: [{kind: pairs, path: a}, {kind: pairs, path: a, shar: 1}]}",
            ["unknown key 'data.sources.1.shar'", "did you mean share?"],
        ),
        ("steps: 1\ndata: {shards: [a]}\nstate: {zzz: 1}", ["unknown key 'state.zzz'", "known are every, dtype"]),
        ("steps: 1\ndata: {shards: [a]}\nprecision: int8", ["precision 'int8'", "'bf16'"]),
        ("steps: 1\ndata: {shards: [a], batch: many}", ["data.batch 'many'"]),
        ("steps: 1\ndata: {shards: [a], batch: 0}", ["batch 0 is not at least 1"]),
        ("steps: 1\ndata: {sources: [{kind: photos, path: a}]}", ["data.sources.0.kind 'photos'"]),
        ("steps: 1\ndata: {shards: [a]}\noptimizer: {lr: .inf}", ["optimizer.lr inf"]),
        ("steps: 1\ndata: {shards: [a]}\noptimizer: {lr: -1}", ["lr -1 is not above 0"]),
        ("steps: 1\ndata: {shards: [a]}\nschedule: {kind: step}", ["needs every"]),
        ("steps: 1\ndata: 5", ["data 5"]),
        ("steps: 1\ndata: {shards: crops}", ["data.shards 'crops'", "give a list, as [A, B]"]),
        ("steps: 1\ndata: {shards: [a]}\noptimizer: adam", ["optimizer 'adam'", "give keys and values"]),
        ("steps: 1\ndata: {shards: [a]}\nmodel: [a]", ["model ['a']", "give one text"]),
        ("steps: 1", ["data", "equired"]),
        ("data: {shards: [a]}", ["give epochs or steps"]),
        ("steps: 1.5\ndata: {shards: [a]}", ["steps 1.5"]),
    ],
)
def test_faults_are_one_line_with_key_value_and_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        load(Recipe, written(tmp_path, text))
    message = str(e.value)
    assert "\n" not in message
    assert "r.yaml" in message
    assert len(message) < 400
    for part in parts:
        assert part in message


def test_changes_on_the_command_line_win(tmp_path: Path) -> None:
    path = written(tmp_path)
    recipe = load(
        Recipe, path, ["optimizer.lr=2e-4", "data.sharp-share=0.5", "compile=true", "data.shards=[x, y]", "model=a=b"]
    )
    assert (recipe.optimizer.lr, recipe.data.sharp_share, recipe.compile) == (2e-4, 0.5, True)
    assert (recipe.data.shards, recipe.model) == (("x", "y"), "a=b")
    for change, part in (
        ("lr", "'lr' is not KEY=VALUE"),
        ("=3", "not KEY=VALUE"),
        ("steps.x=3", "steps holds no keys"),
        ("optimizer.rl=1", "did you mean lr?"),
        ("data.shards=[x", "not valid YAML"),
        ("steps=many", "the command line"),
    ):
        with pytest.raises(ConfigError) as e:
            load(Recipe, path, [change])
        assert part in str(e.value)
        assert "\n" not in str(e.value)


def test_preparation_is_as_strict() -> None:
    values = {"sources": [{"kind": "stills", "path": "p"}], "count": 5}
    assert parse(Preparation, values, "here").count == 5
    with pytest.raises(ConfigError, match="unknown key 'cout' in here; did you mean count"):
        parse(Preparation, {**values, "cout": 3}, "here")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("train_*.yaml")), ids=lambda p: p.name)
def test_training_configs_of_the_repository(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STREAMDEBLUR_DATA", "GOPRO", "REALBLUR"):
        monkeypatch.setenv(name, f"/{name}")
    recipe = load(Recipe, path)
    assert registry.resolve(recipe.model).config == architecture(recipe)
    assert recipe.licence != "unknown"
    assert recipe.training_data != "unknown"
    assert not recipe.loss.teacher or (CONFIGS.parent / recipe.loss.teacher).is_file()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("prepare*.yaml")), ids=lambda p: p.name)
def test_preparation_configs_of_the_repository(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDEBLUR_DATA", "/data")
    assert load(Preparation, path).count > 0


def test_the_recipes_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sec. 4.1, and what the authors' program adds."""
    monkeypatch.setenv("GOPRO", "/gopro")
    monkeypatch.setenv("REALBLUR", "/realblur")
    gopro, realblur = load(Recipe, CONFIGS / "train_gopro.yaml"), load(Recipe, CONFIGS / "train_realblur.yaml")
    assert (gopro.model, gopro.epochs, gopro.schedule.every) == ("mimo-unet", 3000, 500)
    assert (realblur.model, realblur.epochs, realblur.schedule.every) == ("mimo-unet-plus", 1000, 200)
    for recipe in (gopro, realblur):
        d, o, s = recipe.data, recipe.optimizer, recipe.schedule
        assert (d.batch, d.crop, d.flips, d.rotations, d.sharp_share) == (4, 256, "horizontal", False, 0)
        assert [source.kind for source in d.sources] == ["pairs"]
        assert d.sources[0].options["identity"] == 0
        assert (o.name, o.lr, o.betas, o.weight_decay, o.clip, o.ema) == ("adam", 1e-4, (0.9, 0.999), 0, 0, 0)
        assert (s.kind, s.factor, s.warmup) == ("step", 0.5, 0)
        assert (recipe.loss.msfr, recipe.loss.msfr_weight, recipe.init) == ("released", 0.1, "pytorch")
