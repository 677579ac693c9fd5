"""Names to models: what resolves, what is built, what is refused and how."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamdeblur.errors import UsageError, WeightsError
from streamdeblur.models import (
    OFFSET_STEP,
    Identity,
    Metadata,
    MIMOUNet,
    MIMOUNetConfig,
    Offset,
    SelfEnsemble,
    build,
    cheapest_variant,
    default_variant,
    registry,
    resolve,
    save_checkpoint,
    shipped_weights,
    variants,
)
from streamdeblur.models.analysis import describe
from streamdeblur.models.authors import export_authors
from streamdeblur.models.mimo_unet import MIMO_UNET, MIMO_UNET_PLUS
from streamdeblur.models.random_weights import random_state

SMALL = resolve("mimo-unet-small").config
assert SMALL is not None


@pytest.fixture(autouse=True)
def _no_shipped_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shipped is what a test puts into this folder."""
    monkeypatch.setattr(registry, "weights_folder", lambda: tmp_path / "shipped")


def checkpoint(path: Path, variant: str, config: MIMOUNetConfig, seed: int = 0, score: float | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(path, random_state(config, seed), Metadata(variant, config, score=score))
    return path


def image(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


def test_every_variant_resolves_to_itself() -> None:
    assert {"identity", "offset", "mimo-unet", "mimo-unet-plus", "mimo-unet-plus-plus", "mimo-unet-small"} <= set(
        variants()
    )
    for name, variant in variants().items():
        assert resolve(name) is variant
        assert variant.name == name
    assert resolve("mimo-unet").config == MIMOUNetConfig()
    assert resolve("mimo-unet-plus").config == MIMOUNetConfig(blocks=20, dropout=0.1)
    assert resolve("mimo-unet-plus-plus").ensemble == resolve("mimo-unet-plus-plus:4").ensemble == 4
    assert resolve("mimo-unet-plus-plus:8").ensemble == 8
    assert resolve("mimo-unet-plus-plus:8").weights_name == "mimo-unet-plus"


@pytest.mark.parametrize("passes", [4, 8])
def test_every_network_has_its_self_ensembles(passes: int, tmp_path: Path) -> None:
    variant = resolve(f"mimo-unet-small:{passes}")
    assert (variant.name, variant.ensemble, variant.passes) == (f"mimo-unet-small:{passes}", passes, passes)
    assert (variant.config, variant.weights_name) == (SMALL, "mimo-unet-small")
    assert f"mimo-unet-small averaged over 4 flips{' and' * (passes == 8)}" in variant.summary
    checkpoint(tmp_path / "shipped" / "mimo-unet-small.safetensors", "mimo-unet-small", SMALL, 3, score=30.0)
    found, expected = (
        build(f"mimo-unet-small:{passes}"),
        SelfEnsemble(build("mimo-unet-small"), 4 if passes == 4 else 8),
    )
    assert torch.equal(found.residual(image()), expected.residual(image()))
    assert registry.knows(variant.name)
    assert not registry.knows("mimo-unet-small:3")
    assert resolve(f"mimo-unet-plus:{passes}") is resolve(f"mimo-unet-plus-plus{':8' * (passes == 8)}")
    chosen = default_variant()
    assert chosen is not None
    assert chosen.name == "mimo-unet-small"  # what nobody asked for is no ensemble


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mimo-unett", "mimo-unet?"),
        ("MIMO-UNet+", "mimo-unet-plus?"),
        ("mimo_unet_small", "mimo-unet-small?"),
        ("identiy", "identity?"),
        ("ofset", "offset?"),
        ("mimo-unet-plus-plus:5", "mimo-unet-plus-plus"),
        ("mimo-unet-small:6", "mimo-unet-small?"),
        ("mimo-unet-plus-plus:8:8", "mimo-unet-plus-plus:8?"),
        ("identity:8", "identity?"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(name)
    assert f"did you mean {near}" in str(error.value)
    assert all(known in str(error.value) for known in variants())


def test_a_name_near_nothing_gets_the_list() -> None:
    with pytest.raises(UsageError, match=r"^unknown model 'xyzzy'; known: identity, offset"):
        build("xyzzy")


def test_identity_and_offset() -> None:
    x = image()
    assert torch.equal(build("identity").residual(x), torch.zeros_like(x))
    for name, step in (("offset", OFFSET_STEP), ("offset:0.5,-1,0.25", (0.5, -1.0, 0.25))):
        model = build(name)
        expected = torch.tensor(step).view(1, 3, 1, 1).expand_as(x)
        assert torch.equal(model.residual(x), expected)
        assert torch.equal(
            model.half().residual(x), expected
        )  # float32 in, float32 out, whatever the module was cast to
        assert torch.equal(model(x)[-1], x + expected)
        assert model.receptive_radius == 0
    assert isinstance(build("identity"), Identity)
    assert isinstance(build("offset"), Offset)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        Identity().residual(x[0])


@pytest.mark.parametrize("name", ["offset:", "offset:1,2", "offset:1,2,3,4", "offset:a,b,c", "offset:0,nan,0"])
def test_steps_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="offset:R,G,B"):
        build(name)


@pytest.mark.parametrize("name", ["identity", "offset"])
def test_models_without_parameters_take_no_weights(name: str) -> None:
    with pytest.raises(UsageError, match="takes no weights"):
        build(name, "random:0")


def test_random_weights_are_deterministic_and_leave_the_global_state() -> None:
    before = torch.random.get_rng_state()
    first = build("mimo-unet-small", "random:7")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12345)
    second, other = build("mimo-unet-small", "random:7"), build("mimo-unet-small", "random:8")
    torch.random.set_rng_state(before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        assert not torch.equal(value, other.state_dict()[name])
    assert not first.training


@pytest.mark.parametrize("name", ["mimo-unet-small", "mimo-unet", "mimo-unet-plus", "mimo-unet-plus-plus"])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_correct_by_a_few_levels(name: str, seed: int) -> None:
    with torch.inference_mode():
        levels = build(name, f"random:{seed}").residual(image()) * 255
    assert 1 < levels.square().mean().sqrt() < 12
    assert levels.std() > 0.5  # not one constant step
    assert levels.abs().max() < 64


@pytest.mark.parametrize("weights", ["random:", "random:x", "random:-1", "random:1.5", f"random:{2**64}"])
def test_seeds_that_are_none(weights: str) -> None:
    with pytest.raises(UsageError, match="random:SEED"):
        build("mimo-unet-small", weights)


def test_random_weights_need_a_name() -> None:
    with pytest.raises(UsageError, match="--model"):
        build(None, "random:0")


@pytest.mark.parametrize("name", [None, "mimo-unet", "mimo-unet-plus-plus"])
def test_without_weights_the_line_says_what_to_do(name: str | None) -> None:
    with pytest.raises(WeightsError) as error:
        build(name)
    text = str(error.value)
    assert "--weights FILE" in text
    assert "--model identity" in text
    assert name is None or name in text


@pytest.mark.parametrize("name", ["mimo-unet-small", None])
def test_a_checkpoint_is_built(tmp_path: Path, name: str | None) -> None:
    file = checkpoint(tmp_path / "net.safetensors", "mimo-unet-small", SMALL, seed=3)
    model = build(name, file)
    assert isinstance(model, MIMOUNet)
    assert not model.training
    with torch.inference_mode():
        assert torch.equal(model.residual(image()), build("mimo-unet-small", "random:3").residual(image()))


def test_a_checkpoint_of_an_unknown_variant_is_built_without_a_name(tmp_path: Path) -> None:
    config = MIMOUNetConfig(width=4, blocks=2, aff=False)
    model = build(None, str(checkpoint(tmp_path / "net.safetensors", "no-aff", config)))
    assert isinstance(model, MIMOUNet)
    assert model.config == config


def test_an_authors_pickle_is_imported_on_the_fly(tmp_path: Path) -> None:
    state = random_state(MIMO_UNET, 2)
    torch.save({"model": export_authors(state, MIMO_UNET)}, tmp_path / "MIMO-UNet.pkl")
    for name in (None, "mimo-unet"):
        model = build(name, tmp_path / "MIMO-UNet.pkl")
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(WeightsError, match=r"weights of mimo-unet, not of mimo-unet-plus"):
        build("mimo-unet-plus", tmp_path / "MIMO-UNet.pkl")


def test_plus_plus_runs_on_the_weights_of_plus(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "net.safetensors", "mimo-unet-plus", MIMO_UNET_PLUS)
    for name, transforms in (("mimo-unet-plus-plus", 4), ("mimo-unet-plus-plus:8", 8)):
        model = build(name, file)
        assert isinstance(model, SelfEnsemble)
        assert model.transforms == transforms
        assert not model.net.training


def test_name_and_checkpoint_that_disagree(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "net.safetensors", "mimo-unet-small", SMALL)
    for name in ("mimo-unet", "mimo-unet-plus-plus"):
        with pytest.raises(WeightsError) as error:
            build(name, file)
        assert "mimo-unet-small" in str(error.value)
        assert name in str(error.value)


def test_a_checkpoint_that_calls_itself_what_it_is_not(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "net.safetensors", "mimo-unet", MIMOUNetConfig(width=4, blocks=2))
    with pytest.raises(WeightsError, match="width 4 and 32, blocks 2 and 8"):
        build("mimo-unet", file)


def test_dropout_makes_no_other_network(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "net.safetensors", "mimo-unet", MIMOUNetConfig(dropout=0.2))
    assert isinstance(build("mimo-unet", file), MIMOUNet)


def test_shipped_weights_are_found_and_the_best_is_the_default(tmp_path: Path) -> None:
    folder = tmp_path / "shipped"
    assert default_variant() is None
    assert cheapest_variant() is None
    assert shipped_weights(resolve("mimo-unet")) is None
    small = checkpoint(folder / "mimo-unet-small.safetensors", "mimo-unet-small", SMALL, score=30.5)
    assert default_variant() is resolve("mimo-unet-small")
    plus = checkpoint(folder / "mimo-unet-plus.safetensors", "mimo-unet-plus", MIMO_UNET_PLUS, score=29.0)
    assert default_variant() is resolve("mimo-unet-small")
    assert shipped_weights(resolve("mimo-unet-small")) == small
    assert cheapest_variant() is resolve("mimo-unet-small")
    assert shipped_weights(resolve("mimo-unet-plus-plus:8")) == plus
    assert shipped_weights(resolve("identity")) is None
    assert isinstance(build(), MIMOUNet)
    assert isinstance(build("mimo-unet-plus-plus"), SelfEnsemble)

    rows = {row["name"]: row for row in describe()}
    assert rows["mimo-unet-small"]["weights"] == str(small)
    assert rows["mimo-unet-small"]["score"] == 30.5
    assert rows["mimo-unet-plus-plus"]["weights"] == str(plus)
    assert rows["mimo-unet-plus-plus"]["score"] is None
    assert rows["mimo-unet"]["weights"] is None


def test_description_of_the_variants() -> None:
    rows = {row["name"]: row for row in describe()}
    assert list(rows) == list(variants())
    assert rows["identity"]["parameters"] == rows["identity"]["gflop_720p"] == rows["identity"]["receptive_radius"] == 0
    assert rows["mimo-unet"]["parameters"] == 6_807_171
    assert rows["mimo-unet"]["gflop_720p"] == pytest.approx(1792, abs=1)
    assert rows["mimo-unet"]["receptive_radius"] == 241
    assert rows["mimo-unet"]["receptive_field"] == 483
    plus = rows["mimo-unet-plus"]["gflop_720p"]
    assert rows["mimo-unet-plus-plus"]["gflop_720p"] == pytest.approx(4 * plus)
    assert rows["mimo-unet-plus-plus:8"]["gflop_720p"] == pytest.approx(8 * plus)


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, streamdeblur.models; print(*{'av', 'ray', 'cv2', 'pydantic', 'psutil', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("reason", ["", "reds loses 0.10 dB"])
def test_weights_that_fell_short_say_so_once(tmp_path: Path, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    assert SMALL is not None
    path = tmp_path / "some.safetensors"
    save_checkpoint(
        path, random_state(SMALL, 0), Metadata("mimo-unet-small", SMALL, extra={"preview": reason} if reason else {})
    )
    with caplog.at_level("WARNING", logger="streamdeblur"):
        logging.getLogger("streamdeblur").propagate = True
        build("mimo-unet-small", path)
        build(None, path)
    said = [r.getMessage() for r in caplog.records]
    assert said == ([f"mimo-unet-small: these weights are a preview: {reason}"] if reason else [])
