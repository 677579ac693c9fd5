"""What a job chooses by who does its work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streamdeblur.jobs.workforce import encoder_preset


@pytest.mark.parametrize(
    ("device", "model", "reuse", "want"),
    [
        ("cpu", "mimo-unet-small", False, "medium"),  # the network takes most of the time
        ("cpu", "mimo-unet-small", True, "veryfast"),  # it sees little of most frames
        ("cpu", "identity", False, "veryfast"),
        ("cuda:0", "mimo-unet", False, "veryfast"),
    ],
)
def test_the_encoder_takes_what_the_network_leaves(device: str, model: str, reuse: bool, want: str) -> None:
    workforce: Any = SimpleNamespace(device=device, model=model)
    assert encoder_preset("auto", workforce, reuse=reuse) == want
    assert encoder_preset("slow", workforce, reuse=reuse) == "slow"
