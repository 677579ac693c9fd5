"""streamdeblur: restore blurry footage with MIMO-UNet, and leave everything else of the file as it was.

``Restorer`` restores images and frames, ``process_video`` a whole file, ``open_video`` reads frames. They are imported
when first used, so that ``import streamdeblur`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamdeblur.version import __version__

if TYPE_CHECKING:
    from streamdeblur.jobs.process import process_video
    from streamdeblur.restore import Restorer
    from streamdeblur.video.reader import open_video

__all__ = ["Restorer", "__version__", "open_video", "process_video"]

_WHERE = {
    "Restorer": "streamdeblur.restore",
    "process_video": "streamdeblur.jobs.process",
    "open_video": "streamdeblur.video.reader",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'streamdeblur' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
