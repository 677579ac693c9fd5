"""Whose fault the end of an actor was, by what Ray raises."""

from __future__ import annotations

from typing import Any

import pytest

exceptions = pytest.importorskip("ray.exceptions")

from streamdeblur.jobs.batch.crew import verdict  # noqa: E402

#: As Ray 2.60 words them.
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file."
)
MEMORY = (
    "The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail"
)
WITHDRAWN = "The actor is dead because its worker process has died. Worker exit type: INTENDED_SYSTEM_EXIT detail"
NODE = (
    "The actor died because its node has died. Node Id: 06d3\n\tthe actor's node was terminated unexpectedly: health "
    "check failed due to missing too many heartbeats"
)


def died(message: str) -> Any:
    return exceptions.RayActorError(None, message)


@pytest.mark.parametrize(
    ("error", "node", "expected"),
    [
        (died(KILLED), "alive", "process"),
        (died(MEMORY), "alive", "process"),
        (died("no reason at all"), "alive", "process"),
        (died(WITHDRAWN), "alive", "node"),
        (died(KILLED), "gone", "node"),
        (died(NODE), "alive", "node"),
        (died(NODE), "", "node"),  # it never told where it was
        (died(KILLED), "", "process"),
        (exceptions.OutOfMemoryError("killed"), "alive", "process"),
        (exceptions.NodeDiedError("gone"), "alive", "node"),
        (exceptions.ObjectLostError("00", None, ""), "alive", "node"),
        (exceptions.ActorUnavailableError("rpc", None), "alive", "unknown"),
        (exceptions.ActorUnavailableError("rpc", None), "", "unknown"),
        (exceptions.ActorUnavailableError("rpc", None), "gone", "node"),
    ],
)
def test_verdicts(error: BaseException, node: str, expected: str) -> None:
    assert verdict(error, node, {"alive", "other"}) == expected


def test_a_node_that_was_taken_away_is_no_fault_of_the_file() -> None:
    error = exceptions.ActorDiedError()
    error._preempted = True
    assert verdict(error, "alive", {"alive"}) == "node"
