"""The bounded queue: order, bound, both ways of ending."""

from __future__ import annotations

import threading

import pytest

from streamdeblur.jobs.channel import Channel, Closed


def start(target: object, *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_items_come_in_order_and_none_at_the_end() -> None:
    channel: Channel[int] = Channel(2)

    def produce() -> None:
        for i in range(50):
            channel.put(i)
        channel.finish()

    thread = start(produce)
    got = []
    while (item := channel.get(10)) is not None:
        got.append(item)
    thread.join(10)
    assert got == list(range(50))
    assert channel.get(0) is None


def test_put_waits_for_room() -> None:
    channel: Channel[int] = Channel(2)
    channel.put(0)
    channel.put(1)
    passed = threading.Event()
    thread = start(lambda: (channel.put(2), passed.set()))
    assert not passed.wait(0.1)
    assert channel.get(0) == 0
    assert passed.wait(10)
    thread.join(10)


def test_weights_bound_it_and_a_heavy_item_passes_alone() -> None:
    channel: Channel[int] = Channel(10, lambda item: item)
    channel.put(99)  # heavier than all the room, but it is empty
    passed = threading.Event()
    start(lambda: (channel.put(4), channel.put(6), passed.set(), channel.put(1)))
    assert not passed.wait(0.1)
    assert channel.get(0) == 99
    assert passed.wait(10)
    assert [channel.get(10), channel.get(10), channel.get(10)] == [4, 6, 1]


def test_get_times_out() -> None:
    with pytest.raises(TimeoutError):
        Channel[int](1).get(0.0)


def test_the_producers_error_comes_after_its_items_and_stays() -> None:
    channel: Channel[int] = Channel(3)
    channel.put(1)
    channel.finish(ValueError("first"))
    channel.finish(KeyError("second"))
    assert channel.get() == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="first"):
            channel.get()


def test_a_consumer_that_leaves_frees_producers() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    raised = threading.Event()

    def produce() -> None:
        try:
            channel.put(1)
        except Closed:
            raised.set()

    thread = start(produce)
    assert not raised.wait(0.1)
    channel.leave()
    assert raised.wait(10)
    thread.join(10)
    with pytest.raises(Closed):
        channel.put(2)
