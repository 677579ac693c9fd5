"""The preview page on a real live job: sources in processes, the ladder, a source that is away."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from streamdeblur.config import parse
from streamdeblur.frames import Frame
from streamdeblur.jobs.live import Engine, LiveJob, LiveOptions
from streamdeblur.jobs.live.preview import STATUS_SCHEMA, Preview, PreviewOptions
from streamdeblur.jobs.live.preview.status import OUTPUT_STATES, STATES
from tests.clips import read_number, write_numbered_clip
from tests.rtsp_relay import free_port

pytest.importorskip("aiohttp", reason="needs aiohttp")

pytestmark = pytest.mark.integration

WAIT = 90.0
SECRET = "s3same-open"


class Brighten:
    """A stand-in engine: adds 20 to luma."""

    def __call__(self) -> Callable[[Frame], tuple[Any, ...]]:
        return lambda frame: tuple(np.full(p.shape, 20 if n == 0 else 0, np.int16) for n, p in enumerate(frame.planes))


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=WAIT) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end, "a condition did not become true"
        time.sleep(0.1)
    return found


def test_the_page_tells_what_a_live_job_does(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    clip = tmp_path / "gate.mp4"
    write_numbered_clip(clip, 24, (256, 128), rate=12)
    sources = [
        {"url": str(clip), "name": "gate", "loop": True, "to": [f"hls:{tmp_path}/hls"]},
        {"url": f"rtsp://admin:{SECRET}@127.0.0.1:{free_port()}/yard", "name": "yard"},
    ]
    engine = Engine(Brighten(), ("model", "bypass"), model="stand-in")
    job = LiveJob(options=parse(LiveOptions, {"sources": sources}), engine=engine)
    preview = Preview(lambda: job.status().as_dict(), PreviewOptions(preview=":0"))
    thread = threading.Thread(target=job.run)
    with preview:
        job.add_tap(preview.show, depth=8)
        thread.start()
        try:

            def told() -> Any:
                status = json.loads(get(f"{preview.url}api/status")[1])
                gate = status["sources"][0]
                return status if gate["restored"] > 5 and gate["fps_out"] and gate["outputs"][0]["packets"] else None

            status = until(told)
            jsonschema.Draft202012Validator(STATUS_SCHEMA).validate(status)
            assert status["steps"] == ["model", "bypass"]
            assert [s["name"] for s in status["sources"]] == ["gate", "yard"]
            until(lambda: get(f"{preview.url}readyz")[1].startswith(b'{"ready": false, "problems": ["yard'))
            metrics = get(f"{preview.url}metrics")[1].decode()
            assert 'streamdeblur_live_source_up{source="gate"} 1' in metrics
            assert 'streamdeblur_live_source_up{source="yard"} 0' in metrics
            for path in ("api/status", "metrics", "api/sources", "readyz"):
                assert SECRET not in get(preview.url + path)[1].decode()

            def sides() -> Any:
                """Both sides of one frame that was restored."""
                with urllib.request.urlopen(f"{preview.url}api/snapshot/gate?which=before", timeout=WAIT) as answer:
                    index, before = answer.headers["X-Frame-Index"], answer.read()
                code, after = get(f"{preview.url}api/snapshot/gate?which=after&frame={index}")
                assert code == 200
                pair = [cv2.imdecode(np.frombuffer(p, np.uint8), cv2.IMREAD_GRAYSCALE) for p in (before, after)]
                return pair if pair[1].mean() > pair[0].mean() + 8 else None

            before, after = until(sides)
            assert read_number(before) == read_number(after)
        finally:
            job.stop()
            thread.join(WAIT)
            assert not thread.is_alive()
        # a job that has ended still tells what it did, and is not said to be broken
        assert get(f"{preview.url}healthz")[0] == 200
        assert json.loads(get(f"{preview.url}api/status")[1])["sources"][0]["restored"] > 5


def test_every_state_of_the_job_is_known_to_the_page() -> None:
    from typing import get_args

    from streamdeblur.video import publish
    from streamdeblur.video.live import source

    assert set(STATES) == set(get_args(source.State))
    assert set(OUTPUT_STATES) == set(get_args(publish.State))
