"""Whether an engine computes what eager fp32 computes: tried when it is first used on a machine, remembered then."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamdeblur.models.trial import TOLERANCES, pictures
from streamdeblur.restore.engines import cache
from streamdeblur.restore.engines.protocol import Engine

#: Side of the two tiles (noise and a picture), pixels.
TRIAL_SIDE = 128

#: Number of the way that is tried, and of what engines of this package compute beside compiled kernels: raised with
#: either, so that older verdicts are not believed.
_TRIAL = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """error: root mean square difference of the corrections, nominal [0, 1]; allowed: by ``TOLERANCES``."""

    passed: bool
    error: float
    allowed: float


class Trials:
    """Verdicts on engines for one model. reference: computes its correction of a batch on the CPU in eager fp32."""

    def __init__(self, fingerprint: str, reference: Callable[[Tensor], Tensor]) -> None:
        self.fingerprint = fingerprint
        self._compute = reference
        self._reference: Tensor | None = None

    def known(self, name: str, precision: str, device: torch.device, version: str | None) -> Verdict | None:
        """What was found before on this machine, with these versions; nothing where they are not known (None)."""
        if version is None:
            return None
        found = cache.read_json(self._path(name, precision, device, version)) or {}
        passed, error, allowed = (found.get(key) for key in ("passed", "error", "allowed"))
        if isinstance(passed, bool) and isinstance(error, int | float) and isinstance(allowed, int | float):
            return Verdict(passed, error, allowed)
        return None

    def judge(self, engine: Engine, name: str, precision: str, version: str | None) -> Verdict:
        """The verdict, tried now unless it is known; not kept without a version. Raises what the engine raises."""
        verdict = self.known(name, precision, engine.device, version)
        if verdict is not None:
            return verdict
        batch = pictures(TRIAL_SIDE, TRIAL_SIDE)
        if self._reference is None:
            self._reference = self._compute(batch)
        truth = list(self._reference)

        def tried() -> tuple[float, float]:
            # One by one: the shape that most engines run afterwards has one window, too.
            parts = [engine.residual(one[None].to(engine.device)).float().cpu()[0] for one in batch]
            return TOLERANCES[precision].judge(parts, truth)

        found = [tried()]
        prepare = getattr(engine, "prepare", None)
        if prepare is not None:  # what is made for one size may be another program than what takes any
            prepare(TRIAL_SIDE, TRIAL_SIDE)
            found.append(tried())
        error, allowed = max(found, key=lambda pair: pair[0] / pair[1])
        verdict = Verdict(error <= allowed, error if math.isfinite(error) else 1e9, allowed)
        if version is not None:
            cache.write_json(self._path(name, precision, engine.device, version), asdict(verdict))
        return verdict

    def _path(self, name: str, precision: str, device: torch.device, version: str) -> Path:
        digest = cache.key(_TRIAL, name, precision, version, self.fingerprint, device.type, cache.machine(device))
        return cache.cache_folder() / "verdicts" / f"{name}-{precision}-{digest}.json"
