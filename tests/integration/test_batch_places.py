"""Sources and results that are not in a folder: a web server, and stores that fsspec opens."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.config import parse
from streamdeblur.errors import OutputError
from streamdeblur.jobs.batch import fingerprint, place
from streamdeblur.jobs.batch.job import BatchSummary, run_batch
from streamdeblur.jobs.batch.options import BatchOptions
from tests.batching import clip, decoded

ray = pytest.importorskip("ray")
pytest.importorskip("fsspec")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    kept = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=100 << 20,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, kept)
    yield
    ray.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server for ``tmp_path / "www"``; its URL."""
    folder = tmp_path / "www"
    folder.mkdir()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def run(*sources: str, dest: Path | str, **changes: Any) -> BatchSummary:
    values = {
        "model": "identity", "lossless": True, "workers": 1, "segment_seconds": 1.0, "reserve_gb": 0.01, "backoff": 0.1,
        "attempts": 2,
    }  # fmt: skip
    return run_batch(sources, dest, options=parse(BatchOptions, {**values, **changes}))


def test_from_a_web_server(tmp_path: Path, server: str) -> None:
    pytest.importorskip("aiohttp")
    folder, dest, scratch = tmp_path / "www", tmp_path / "out", tmp_path / "scratch"
    clip(folder / "a b.mp4", 34, gop=10)
    (folder / "wrong.mp4").write_text("no film")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{server}/a%20b.mp4\n{server}/wrong.mp4\n{server}/gone.mp4\n")
    summary = run(str(listed), dest=dest, scratch=str(scratch))
    assert {k: v for k, v in summary.files.items() if v} == {"done": 1, "quarantined": 2}
    rows = {r["source"].rsplit("/", 1)[1]: r for r in summary.rows}
    assert rows["a%20b.mp4"]["segments"] == 4
    assert f"{server}/wrong.mp4" in rows["wrong.mp4"]["error"]
    assert str(scratch) not in rows["wrong.mp4"]["error"]
    assert "does not exist" in rows["gone.mp4"]["error"]
    assert [p for _, p in decoded(dest / rows["a%20b.mp4"]["output"])] == [p for _, p in decoded(folder / "a b.mp4")]

    source = f"{server}/a%20b.mp4"
    again = run(source, dest=dest, scratch=str(scratch))
    assert (again.resumed, again.actors) == (1, 0)
    before, stat = fingerprint.source_print(source), (folder / "a b.mp4").stat()
    os.utime(folder / "a b.mp4", ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**11))
    assert fingerprint.source_print(source) != before  # another file, for all we know


def test_a_place_that_takes_nothing_is_said_before_anything_is_done(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = clip(tmp_path / "a.mp4", 5)
    with pytest.raises(OutputError, match="can't be written"):
        run(str(source), dest=f"{server}/out")


def test_a_store_of_objects(tmp_path: Path) -> None:
    """What the job asks of a store, by fsspec's own in memory: it takes whole objects and tells when they changed."""
    local = tmp_path / "a"
    local.write_bytes(b"first")
    url = "memory://bucket/folder/a"
    assert place.stat(url) is None
    place.send(local, url)
    found = place.stat(url)
    assert found is not None
    assert found.size == 5
    assert found.tag
    assert place.read_range(url, 1, 3) == b"irs"
    local.write_bytes(b"other")
    place.send(local, url)
    changed = place.stat(url)
    assert changed is not None
    assert (changed.size, changed.tag == found.tag) == (5, False)
    assert place.fetch(url, tmp_path / "b").read_bytes() == b"other"
    place.remove("memory://bucket/folder")
    assert place.stat(url) is None
    place.remove("memory://bucket/folder")
