"""The process of one source: ``python -m streamdeblur.video.live.child FD``. Opens on request, again and again."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from streamdeblur.video.live.process import serve
from streamdeblur.video.live.reading import read
from streamdeblur.video.live.urls import mask, remember
from streamdeblur.video.live.wire import Link, Note, OpenSource, Over


class LinkHandler(logging.Handler):
    """Warnings of this process, masked, to the parent's log."""

    def __init__(self, link: Link) -> None:
        super().__init__(logging.WARNING)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._link.send(Note(record.levelno, mask(record.getMessage())))
        except OSError:
            pass  # the parent has gone, and with it whoever would read this


def run(link: Link) -> None:
    """Serve requests until the parent closes the link or asks for a stop while a source is read."""
    logger = logging.getLogger("streamdeblur")
    logger.addHandler(LinkHandler(link))
    logger.propagate = False

    def send(message: object, payload: Sequence[memoryview | bytes] = ()) -> None:
        link.send(message, payload)

    while True:
        try:
            request, _ = link.receive()
        except EOFError:
            return
        if not isinstance(request, OpenSource):
            return
        remember(request.url)
        try:
            # Whatever comes down the link while reading means: stop.
            over = read(request, send, lambda: link.ready(0.0))
        except OSError:
            return
        except Exception as e:
            over = Over("failed", f"the reader failed ({type(e).__name__}: {e})")
        link.send(Over(over.kind, mask(over.text)))


def main() -> None:
    link = serve(sys.argv[1])
    try:
        run(link)
    finally:
        # FFmpeg's and Python's clean-up have nothing to save, and may block.
        os._exit(0)


if __name__ == "__main__":
    main()
