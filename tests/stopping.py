"""A process in which a job is stopped again and again, each time at another of its lines.

    python -m tests.stopping KIND FOLDER

What an exception breaks off, the state of libraries included, stays broken for the rest of a process: hence its own.
KIND is "video" or "pictures". Exit code 0: after each stop no file and no thread was left.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from streamdeblur import interrupts, process_video
from streamdeblur.cli.exits import Stopped, _stopped_by
from streamdeblur.config import ProcessOptions
from streamdeblur.jobs.images import process_images
from tests.clips import read_clip, read_number, write_numbered_clip

#: Files whose every line is tried, by its first moment.
_NEAR = {
    "video": r"streamdeblur/jobs/(process|channel|run)\.py|threading\.py",
    "pictures": r"streamdeblur/(jobs/images|video/images)\.py",
}
#: How many of the others.
_FAR = 30


def _lines(action: Callable[[], object], stop_at: int | None) -> dict[tuple[str, int], int]:
    """Run ``action`` and count the lines of Python that this thread comes to; a signal comes at the ``stop_at``th.

    Gives (file, line number): how many lines had come when it came first.
    """
    count = 0
    first: dict[tuple[str, int], int] = {}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            first.setdefault((frame.f_code.co_filename, frame.f_lineno), count)
            if count == stop_at:
                interrupts.deliver(Stopped(15))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return first


def main(kind: str, folder: Path) -> None:
    pictures = kind == "pictures"
    source = write_numbered_clip(folder / "a.mp4", 12)
    target = folder / ("out" if pictures else "out.mp4")
    options = ProcessOptions(model="identity", ledger=str(folder / "ledger.jsonl"))
    kept = {source, folder / "ledger.jsonl", *([target] if pictures else [])}

    def job() -> None:
        (process_images if pictures else process_video)(str(source), str(target), options=options)

    def files() -> set[Path]:
        return {p for p in folder.rglob("*") if not (pictures and re.fullmatch(r"a_\d{6}\.png", p.name))}

    def clear() -> None:
        for path in kept - {source}:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        target.unlink(missing_ok=True)

    job()  # what is imported on the way
    clear()
    moments = _lines(job, None)
    clear()
    near = [at for (file, _), at in moments.items() if re.search(_NEAR[kind], file)]
    far = [at for (file, _), at in moments.items() if not re.search(_NEAR[kind], file)]
    assert len(near) > 50
    ignored = []
    for at in sorted(near + random.Random(0).sample(far, _FAR)):
        finished = False
        try:
            _lines(job, at)
            finished = True  # this run came to fewer lines than the one that was counted
            ignored.append(at)
        except BaseException as e:
            if _stopped_by(e) is None:
                raise AssertionError(f"stopped at line {at}: {e!r}") from e
        left = {t.name for t in threading.enumerate()} & {"reader", "writer"}
        assert not left, f"stopped at line {at}: {left} at work"
        assert finished or files() <= kept | {target}, f"stopped at line {at}: {files() - kept}"
        if target.is_file():  # the wish came when all was done
            assert [read_number(p.parts["Y"]) for p in read_clip(target)] == list(range(12))
        clear()

    assert len(ignored) < 0.05 * len(near), f"nothing stopped the job at lines {ignored}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
