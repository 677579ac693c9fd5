"""The learning rate as a function of the step: nothing to save, the same after a resume."""

from __future__ import annotations

import math

from streamdeblur.training.recipe import Schedule


def rate_factor(schedule: Schedule, step: int) -> float:
    """What the base learning rate is multiplied with at ``step`` (0 for the first).

    Lengths in the schedule are in steps (``Recipe.resolved`` turns epochs into steps). Warm-up rises linearly from
    1/warmup and multiplies whatever the kind gives, so a resume without optimiser moments can have one of its own.
    """
    s = schedule
    total = max(1, s.total)
    position = min(1.0, step / total)
    if s.kind == "constant":
        factor = 1.0
    elif s.kind == "step":
        factor = s.factor ** (step // s.every)
    elif s.kind == "cosine":
        factor = s.final + (1 - s.final) * 0.5 * (1 + math.cos(math.pi * position))
    elif s.kind == "one-cycle":
        # Up over the first ``rise`` of the run from 1/25 of the peak, then down, both along a cosine (Smith 2018).
        start = 1 / 25
        if position < s.rise:
            factor = start + (1 - start) * 0.5 * (1 - math.cos(math.pi * position / s.rise))
        else:
            down = (position - s.rise) / (1 - s.rise)
            factor = s.final + (1 - s.final) * 0.5 * (1 + math.cos(math.pi * down))
    else:  # "trapezoid": flat, then linearly down over the last ``decay`` steps
        factor = max(s.final, min(1.0, (total - step) / s.decay)) if s.decay else 1.0
    return factor * min(1.0, (step + 1) / (s.warmup + 1))
