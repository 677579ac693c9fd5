"""The manifest of a job whose DEST is a store: what one machine has booked is known to another."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.errors import OutputError, UnreadableInput
from streamdeblur.jobs.batch import mirror, place
from streamdeblur.jobs.batch.manifest import SCHEMA, Manifest
from streamdeblur.jobs.batch.mirror import Mirror
from streamdeblur.jobs.batch.state import TakenOver

fsspec = pytest.importorskip("fsspec")

DONE = {"size": 1, "tag": "t", "summary": {"differences": [], "verified": True, "frames": 3}}
URL, DRIVER = "memory://dest/.streamdeblur/manifest.jsonl", "memory://dest/.streamdeblur/driver"


@pytest.fixture(autouse=True)
def store() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def put(fs: Any, url: str, text: str) -> None:
    fs.pipe_file(fs._strip_protocol(url), text.encode())


def there(fs: Any) -> list[dict[str, Any]]:
    data = place.read_whole(URL) or b""
    return [json.loads(line) for line in data.splitlines()]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def begun(folder: Path, fs: Any, token: str) -> Manifest:
    put(fs, DRIVER, token)
    m = Manifest(folder, URL, DRIVER)
    m.begin_copies(token)
    m.add("job", schema=SCHEMA, token=token)
    return m


def test_another_machine_goes_on_where_a_driver_was_lost(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_EVERY", 0.0)
    monkeypatch.setattr(mirror, "_SHARE", 0.0)
    first = begun(tmp_path / "here", store, "one")
    first.add("begin", id="a", print="1")
    first.add("done", id="a", print="1", **DONE)
    first.commit()

    def sent() -> bool:
        first.commit()  # as the scheduler does, many times a second
        return any(line["type"] == "done" for line in there(store))

    until(sent)
    # The first driver is gone without a word; its machine's disk too.
    with Manifest(tmp_path / "elsewhere", URL, DRIVER) as second:
        assert second.entries["a"].status == "done"
    first.close()


def test_copies_are_sent_now_and_then_and_the_last_one_at_once(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    send = place.send
    monkeypatch.setattr(place, "send", lambda path, url: (sizes.append(path.stat().st_size), send(path, url)))
    with begun(tmp_path, store, "one") as m:
        m.commit()
        until(lambda: len(sizes) == 1 and URL.partition("://")[2] in str(list(store.store)))
        for i in range(20):
            m.add("begin", id=f"f{i}", print="1")
            m.commit()
        assert len(sizes) == 1  # five seconds are not over
        m.send()
        assert len(sizes) == 2
        m.send()
        assert len(sizes) == 2  # nothing new
    assert len(there(store)) == 21
    assert sizes[-1] == (tmp_path / "manifest.jsonl").stat().st_size


def book(folder: Path, *ids: str) -> None:
    with Manifest(folder) as m:
        m.add("job", schema=SCHEMA)
        for i in ids:
            m.add("quarantined", id=i, print="1", message=f"of {folder.name}")
        m.commit()


@pytest.mark.parametrize(
    ("here", "elsewhere", "expected"),
    [
        ((), ("a", "b"), {"a", "b"}),
        (("a",), ("a", "b"), {"a", "b"}),
        (("a", "b"), ("a",), {"a", "b"}),
        (("a", "b"), ("a", "c"), {"a", "b", "c"}),
    ],
)
def test_what_lies_here_and_there_is_brought_together(
    tmp_path: Path, store: Any, here: tuple[str, ...], elsewhere: tuple[str, ...], expected: set[str]
) -> None:
    for side, ids in (("x", here), ("y", elsewhere)):
        book(tmp_path / side / "m", *ids)
    put(store, URL, (tmp_path / "y" / "m" / "manifest.jsonl").read_text() + '{"type":"cut sh')
    for _ in range(2):  # the same again adds nothing
        with Manifest(tmp_path / "x" / "m", URL, DRIVER) as m:
            assert set(m.entries) == expected
        lines = (tmp_path / "x" / "m" / "manifest.jsonl").read_text().splitlines()
        assert len(lines) == 1 + len(expected)


def test_where_both_went_on_the_store_has_the_last_word(tmp_path: Path, store: Any) -> None:
    book(tmp_path / "x" / "here", "a")
    book(tmp_path / "y" / "there", "a")
    put(store, URL, (tmp_path / "y" / "there" / "manifest.jsonl").read_text())
    with Manifest(tmp_path / "x" / "here", URL, DRIVER) as m:
        assert m.entries["a"].error == "of there"


def test_a_foreign_object_is_refused_and_nothing_here_is_changed(tmp_path: Path, store: Any) -> None:
    book(tmp_path, "a")
    before = (tmp_path / "manifest.jsonl").read_bytes()
    put(store, URL, "hello\n")
    with pytest.raises(UnreadableInput, match=r"memory://.*is not a manifest"):
        Manifest(tmp_path, URL, DRIVER)
    assert (tmp_path / "manifest.jsonl").read_bytes() == before
    Manifest(tmp_path).close()  # the lock is free


def test_a_driver_that_was_superseded_writes_nothing_over_its_successor(tmp_path: Path, store: Any) -> None:
    with begun(tmp_path, store, "one") as m:
        m.commit()
        m.send()
        put(store, DRIVER, "two")
        put(store, URL, "of the second\n")
        m.add("begin", id="a", print="1")
        m.commit()
        with pytest.raises(TakenOver, match="another driver"):
            m.send()
    assert place.read_whole(URL) == b"of the second\n"


def test_a_store_that_is_down_is_told_of_once_and_holds_nothing_up(
    tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("_EVERY", "_SHARE", "_PAUSE"):
        monkeypatch.setattr(mirror, name, 0.0)
    put(store, DRIVER, "one")
    (tmp_path / "m").write_text("line\n")
    m = Mirror(tmp_path / "m", URL, DRIVER)
    m.begin("one")
    tried: list[str] = []

    def down(path: Path, url: str) -> None:
        tried.append(url)
        raise OutputError(f"{url} can't be written: it is down")

    send = place.send
    monkeypatch.setattr(place, "send", down)

    def offered() -> bool:
        m.offer(5)
        return len(tried) >= 4

    with caplog.at_level(logging.WARNING, "streamdeblur"):
        until(offered)
        with pytest.raises(OutputError, match="it is down"):
            m.send(5)
        assert sum("can't be sent" in r.getMessage() for r in caplog.records) == 1
    monkeypatch.setattr(place, "send", send)
    m.send(5)
    assert place.read_whole(URL) == b"line\n"
