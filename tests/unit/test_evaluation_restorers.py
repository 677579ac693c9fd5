"""What can be measured: variants of ours, Python factories, torch.export programs, ONNX files; and what is refused."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamdeblur.detect.factories import factory_word
from streamdeblur.errors import StreamdeblurError, UsageError, WeightsError
from streamdeblur.evaluation.benchmark.reference import as_published
from streamdeblur.evaluation.onnx_files import count_parameters
from streamdeblur.evaluation.restorers import load_candidates
from streamdeblur.models import registry
from streamdeblur.models.checkpoint import Metadata, save_checkpoint
from streamdeblur.models.ensemble import SelfEnsemble
from streamdeblur.models.mimo_unet import MIMOUNet, MIMOUNetConfig
from streamdeblur.models.random_weights import random_state

# -- a hand-made ONNX file: Protocol Buffers' wire format, field numbers from onnx.proto ------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor_info(name: str, shape: list[int | str]) -> bytes:
    dims = b"".join(field(1, field(1, d) if isinstance(d, int) else field(2, d)) for d in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def onnx_scale(
    path: Path, scale: tuple[float, float, float], size: list[int | str] | None = None, operator: str = "Mul"
) -> Path:
    """y = x * scale, a number for each channel; size: (H, W) that it takes, names for any."""
    shape = ["n", 3, *(size or ["h", "w"])]
    weights = field(1, 1) + field(1, 3) + field(1, 1) + field(1, 1) + field(2, 1) + field(8, "s")
    weights += field(9, struct.pack("<3f", *scale))
    node = field(1, "x") + field(1, "s") + field(2, "y") + field(4, operator)
    graph = field(1, node) + field(2, "g") + field(5, weights)
    graph += field(11, tensor_info("x", shape)) + field(12, tensor_info("y", shape))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return path


def image(height: int = 24, width: int = 40) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))


# -- ours --------------------------------------------------------------------------------------------------------------


def test_a_variant_runs_through_the_restorer_with_its_cost() -> None:
    (one,) = load_candidates(["mimo-unet-small=random:5"], precision="fp32", tiling="whole")
    x = image(30, 42)  # no multiple of 4
    net = registry.build("mimo-unet-small", "random:5")
    padded = nn.functional.pad(x, (0, 2, 0, 2), mode="reflect")
    expected = (padded + net.residual(padded))[..., :30, :42]
    assert torch.allclose(one(x), expected, atol=1e-5)
    assert (one.name, one.kind, one.precision, one.tiling) == ("mimo-unet-small", "streamdeblur", "fp32", "whole")
    assert one.parameters == sum(p.numel() for p in net.parameters())
    # an independent count: the dispatcher's own, of the network as published, at the padded size
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        as_published(net).residual(padded)
    assert one.gflop(x) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.005)


def test_self_ensemble_counts_every_pass() -> None:
    plain, four, eight = load_candidates(
        ["mimo-unet-plus", "mimo-unet-plus-plus", "mimo-unet-plus-plus:8"], weights="random:0"
    )
    x = image(16, 16)
    base = plain.gflop(x)
    assert base is not None
    assert base > 0
    assert four.gflop(x) == pytest.approx(4 * base)
    assert eight.gflop(x) == pytest.approx(8 * base)
    assert plain.parameters == four.parameters == eight.parameters


def test_self_ensembles_of_any_network_take_weights_of_their_own() -> None:
    one, other = load_candidates(["mimo-unet-small:8=random:5", "mimo-unet-small:8=random:6"], precision="fp32")
    x = image()
    expected = SelfEnsemble(registry.build("mimo-unet-small", "random:5"), 8).residual(x) + x
    torch.testing.assert_close(one(x), expected, rtol=0, atol=1e-5)
    assert (one(x) - other(x)).abs().max() > 1e-4
    with pytest.raises(WeightsError, match=r"no weights file missing\.safetensors"):
        load_candidates(["mimo-unet-small:8=missing.safetensors"])


def test_a_checkpoint_brings_its_own_variant(tmp_path: Path) -> None:
    config = MIMOUNetConfig(width=8, blocks=1)
    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, random_state(config, 1), Metadata(variant="tiny", config=config))
    (one,) = load_candidates([str(path)], precision="fp32")
    assert one.name == "tiny"
    assert one.parameters == sum(p.numel() for p in MIMOUNet(config).parameters())


def test_weights_go_to_variants_that_take_some() -> None:
    still, net = load_candidates(["identity", "mimo-unet-small"], weights="random:0", precision="fp32")
    x = image()
    assert torch.equal(still(x), x)
    assert still.parameters == still.gflop(x) == 0
    assert torch.allclose(net(x), load_candidates(["mimo-unet-small=random:0"], precision="fp32")[0](x))


def test_names_are_told_apart(tmp_path: Path) -> None:
    onnx_scale(tmp_path / "sharp.onnx", (1, 1, 1))
    names = [
        c.name
        for c in load_candidates(
            ["mimo-unet-small=random:0", "mimo-unet-small=random:1", "offset", "identity", "identity"]
        )
    ]
    assert names == [
        "mimo-unet-small (random:0)",
        "mimo-unet-small (random:1)",
        "offset",
        "identity (identity) #1",
        "identity (identity) #2",
    ]


# -- Python factories --------------------------------------------------------------------------------------------------

FACTORIES = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    size_multiple = 8
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 3, 1, 1), 0.5))
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        assert x.shape[-1] % 8 == 0 and x.shape[-2] % 8 == 0, "sizes"
        return self.drop(x) * self.scale

def network(): return Net()
def convolution(): return nn.Conv2d(3, 3, 5, padding=2)
def plain(): return lambda x: x + 0.25
def picky():
    def run(x):
        if x.shape[-1] % 16 or x.shape[-2] % 16: raise RuntimeError("want 16")
        return x.clone()
    return run
def shrinks(): return lambda x: x[..., ::2, ::2]
def breaks(): return lambda x: x * float("nan")
def whole_numbers(): return lambda x: (x * 255).to(torch.uint8)
def stages(): return lambda x: [x, x]
def leaves(): return lambda x: sys.exit(0)
def nothing(): return 3
def fails(): raise RuntimeError("no weights here")
half = 0.5
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "rival_networks.py"
    path.write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return path


def test_a_module_factory_in_eval_mode_padded_to_its_multiple(factories: Path) -> None:
    by_module, by_file = load_candidates(["rival_networks:network", f"{factories}:network"])
    x = image(20, 30)
    for one in (by_module, by_file):
        assert torch.allclose(one(x), x * 0.5)
        assert (one.kind, one.parameters, one.precision, one.tiling) == ("python", 3, "fp32", "whole")


def test_a_plain_function_and_padding_by_option(factories: Path) -> None:
    (plain,) = load_candidates(["rival_networks:plain"])
    x = image()
    assert torch.equal(plain(x), x + 0.25)
    assert plain.parameters is None
    (picky,) = load_candidates(["rival_networks:picky"], multiple=16)
    assert torch.equal(picky(x), x)
    (picky,) = load_candidates(["rival_networks:picky"])
    with pytest.raises(StreamdeblurError, match=r"failed on an image of 40x24: RuntimeError: want 16; .*--multiple"):
        picky(x)


def test_operations_of_what_is_no_module_are_counted_where_they_can_be(factories: Path) -> None:
    net, plain, picky = load_candidates([f"rival_networks:{n}" for n in ("convolution", "plain", "picky")])
    x = image(20, 30)
    assert net.gflop(x) == pytest.approx(2 * 20 * 30 * 3 * 3 * 25 / 1e9)  # multiply and add
    assert plain.gflop(x) is None
    assert picky.gflop(x) is None


def test_factories_with_neighbours_of_one_name_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before all the second network's, which would be measured as the first, in silence."""
    for folder, offset in (("one", 0.125), ("two", 0.25)):
        (tmp_path / folder / "parts").mkdir(parents=True)
        (tmp_path / folder / "network.py").write_text(f"OFFSET = {offset}\n")
        (tmp_path / folder / "parts" / "__init__.py").write_text("")
        (tmp_path / folder / "parts" / "late.py").write_text(f"OFFSET = 2 * {offset}\n")
        (tmp_path / folder / "parts" / "later.py").write_text(f"OFFSET = 4 * {offset}\n")
        (tmp_path / folder / "rival.py").write_text(
            "import network\n"
            "def build():\n"
            "    from parts.late import OFFSET\n"
            "    def run(x):\n"
            "        from parts import later\n"
            "        return x + network.OFFSET + OFFSET + later.OFFSET\n"
            "    return run\n"
        )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    one, two = load_candidates(["one/rival.py:build", "two/rival.py:build"])
    assert (one.name, two.name) == ("rival:build (one/rival.py:build)", "rival:build (two/rival.py:build)")
    x = torch.zeros((1, 3, 16, 16))
    for _ in range(2):
        assert float(one(x).max()) == 7 * 0.125
        assert float(two(x).max()) == 7 * 0.25
    assert sys.path == before


@pytest.mark.parametrize("chdir", [False, True])
def test_factories_that_change_the_search_or_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chdir: bool
) -> None:
    """As programs of research do that find their parts and weights beside them."""
    for folder, offset in (("one", 0.125), ("two", 0.25)):
        (tmp_path / folder / "lib").mkdir(parents=True)
        (tmp_path / folder / "scripts").mkdir()
        (tmp_path / folder / "lib" / "arch.py").write_text(f"OFFSET = {offset}\n")
        (tmp_path / folder / "lib" / "late.py").write_text(f"OFFSET = 2 * {offset}\n")
        change = "os.chdir(os.path.dirname(__file__))\n" if chdir else ""
        (tmp_path / folder / "scripts" / "f.py").write_text(
            f"import os, sys\n{change}"
            "sys.path.append(os.path.join(os.path.dirname(os.path.dirname(__file__)), 'lib'))\n"
            "from arch import OFFSET\n"
            "def run(x):\n    import late\n    return x + OFFSET + late.OFFSET\n"
            "def build(): return run\n"
        )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    words = [tmp_path / "one" / "scripts" / "f.py", tmp_path / "two" / "scripts" / "f.py"]
    one, two = load_candidates([f"{w if chdir else w.relative_to(tmp_path)}:build" for w in words])
    x = torch.zeros((1, 3, 16, 16))
    assert [float(c(x).max()) for c in (two, one, two)] == [0.75, 0.375, 0.75]
    assert sys.path == before


def test_elsewhere_the_factory_that_came_first_finds_its_own(tmp_path: Path) -> None:
    """A detector of a job is called by threads, outside of its home."""
    for folder in ("one", "two"):
        (tmp_path / folder / "neighbour").mkdir(parents=True)
        (tmp_path / folder / "neighbour" / "__init__.py").write_text(f"NAME = {folder!r}\n")
        (tmp_path / folder / "f.py").write_text(
            "import neighbour\ndef run():\n    import neighbour\n    return neighbour.NAME\ndef build(): return run\n"
        )
    (tmp_path / "two" / "neighbour" / "more.py").write_text("")
    (tmp_path / "two" / "f.py").write_text((tmp_path / "two" / "f.py").read_text() + "import neighbour.more\n")
    words = [factory_word(f"{tmp_path / folder / 'f.py'}:build") for folder in ("one", "two")]
    first, second = (word.build("detector") for word in words if word is not None)
    assert first() == "one"
    assert words[1] is not None
    with words[1].at_home():
        assert second() == "two"
        assert "neighbour.more" in sys.modules
    assert first() == "one"
    assert "neighbour.more" not in sys.modules


def test_our_own_modules_are_no_factorys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory in a checkout of ours imports parts of the package that nobody has imported yet; all have the same."""
    lazy = "streamdeblur.evaluation.published"
    code = f"def build():\n    import {lazy}\n    return lambda x: x\n"
    root = Path(__file__).parents[2]
    for folder in (tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        (folder / "f.py").write_text(code)
    script = (
        "import sys\n"
        "from streamdeblur.detect.factories import _homes, factory_word\n"
        "seen = []\n"
        f"for word in ({str(tmp_path / 'f.py:build')!r}, {str(tmp_path / 'other' / 'f.py:build')!r}):\n"
        f"    assert bool(seen) == ({lazy!r} in sys.modules)\n"
        "    factory_word(word).build('model')\n"
        f"    seen.append(sys.modules[{lazy!r}])\n"
        "assert seen[0] is seen[1]\n"
        "assert not any(n.startswith('streamdeblur') for h in _homes.values() for n in h._modules)\n"
    )
    (tmp_path / "streamdeblur").symlink_to(root / "streamdeblur")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_a_result_of_0_to_255_is_warned_of_once(factories: Path, caplog: pytest.LogCaptureFixture) -> None:
    factories.write_text(FACTORIES + "\ndef bytes_(): return lambda x: x * 255\n")
    (one,) = load_candidates([f"{factories}:bytes_"])
    for _ in range(2):
        one(torch.ones((1, 3, 16, 16)))
    (told,) = caplog.records
    assert told.getMessage().endswith("returned values up to 255: RGB in [0, 1] is meant, what is above is cut")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shrinks", r"returned \(1, 3, 12, 20\) for an image of \(1, 3, 24, 40\)"),
        ("breaks", "not finite for an image of 40x24"),
        ("whole_numbers", "returned torch.uint8"),
        ("stages", "returned a list of 2, not a tensor"),
        ("leaves", "failed on an image of 40x24: SystemExit: 0"),
    ],
)
def test_what_is_no_image_is_refused(factories: Path, name: str, text: str) -> None:
    (one,) = load_candidates([f"rival_networks:{name}"])
    with pytest.raises(StreamdeblurError, match=text) as e:
        one(image())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("rival_networks:missing", "has no function missing"),
        ("rival_networks:half", "has no function half"),
        ("rival_networks:nothing", "built a int, which can't be called"),
        ("rival_networks:fails", "failed to build: RuntimeError: no weights here"),
        ("no_such_module_here:build", "can't be imported: ModuleNotFoundError"),
        ("absent.py:build", "no file absent.py"),
        ("mimo-unit", "unknown model 'mimo-unit'; did you mean mimo-unet"),
        ("mimo-unet=missing.safetensors", "missing.safetensors"),
        ("missing.pt2", "missing.pt2 does not exist"),
        ("missing.onnx", "missing.onnx does not exist"),
        ("identity=random:0", "identity takes no weights"),
    ],
)
def test_unknown_models_are_one_line(factories: Path, word: str, text: str) -> None:
    with pytest.raises((UsageError, WeightsError), match=text) as e:
        load_candidates([word])
    assert "\n" not in str(e.value)


# -- torch.export and ONNX ---------------------------------------------------------------------------------------------


class Blend(nn.Module):
    """y = 0.75 x + bias: something a file holds three numbers of."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.1, 0.0, -0.05])[None, :, None, None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., ::2, ::2] * 2, 0.75 * x + self.bias


def test_an_exported_program_runs_at_any_size_it_was_made_for(tmp_path: Path) -> None:
    path = tmp_path / "rival.pt2"
    height, width = torch.export.Dim("h", min=8, max=512), torch.export.Dim("w", min=8, max=512)
    program = torch.export.export(Blend(), (torch.rand(1, 3, 64, 96),), dynamic_shapes=({2: height, 3: width},))
    torch.export.save(program, path)
    (one,) = load_candidates([str(path)])
    x = image(26, 50)
    bias = torch.tensor([0.1, 0.0, -0.05])[None, :, None, None]
    assert torch.allclose(one(x), 0.75 * x + bias, atol=1e-6)  # the one output of the image's size
    assert (one.name, one.kind, one.parameters) == ("rival", "torch.export", 3)
    with pytest.raises(StreamdeblurError, match="rival failed on an image of 600x16"):
        one(image(16, 600))


def test_a_damaged_program_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rival.pt2"
    path.write_bytes(b"not a program")
    with pytest.raises(WeightsError, match=r"rival.pt2 is not a program that this PyTorch loads") as e:
        load_candidates([str(path)])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize("debug", [False, True])
def test_other_loggers_speak_only_to_who_debugs(tmp_path: Path, kind: str, debug: bool) -> None:
    # in a process of its own: handlers hold the stderr of when torch was imported, onnxruntime that of the process
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'streamdeblur[detect]'")
    (tmp_path / "a.pt2").write_bytes(b"not a program")
    onnx_scale(tmp_path / "a.onnx", (1, 1, 1), operator="MatMul")  # of shapes that don't go together
    code = (
        "import logging, sys, torch\n"
        "from streamdeblur.evaluation.restorers import load_candidates\n"
        f"logging.getLogger('streamdeblur').setLevel(logging.{'DEBUG' if debug else 'WARNING'})\n"
        "try:\n"
        f"    load_candidates([r'{tmp_path / f'a.{kind}'}'], device='cpu')[0](torch.rand(1, 3, 24, 40))\n"
        "except Exception as e:\n"
        "    print(type(e).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["WeightsError" if kind == "pt2" else "StreamdeblurError"]
    assert bool(done.stderr) == debug, done.stderr


def test_an_onnx_file_tells_its_parameters(tmp_path: Path) -> None:
    assert count_parameters(onnx_scale(tmp_path / "a.onnx", (1, 2, 3))) == 3
    (tmp_path / "b.onnx").write_bytes(b"\xff" * 40)
    assert count_parameters(tmp_path / "b.onnx") is None
    (tmp_path / "c.onnx").write_bytes((tmp_path / "a.onnx").read_bytes()[:-20])
    assert count_parameters(tmp_path / "c.onnx") is None


def test_a_handmade_onnx_file_runs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'streamdeblur[detect]'")
    path = onnx_scale(tmp_path / "rival.onnx", (1.5, 1.0, 0.5))
    (one,) = load_candidates([str(path)], multiple=16)
    x = image(26, 50)
    assert torch.allclose(one(x), x * torch.tensor([1.5, 1.0, 0.5])[None, :, None, None], atol=1e-6)
    assert (one.name, one.kind, one.parameters, one.gflop(x)) == ("rival", "onnx", 3, None)
    (fixed,) = load_candidates([str(onnx_scale(tmp_path / "fixed.onnx", (1, 1, 1), [24, 40]))])
    assert torch.equal(fixed(image()), image())
    with pytest.raises(StreamdeblurError, match=r"fixed.onnx takes 40x24 only, and the image is 50x26"):
        fixed(x)
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not a network that onnxruntime loads") as e:
        load_candidates([str(path)])
    assert "\n" not in str(e.value)


def test_without_onnxruntime_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"needs onnxruntime; pip install 'streamdeblur\[detect\]'"):
        load_candidates([str(onnx_scale(tmp_path / "a.onnx", (1, 1, 1)))])
