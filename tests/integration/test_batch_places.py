"""Sources and results that are not in a folder: a web server, and stores that fsspec opens."""

from __future__ import annotations

import io
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.config import ProcessOptions, parse
from streamdeblur.errors import OutputError
from streamdeblur.jobs.batch import fingerprint, place
from streamdeblur.jobs.batch.job import BatchSummary, run_batch
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.plan import make_plan, peek
from streamdeblur.jobs.batch.state import Snapshot
from tests.batching import clip, decoded
from tests.one_ray import one_ray

ray = pytest.importorskip("ray")
pytest.importorskip("fsspec")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with one_ray(1):
        yield


class _Plain(SimpleHTTPRequestHandler):
    """Gives whole files, and counts the bytes of each."""

    sent: Counter[str]

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while block := source.read(1 << 16):
            outputfile.write(block)
            self.sent[self.path] += len(block)


class _Ranges(_Plain):
    """Gives parts as well (RFC 9110, section 14)."""

    def send_head(self) -> Any:
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if wanted is None or not path.is_file():
            return super().send_head()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        size = path.stat().st_size
        begin, end = int(first), min(int(last or size - 1), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.send_header("Content-Length", str(end - begin + 1))
        self.end_headers()
        with path.open("rb") as f:
            f.seek(begin)
            return io.BytesIO(f.read(end + 1 - begin))

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()


class _Busy(_Plain):
    """Has no time for the first requests."""

    left = 3

    def send_head(self) -> Any:
        if type(self).left:
            type(self).left -= 1
            self.send_error(503)
            return None
        return super().send_head()


@contextmanager
def serving(folder: Path, kind: type[_Plain]) -> Iterator[tuple[str, Counter[str]]]:
    """A web server; its URL, and the bytes it gave of each file."""
    folder.mkdir(exist_ok=True)
    sent: Counter[str] = Counter()
    handler = type("Handler", (kind,), {"sent": sent})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", sent
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server for ``tmp_path / "www"``; its URL."""
    with serving(tmp_path / "www", _Plain) as (url, _):
        yield url


def run(*sources: str, dest: Path | str, progress: Any = None, build: Any = None, **changes: Any) -> BatchSummary:
    values = {
        "model": "identity", "lossless": True, "workers": 1, "segment_seconds": 1.0, "reserve_gb": 0.01, "backoff": 0.1,
        "attempts": 2,
    }  # fmt: skip
    options = parse(BatchOptions, {**values, **changes})
    return run_batch(sources, dest, options=options, progress=progress, build=build)


def test_a_web_server_that_has_no_time_is_asked_again(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    clip(tmp_path / "www" / "a.mp4", 5, gop=10)
    with serving(tmp_path / "www", _Busy) as (url, _):
        with pytest.raises(OutputError, match="can't be looked at: 503"):
            place.stat(f"{url}/a.mp4")
        assert place.stat(f"{url}/gone.mp4") is None
        with serving(tmp_path / "www", _Busy) as (other, _):
            summary = run(f"{other}/a.mp4", dest=tmp_path / "out", attempts=3)
    assert {k: v for k, v in summary.files.items() if v} == {"done": 1}


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


def pad(path: Path, size: int = 64 << 20) -> None:
    """Append a box that no reader looks into."""
    with path.open("ab") as f:
        f.write(size.to_bytes(4, "big") + b"free")
        f.truncate(f.tell() + size - 8)


@pytest.mark.parametrize("kind", [_Plain, _Ranges])
def test_a_source_of_a_web_server_is_fetched_once(tmp_path: Path, kind: type[_Plain]) -> None:
    pytest.importorskip("aiohttp")
    folder = tmp_path / "www"
    short, long = clip(folder / "short.mp4", 8), clip(folder / "long.mp4", 34, gop=10)
    pad(short)
    scratch = tmp_path / "scratch"
    with serving(folder, kind) as (url, sent):
        summary = run(f"{url}/short.mp4", f"{url}/long.mp4", dest=tmp_path / "out", scratch=str(scratch))
    assert summary.exit_code == 0
    assert {r["output"]: r["segments"] for r in summary.rows} == {"short.mp4": 0, "long.mp4": 4}
    for path in (short, long):
        expected = [p for _, p in decoded(path)]
        assert [p for _, p in decoded(tmp_path / "out" / path.name)] == expected
    # Four segments and a join read one copy; the plan of a short file takes no more than its header.
    # What is on its way when a connection is closed counts as sent.
    spare = 3 << 20 if kind is _Ranges else 24 << 20
    assert sent["/short.mp4"] <= short.stat().st_size + spare
    assert sent["/long.mp4"] <= 2 * long.stat().st_size + spare
    assert not list(scratch.rglob("*.mp4"))


def test_the_plan_of_a_short_file_takes_its_header_alone(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    folder = tmp_path / "www"
    short = clip(folder / "short.mp4", 8)
    clip(folder / "long.mp4", 100)
    pad(short)
    options = parse(ProcessOptions, {"model": "identity"})
    local = make_plan(str(short), options, 60.0)
    with serving(folder, _Ranges) as (url, sent):
        found = peek(f"{url}/short.mp4", options, 60.0)
        assert sent["/short.mp4"] <= 3 << 20
        assert peek(f"{url}/long.mp4", options, 1.0) is None  # where it can be cut is seen by reading it
        (folder / "wrong.mp4").write_text("no film")
        assert peek(f"{url}/wrong.mp4", options, 60.0) is None
        assert peek(f"{url}/gone.mp4", options, 60.0) is None
    assert found == local
    with serving(folder, _Plain) as (url, _):
        assert peek(f"{url}/short.mp4", options, 60.0) is None


def test_a_store_of_google_s_kind_takes_a_job_and_another_machine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gs:// by a stand-in that can do what objects can: whole puts, no folders, no renaming."""
    bucket = tmp_path / "bucket"
    clip(bucket / "in" / "cam" / "a.mp4", 34, gop=10)
    clip(bucket / "in" / "b.mp4", 5)
    build = on_objects(str(tmp_path))
    build(None)  # here as well
    values = {"build": build, "scratch": str(tmp_path / "scratch")}

    def stop(s: Snapshot) -> None:
        if s.files["done"]:
            raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    with pytest.raises(KeyboardInterrupt):
        run("gs://bucket/in", dest="gs://bucket/out", progress=stop, **values)
    state = bucket / "out" / ".streamdeblur"
    assert '"type":"done"' in (state / "manifest.jsonl").read_text()
    assert json.loads((bucket / "out" / "report.json").read_text())["state"] == "stopped"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    again = run("gs://bucket/in", dest="gs://bucket/out", **values)
    assert (again.exit_code, again.resumed > 0) == (0, True)
    assert again.files["done"] == 2
    for name in ("cam/a.mp4", "b.mp4"):
        assert [p for _, p in decoded(bucket / "out" / name)] == [p for _, p in decoded(bucket / "in" / name)]
    assert sorted(p.name for p in (bucket / "out").iterdir()) == [
        ".streamdeblur", "b.mp4", "cam", "report.html", "report.json",
    ]  # fmt: skip
    assert not (state / "segments").exists()
    assert not (state / "driver").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    assert run("gs://bucket/in", dest="gs://bucket/out", **values).resumed == 2


def on_objects(root: str) -> Any:
    """Builds `identity`, and before that gives fsspec a file system for gs:// below ``root``."""

    def build(options: Any) -> Any:
        import os
        import shutil

        import fsspec

        class Objects(fsspec.AbstractFileSystem):
            protocol = ("gs", "gcs")
            cachable = False

            def _at(self, path: Any) -> str:
                return os.path.join(root, self._strip_protocol(path))

            def info(self, path: Any, **_: Any) -> Any:
                found, kind = os.stat(self._at(path)), "directory" if os.path.isdir(self._at(path)) else "file"
                name = self._strip_protocol(path)
                return {"name": name, "size": found.st_size, "type": kind, "etag": str(found.st_mtime_ns)}

            def ls(self, path: Any, detail: bool = True, **_: Any) -> Any:
                names = [f"{self._strip_protocol(path)}/{name}" for name in os.listdir(self._at(path))]
                return [self.info(name) for name in names] if detail else names

            def _open(self, path: Any, mode: str = "rb", **_: Any) -> Any:
                return open(self._at(path), mode)

            def put_file(self, local: Any, path: Any, callback: Any = None, **_: Any) -> None:
                at = self._at(path)
                os.makedirs(os.path.dirname(at), exist_ok=True)
                shutil.copyfile(local, f"{at}.on-its-way")
                os.replace(f"{at}.on-its-way", at)

            def rm(self, path: Any, recursive: bool = False, **_: Any) -> None:
                at = self._at(path)
                shutil.rmtree(at) if os.path.isdir(at) else os.remove(at)

            def mv(self, *_: Any, **__: Any) -> None:
                raise NotImplementedError("objects have no other name")

            mkdir = makedirs = mkdirs = mv

        fsspec.register_implementation("gs", Objects, clobber=True)
        if options is None:
            return None
        from streamdeblur.restore import Restorer

        return Restorer("identity")

    return build


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
