"""Copies of sources from elsewhere: made once for a node, kept while there is room, never taken from a reader."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamdeblur.jobs.batch import fetched, place
from streamdeblur.jobs.batch.fetched import Fetched, NotFetched

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def urls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A store with files a to d of 1000 bytes; what is fetched of it."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for name in "abcd":
        fs.pipe_file(f"/cache/{name}.mp4", name.encode() * 1000)
    got: list[str] = []
    fetch = place.fetch

    def counted(url: str, *more: Any) -> Path:
        got.append(url[-5])
        return fetch(url, *more)

    monkeypatch.setattr(place, "fetch", counted)
    yield got
    fs.store.clear()


def made(folder: Path) -> Fetched:
    return Fetched(folder, lambda: None)


def read(f: Fetched, name: str) -> bytes:
    with f.local(f"memory://cache/{name}.mp4") as path:
        assert Path(path).name == f"{name}.mp4"
        return Path(path).read_bytes()


def copies(folder: Path) -> str:
    return "".join(sorted(p.stem for p in folder.glob("*/*.mp4")))


def test_actors_of_a_node_share_what_one_fetched(tmp_path: Path, urls: list[str]) -> None:
    one, other = made(tmp_path), made(tmp_path)
    assert read(one, "a") == b"a" * 1000 == read(other, "a") == read(one, "a")
    assert urls == ["a"]
    fsspec.filesystem("memory").pipe_file("/cache/a.mp4", b"new")
    assert read(other, "a") == b"new"
    assert urls == ["a", "a"]
    with one.local(str(tmp_path / "local.mp4")) as path:
        assert path == str(tmp_path / "local.mp4")
    with pytest.raises(NotFetched, match="does not exist"), one.local("memory://cache/gone.mp4"):
        pass


def test_at_the_end_what_nobody_reads_is_removed(tmp_path: Path, urls: list[str]) -> None:
    one, other = made(tmp_path), made(tmp_path)
    read(one, "a")
    read(one, "b")
    with other.local("memory://cache/b.mp4") as path:
        one.clear()
        assert copies(tmp_path) == "b"
        assert Path(path).exists()
    other.clear()
    assert list(tmp_path.iterdir()) == []


def test_room_is_made_of_what_was_unused_for_longest(
    tmp_path: Path, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched.shutil, "disk_usage", lambda _: SimpleNamespace(free=3000))
    f = made(tmp_path)
    read(f, "a")
    read(f, "b")
    (first,) = tmp_path.glob("*/a.mp4")
    os.utime(first, (first.stat().st_mtime - 100,) * 2)
    assert copies(tmp_path) == "ab"
    read(f, "c")  # 3000 of 5000 would be copies: more than half
    assert copies(tmp_path) == "bc"
    with f.local("memory://cache/b.mp4"), f.local("memory://cache/c.mp4"):
        read(f, "d")  # there is no room, but they are read
        assert copies(tmp_path) == "bcd"


def test_what_an_actor_left_half_done_is_done_again(tmp_path: Path, urls: list[str]) -> None:
    read(made(tmp_path), "a")
    (copy,) = tmp_path.glob("*/a.mp4")
    copy.rename(copy.with_name("a.mp4.123.partial"))
    assert read(made(tmp_path), "a") == b"a" * 1000
    assert [p.name for p in copy.parent.iterdir() if p.name != "lock"] == ["a.mp4"]


def test_who_comes_while_another_fetches_waits_and_reads_its_copy(
    tmp_path: Path, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(made(tmp_path), "a")
    (copy,) = tmp_path.glob("*/a.mp4")
    hidden = copy.rename(tmp_path / "aside")
    lock = (copy.parent / "lock").open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)  # another actor is fetching it
    waits = []

    def wait(_: float) -> None:
        waits.append(1)
        if len(waits) == 3:
            hidden.rename(copy)
            lock.close()

    monkeypatch.setattr(fetched.time, "sleep", wait)
    assert read(made(tmp_path), "a") == b"a" * 1000
    assert (len(waits), urls) == (3, ["a"])
