"""When weights stop calling themselves a preview."""

from __future__ import annotations

import pytest

from streamdeblur.training.validation import Scores, SetScore


def scores(*sets: tuple[float, float], sharp: float | None = 45.0) -> Scores:
    """Sets named a, b, ... of (gain, worst gain) in dB."""
    rows = [SetScore(name, 3, 24.0, 24.0 + gain, worst) for name, (gain, worst) in zip("abc", sets, strict=False)]
    return Scores(tuple(rows), sharp)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (scores((0.5, -0.3), (0.0, 0.0)), ""),
        (scores((0.5, 0.1), sharp=None), ""),
        (scores((0.49, 0.1), (2.0, 1.0)), "a gains 0.49 dB"),  # the first set counts
        (scores((1.0, 0.1), (-0.1, -0.2)), "b loses 0.10 dB"),
        (scores((1.0, 0.1), (0.1, -0.31)), "an image of b loses 0.31 dB"),
        (scores((1.0, 0.1), sharp=37.9), "sharp images keep 37.9 dB"),
        (scores((-1.0, -2.0), sharp=30.0), "a loses 1.00 dB, an image of a loses 2.00 dB, sharp images keep 30.0 dB"),
    ],
)
def test_what_makes_a_preview(found: Scores, reason: str) -> None:
    assert found.shortfall == reason
