"""The process of one source: ``python -m streamdeblur.video.live.child FD``. Opens on request, again and again."""

from __future__ import annotations

from streamdeblur.video.live.link import Link
from streamdeblur.video.live.process import run_child
from streamdeblur.video.live.reading import read
from streamdeblur.video.live.urls import mask, remember
from streamdeblur.video.live.wire import OpenSource, Over


def run(link: Link) -> None:
    """Serve requests until the parent closes the link or asks for a stop while a source is read."""
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
            over = read(request, link.send, lambda: link.ready(0.0))
        except OSError:
            return
        except Exception as e:
            over = Over("failed", f"the reader failed ({type(e).__name__}: {e})")
        link.send(Over(over.kind, mask(over.text)))


if __name__ == "__main__":
    run_child(run)
