"""MIMO-UNet against an independent copy of the authors' program, the paper's tables, and measured dependence."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdeblur.models import MIMOUNet, MIMOUNetConfig, ResidualModel, SelfEnsemble
from streamdeblur.models.analysis import gflop, parameters
from streamdeblur.models.authors import PUBLISHED, export_authors, import_authors, name_map
from streamdeblur.models.mimo_unet import network_from_state
from streamdeblur.models.random_weights import random_state

LAYOUT_NAMES = {"mimo-unet": "MIMO-UNet", "mimo-unet-plus": "MIMO-UNetPlus"}
TINY = MIMOUNetConfig(width=4, blocks=1)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The network as the paper's Figs. 3 and 4 draw it, in the names and the order of the authors' program: nothing here
# is shared with the code under test.


class BasicConv(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride=1, relu=True, transpose=False):
        super().__init__()
        kind, padding = (nn.ConvTranspose2d, kernel // 2 - 1) if transpose else (nn.Conv2d, kernel // 2)
        layers = [kind(inputs, outputs, kernel, stride=stride, padding=padding)]
        self.main = nn.Sequential(*layers, *([nn.ReLU()] if relu else []))

    def forward(self, x):
        return self.main(x)


class ResBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.main = nn.Sequential(BasicConv(channels, channels, 3), BasicConv(channels, channels, 3, relu=False))

    def forward(self, x):
        return self.main(x) + x


class Block(nn.Module):
    def __init__(self, channels, count):
        super().__init__()
        self.layers = nn.Sequential(*[ResBlock(channels) for _ in range(count)])

    def forward(self, x):
        return self.layers(x)


class AuthorsAFF(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Sequential(BasicConv(inputs, outputs, 1), BasicConv(outputs, outputs, 3, relu=False))

    def forward(self, *features):
        return self.conv(torch.cat(features, dim=1))


class AuthorsSCM(nn.Module):
    def __init__(self, c):
        super().__init__()
        sizes = [(3, c // 4, 3), (c // 4, c // 2, 1), (c // 2, c // 2, 3), (c // 2, c - 3, 1)]
        self.main = nn.Sequential(*[BasicConv(*size) for size in sizes])
        self.conv = BasicConv(c, c, 1, relu=False)

    def forward(self, x):
        return self.conv(torch.cat([x, self.main(x)], dim=1))


class AuthorsFAM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.merge = BasicConv(channels, channels, 3, relu=False)

    def forward(self, x1, x2):
        return x1 + self.merge(x1 * x2)


class AuthorsNetwork(nn.Module):
    def __init__(self, count):
        super().__init__()
        c = 32
        self.Encoder = nn.ModuleList([Block(c, count), Block(2 * c, count), Block(4 * c, count)])
        self.feat_extract = nn.ModuleList(
            [
                BasicConv(3, c, 3),
                BasicConv(c, 2 * c, 3, stride=2),
                BasicConv(2 * c, 4 * c, 3, stride=2),
                BasicConv(4 * c, 2 * c, 4, stride=2, transpose=True),
                BasicConv(2 * c, c, 4, stride=2, transpose=True),
                BasicConv(c, 3, 3, relu=False),
            ]
        )
        self.Decoder = nn.ModuleList([Block(4 * c, count), Block(2 * c, count), Block(c, count)])
        self.Convs = nn.ModuleList([BasicConv(4 * c, 2 * c, 1), BasicConv(2 * c, c, 1)])
        self.ConvsOut = nn.ModuleList([BasicConv(4 * c, 3, 3, relu=False), BasicConv(2 * c, 3, 3, relu=False)])
        self.AFFs = nn.ModuleList([AuthorsAFF(7 * c, c), AuthorsAFF(7 * c, 2 * c)])
        self.FAM1, self.SCM1 = AuthorsFAM(4 * c), AuthorsSCM(4 * c)
        self.FAM2, self.SCM2 = AuthorsFAM(2 * c), AuthorsSCM(2 * c)

    def forward(self, x):
        x_2 = F.interpolate(x, scale_factor=0.5)
        x_4 = F.interpolate(x_2, scale_factor=0.5)
        res1 = self.Encoder[0](self.feat_extract[0](x))
        res2 = self.Encoder[1](self.FAM2(self.feat_extract[1](res1), self.SCM2(x_2)))
        z = self.Encoder[2](self.FAM1(self.feat_extract[2](res2), self.SCM1(x_4)))
        z12 = F.interpolate(res1, scale_factor=0.5)
        z21 = F.interpolate(res2, scale_factor=2)
        z42 = F.interpolate(z, scale_factor=2)
        z41 = F.interpolate(z42, scale_factor=2)
        res2 = self.AFFs[1](z12, res2, z42)
        res1 = self.AFFs[0](res1, z21, z41)
        z = self.Decoder[0](z)
        quarter = self.ConvsOut[0](z) + x_4
        z = self.Decoder[1](self.Convs[0](torch.cat([self.feat_extract[3](z), res2], dim=1)))
        half = self.ConvsOut[1](z) + x_2
        z = self.Decoder[2](self.Convs[1](torch.cat([self.feat_extract[4](z), res1], dim=1)))
        return [quarter, half, self.feat_extract[5](z) + x]


def image(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(config: MIMOUNetConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> MIMOUNet:
    return network_from_state(config, random_state(config, seed)).eval().to(dtype)


@pytest.mark.parametrize(("variant", "blocks"), [("mimo-unet", 8), ("mimo-unet-plus", 20)])
def test_same_weights_as_the_authors_give_the_same_images(variant: str, blocks: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = AuthorsNetwork(blocks).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "net.pkl")
    state, found = import_authors(tmp_path / "net.pkl")
    assert found == variant
    ours = network_from_state(PUBLISHED[variant], state).eval()
    x = image(2, 3, 64, 96)
    with torch.inference_mode():
        expected, got = theirs(x), ours(x)
        assert [o.shape for o in got] == [(2, 3, 16, 24), (2, 3, 32, 48), (2, 3, 64, 96)]
        for a, b in zip(got, expected, strict=True):
            assert (a - b).abs().max() < 1e-5
        assert (ours.residual(x) + x - expected[-1]).abs().max() < 1e-5
        assert ours.residual(x).abs().max() > 1e-3  # otherwise any network would agree


def test_agreement_holds_for_weights_with_large_corrections() -> None:
    # Default initialisation damps what deep levels contribute; these weights do not, and double precision shows it.
    ours = network(PUBLISHED["mimo-unet"], seed=5, dtype=torch.float64)
    theirs = AuthorsNetwork(8).double().eval()
    theirs.load_state_dict(export_authors(ours.state_dict(), PUBLISHED["mimo-unet"]))
    x = image(1, 3, 32, 48, dtype=torch.float64)
    with torch.inference_mode():
        for a, b in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["mimo-unet", "mimo-unet-plus"])
def test_names_and_shapes_are_those_of_the_published_checkpoints(variant: str, data_dir: Path) -> None:
    layout = json.loads((data_dir / "checkpoint_layout.json").read_text())[LAYOUT_NAMES[variant]]
    config = PUBLISHED[variant]
    exported = export_authors(random_state(config, 0), config)
    assert {name: list(value.shape) for name, value in exported.items()} == layout
    assert {n: list(v.shape) for n, v in AuthorsNetwork(config.blocks).state_dict().items()} == layout


def test_name_map_is_one_to_one_and_only_for_the_full_network() -> None:
    names = name_map(MIMOUNetConfig())
    assert len(set(names.values())) == len(names) == 244
    for switches in ({"mise": False}, {"mosd": False}, {"aff": False}, {"fusion": "sum"}):
        with pytest.raises(ValueError, match="full network"):
            name_map(MIMOUNetConfig(**switches))


@pytest.mark.parametrize(
    ("mise", "mosd", "aff", "millions"),
    [  # Table 4; MSFR, its ninth row, is a loss
        (False, False, False, 6.46),
        (True, False, False, 6.72),
        (False, True, False, 6.47),
        (False, False, True, 6.54),
        (True, True, False, 6.73),
        (False, True, True, 6.54),
        (True, False, True, 6.80),
        (True, True, True, 6.81),
    ],
)
def test_parameters_of_the_ablations(mise: bool, mosd: bool, aff: bool, millions: float) -> None:
    config = MIMOUNetConfig(mise=mise, mosd=mosd, aff=aff)
    assert parameters(config) / 1e6 == pytest.approx(millions, abs=0.02)
    assert parameters(config) == parameters(MIMOUNet(config))


def test_parameters_of_published_networks_and_fusions() -> None:
    assert parameters(MIMOUNetConfig()) == 6_807_171  # sums of the published shapes
    assert parameters(MIMOUNetConfig(blocks=20)) == 16_107_651
    fam = 9 * (64 * 64 + 128 * 128) + 64 + 128
    concat = 2 * 9 * (64 * 64 + 128 * 128) + 64 + 128
    assert parameters(MIMOUNetConfig(fusion="sum")) == 6_807_171 - fam
    assert parameters(MIMOUNetConfig(fusion="concat")) == 6_807_171 - fam + concat


def test_arithmetic_of_mimo_unet_at_720p() -> None:
    assert gflop(MIMOUNetConfig(), small_heads=True) == pytest.approx(1792, abs=1)
    heads = 2 * 9 * 3 * (128 * 180 * 320 + 64 * 360 * 640) / 1e9
    assert gflop(MIMOUNetConfig()) == pytest.approx(gflop(MIMOUNetConfig(), small_heads=True) - heads)
    # Residual blocks cost the same at each level: channels double, positions quarter. EB and DB, two convs a block.
    block = 2 * 2 * 9 * 32 * 32 * 720 * 1280 / 1e9
    assert gflop(MIMOUNetConfig(blocks=20)) - gflop(MIMOUNetConfig()) == pytest.approx(12 * 6 * block)
    assert gflop(MIMOUNetConfig(), 360, 640) == pytest.approx(gflop(MIMOUNetConfig()) / 4)


ABLATIONS = [
    replace(TINY, mise=mise, mosd=mosd, aff=aff, fusion=fusion)
    for mise, mosd, aff in product((False, True), repeat=3)
    for fusion in (("fam", "concat", "sum") if mise else ("fam",))
]


@pytest.mark.parametrize("config", ABLATIONS, ids=str)
def test_every_switch_trains_and_infers(config: MIMOUNetConfig) -> None:
    net = network(config).train()
    x = image(1, 3, 16, 24)
    outputs = net(x)
    assert [tuple(o.shape[-2:]) for o in outputs] == ([(4, 6), (8, 12)] if config.mosd else []) + [(16, 24)]
    torch.stack([o.square().mean() for o in outputs]).sum().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unused
    torch.testing.assert_close(x + net.residual(x), outputs[-1])


def test_residual_runs_no_small_head() -> None:
    net = network(TINY)
    called: list[str] = []
    for name, module in net.named_modules():
        if name.startswith("head"):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    x = image(1, 3, 16, 16)
    net.residual(x)
    assert called == ["head1"]
    net(x)
    assert sorted(called[1:]) == ["head1", "head2", "head3"]


def measured_radius(config: MIMOUNetConfig) -> int:
    """How far outputs really depend on inputs: gradients of a network whose weights are positive, so none cancels."""
    net = network(config, dtype=torch.float64)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1 / p[0].numel() if p.dim() > 1 else 0.1)
    margin = config.receptive_radius + 8 & ~3
    furthest = 0
    for axis, phase in product((2, 3), range(4)):
        size = [1, 3, 4, 4]
        size[axis] = 2 * margin + 4
        x = torch.ones(size, dtype=torch.float64, requires_grad=True)
        output = net.residual(x).sum(dim=(0, 1, 5 - axis))
        (gradient,) = torch.autograd.grad(output[margin + phase], x)
        touched = gradient.abs().sum(dim=(0, 1, 5 - axis)).nonzero().flatten()
        furthest = max(furthest, int((touched - margin - phase).abs().max()))
    return furthest


@pytest.mark.parametrize("config", [*ABLATIONS, replace(TINY, blocks=3)], ids=str)
def test_receptive_radius_is_what_gradients_show(config: MIMOUNetConfig) -> None:
    assert config.receptive_radius == measured_radius(config)


def test_receptive_radius_of_the_variants() -> None:
    assert MIMOUNet(MIMOUNetConfig(width=2)).receptive_radius == 241
    assert MIMOUNetConfig(blocks=20).receptive_radius == 577


def test_pixels_beyond_the_radius_change_nothing() -> None:
    config = replace(TINY, blocks=2)
    net, radius = network(config, dtype=torch.float64), config.receptive_radius
    x = image(1, 3, 8, 4 * radius & ~3, dtype=torch.float64)
    centre = 2 * radius
    for position in (centre, centre + 1, centre + 2, centre + 3):
        y = x.clone()
        y[..., position] = 1 - y[..., position]
        with torch.inference_mode():
            changed = (net.residual(y) != net.residual(x)).any(dim=2).any(dim=1)[0].nonzero().flatten()
        assert (changed - position).abs().max() <= radius


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_keep_their_dtype(dtype: torch.dtype) -> None:
    x = image(1, 3, 16, 24)
    with torch.inference_mode():
        exact = network(TINY).residual(x)
        got = network(TINY, dtype=dtype).residual(x.to(dtype))
        again = SelfEnsemble(network(TINY, dtype=dtype)).residual(x.to(dtype))
    assert got.dtype == again.dtype == dtype
    assert (got.double() - exact.double()).abs().max() < 0.05 * exact.abs().max()


def test_channels_last_gives_the_same_numbers_and_layout() -> None:
    x = image(2, 3, 16, 24)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    for model in (network(TINY), SelfEnsemble(network(TINY), 8)):
        with torch.inference_mode():
            expected = model.residual(x)
            got = model.to(memory_format=torch.channels_last).residual(nhwc)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_dropout_works_in_training_only() -> None:
    plain, dropping = network(TINY), network(replace(TINY, dropout=0.5))
    x = image(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(dropping.residual(x), plain.residual(x))
        torch.manual_seed(0)
        dropping.train()
        assert not torch.equal(dropping.residual(x), dropping.residual(x))


@pytest.mark.parametrize("size", [(1, 3, 16, 18), (1, 3, 15, 16), (1, 1, 16, 16), (3, 16, 16)])
def test_sizes_it_cannot_take_are_refused(size: tuple[int, ...]) -> None:
    net = network(TINY)
    for call in (net, net.residual, SelfEnsemble(net).residual):
        with pytest.raises(ValueError, match=r"multiple of 4|\(N, 3, H, W\)"):
            call(torch.zeros(size))


@pytest.mark.parametrize(
    "values",
    [
        {"width": 3},
        {"width": 0},
        {"width": 32.0},
        {"blocks": 0},
        {"blocks": True},
        {"fusion": "mean"},
        {"dropout": 1.0},
        {"mise": 1},
    ],
)
def test_impossible_architectures_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        MIMOUNetConfig(**values)  # type: ignore[arg-type]


class Ramp(ResidualModel):
    """Answers with something that no flip or transposition leaves as it is, and that depends on the input."""

    receptive_radius = 0

    def residual(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return x * torch.arange(1.0, height * width + 1).view(height, width)


def symmetries(x: Tensor) -> list[Tensor]:
    return [y.flip(axes) for y in (x, x.mT) for axes in ([], [-1], [-2], [-1, -2])]


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_ensemble_of_8_commutes_with_flips_and_transposes(size: tuple[int, int]) -> None:
    model = SelfEnsemble(network(TINY, dtype=torch.float64), 8)
    x = image(1, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        for seen, expected in zip(symmetries(x), symmetries(model.residual(x)), strict=True):
            torch.testing.assert_close(model.residual(seen), expected, rtol=0, atol=1e-12)
        assert not torch.allclose(model.net.residual(x).flip(-1), model.net.residual(x.flip(-1)))


def test_ensemble_of_4_commutes_with_flips_and_not_with_transposes() -> None:
    model = SelfEnsemble(network(TINY, dtype=torch.float64), 4)
    x = image(1, 3, 8, 12, dtype=torch.float64)
    with torch.inference_mode():
        y = model.residual(x)
        for axes in ([-1], [-2], [-1, -2]):
            torch.testing.assert_close(model.residual(x.flip(axes)), y.flip(axes), rtol=0, atol=1e-12)
        assert not torch.allclose(model.residual(x.mT), y.mT)


@pytest.mark.parametrize("transforms", [4, 8])
def test_ensemble_averages_what_each_symmetry_gives(transforms: int) -> None:
    x, ramp = image(1, 3, 4, 6), Ramp()
    total = torch.zeros(1, 3, 4, 6)
    for seen in symmetries(x)[:transforms]:
        # Which symmetry undoes this one is found by trying, not by knowing.
        undo = next(i for i, y in enumerate(symmetries(seen)) if torch.equal(y, x))
        total += symmetries(ramp.residual(seen))[undo]
    torch.testing.assert_close(SelfEnsemble(ramp, transforms).residual(x), total / transforms)  # type: ignore[arg-type]


def test_ensemble_knows_its_network() -> None:
    model = SelfEnsemble(network(TINY), 8)
    assert model.receptive_radius == TINY.receptive_radius
    assert model.size_multiple == 4
    with pytest.raises(ValueError, match="4 or 8"):
        SelfEnsemble(network(TINY), 5)  # type: ignore[arg-type]
