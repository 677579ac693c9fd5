"""PSNR of a network in training on whole images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.models.base import ResidualModel
from streamdeblur.models.checkpoint import State
from streamdeblur.models.mimo_unet import MIMOUNetConfig, network_from_state
from streamdeblur.restore.engines import resolve_device, resolve_precision
from streamdeblur.training.codec import Picture

#: (name, blurred, sharp) of every pair of a set, RGB uint8 (H, W, 3).
Pairs = Callable[[], Iterator[tuple[str, Picture, Picture]]]

#: dB: what weights must gain on the first set, what no image may lose, and what sharp images must keep, before the
#: weights stop calling themselves a preview.
LEAST_GAIN, WORST_LOSS, LEAST_SHARP = 0.5, 0.3, 38.0


@dataclass(frozen=True)
class SetScore:
    """Mean PSNR in dB, 8-bit, over the images of a set: of the input, of the result; and gains of single images."""

    name: str
    images: int
    blurry: float
    restored: float
    worst_gain: float

    @property
    def gain(self) -> float:
        return self.restored - self.blurry


@dataclass(frozen=True)
class Strip:
    """A crop of a validation image: blurred, restored, sharp side by side, uint8 (H, 3 W, 3)."""

    name: str
    picture: Picture


@dataclass(frozen=True)
class Scores:
    """What a validation found; ``sharp`` is the PSNR of sharp images through the network against themselves."""

    sets: tuple[SetScore, ...]
    sharp: float | None
    strips: tuple[Strip, ...] = ()

    @property
    def score(self) -> float:
        """Mean over the sets of their mean PSNR: what picks the best checkpoint."""
        return statistics.fmean(s.restored for s in self.sets)

    @property
    def shortfall(self) -> str:
        """Why weights with these scores are no more than a preview; "" when they are good enough to rely on.

        Asked for: the first set gains half a dB or more, none loses on the mean, no image loses more than 0.3 dB, and
        sharp images keep 38 dB.
        """
        losing = [f"{s.name} loses {-s.gain:.2f} dB" for s in self.sets if s.gain < 0]
        harmed = [f"an image of {s.name} loses {-s.worst_gain:.2f} dB" for s in self.sets if s.worst_gain < -WORST_LOSS]
        first = self.sets[0]
        little = [f"{first.name} gains {first.gain:.2f} dB"] if 0 <= first.gain < LEAST_GAIN else []
        if self.sharp is not None and self.sharp < LEAST_SHARP:
            harmed.append(f"sharp images keep {self.sharp:.1f} dB")
        return ", ".join(losing + harmed + little)

    @property
    def note(self) -> str:
        """What a checkpoint says of its score."""
        note = "mean of " + ", ".join(f"{s.name} {s.restored:.2f} dB ({s.gain:+.2f})" for s in self.sets)
        return note + ("" if self.sharp is None else f"; sharp images against themselves {self.sharp:.2f} dB")

    def as_dict(self) -> dict[str, float]:
        values = {"score": self.score}
        for s in self.sets:
            values |= {f"{s.name}/psnr": s.restored, f"{s.name}/gain": s.gain, f"{s.name}/worst_gain": s.worst_gain}
        return values if self.sharp is None else {**values, "sharp/psnr": self.sharp}


def psnr8(a: Picture, b: Picture) -> float:
    """PSNR in dB of two 8-bit pictures of one shape; 100 if equal, so that a mean stays a number."""
    error = np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))
    return 100.0 if error == 0 else float(10 * np.log10(255.0**2 / error))


def restore(net: ResidualModel, picture: Picture, device: torch.device, dtype: torch.dtype) -> Picture:
    """The whole picture through the network in one piece, rounded to 8 bits; sides are padded by replication."""
    x = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float().div_(255)
    height, width = picture.shape[:2]
    right, bottom = (-width % net.size_multiple, -height % net.size_multiple)
    padded = F.pad(x, (0, right, 0, bottom), mode="replicate").contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        delta: Tensor = net.residual(padded)
    result = (x + delta[..., :height, :width].float()).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
    return result[0].permute(1, 2, 0).cpu().numpy()


def score_weights(
    state: State, config: MIMOUNetConfig, sets: Sequence[tuple[str, Pairs]], *, device: str, precision: str, sharp: bool
) -> Scores:
    """``validate`` of a checkpoint's weights, on ``device`` and in ``precision`` (words as of the commands)."""
    net = network_from_state(config, {name: value.float() for name, value in state.items()})
    place = resolve_device(device)
    scores = validate(net.to(place), sets, place, resolve_precision(precision, place, net), sharp=sharp)
    assert scores is not None  # nobody stops it
    return scores


@torch.no_grad()
def validate(
    net: ResidualModel,
    sets: Sequence[tuple[str, Pairs]],
    device: torch.device,
    dtype: torch.dtype,
    *,
    sharp: bool,
    strips: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Run ``net`` (put into eval mode and back) over every pair of every set.

    sharp: also run the sharp images. strips: how many crops of each set to return as pictures. stop: asked before
    every pair; None is returned once it says yes.
    """
    training = net.training
    net.eval()
    try:
        return _validate(net, sets, device, dtype, sharp=sharp, strips=strips, stop=stop)
    finally:
        net.train(training)


def _validate(
    net: ResidualModel,
    sets: Sequence[tuple[str, Pairs]],
    device: torch.device,
    dtype: torch.dtype,
    *,
    sharp: bool,
    strips: int,
    stop: Callable[[], bool],
) -> Scores | None:
    rows, pictures, kept = [], [], []
    for name, pairs in sets:
        blurry, restored = [], []
        for image, blur, truth in pairs():
            if stop():
                return None
            result = restore(net, blur, device, dtype)
            blurry.append(psnr8(blur, truth))
            restored.append(psnr8(result, truth))
            if sharp:
                kept.append(psnr8(restore(net, truth, device, dtype), truth))
            if len(blurry) <= strips:
                pictures.append(Strip(f"{name}/{image}", _strip(blur, result, truth)))
        gains = [b - a for a, b in zip(blurry, restored, strict=True)]
        rows.append(SetScore(name, len(gains), statistics.fmean(blurry), statistics.fmean(restored), min(gains)))
    return Scores(tuple(rows), statistics.fmean(kept) if kept else None, tuple(pictures))


def _strip(blur: Picture, restored: Picture, sharp: Picture) -> Picture:
    height, width = (min(n, 256) for n in sharp.shape[:2])
    y, x = ((n - m) // 2 for n, m in zip(sharp.shape[:2], (height, width), strict=True))
    return np.concatenate([p[y : y + height, x : x + width] for p in (blur, restored, sharp)], axis=1)
