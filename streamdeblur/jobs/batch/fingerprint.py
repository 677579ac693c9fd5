"""What a result depends on, as short hashes: the source's content, the settings that shape it, the weights, the
version.

Settings that do not change a result (workers, threads, the length of segments, what is reported) are left out, so that
changing them redoes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache

from streamdeblur.config import ProcessOptions
from streamdeblur.detect.factories import factory_word
from streamdeblur.errors import UnreadableInput
from streamdeblur.jobs.batch import place
from streamdeblur.jobs.batch.options import SHAPING
from streamdeblur.version import __version__

#: Bytes read at the beginning and the end of a source, and at places between.
_ENDS = 1 << 16
_INSIDE = 1 << 14
_PLACES = 4


def source_print(name: str) -> str:
    """Hash of a source: its size, its time of change or tag, and samples of a local file's content.

    Not of every byte: footage is large, and what edits a file in place changes its time. Raises UnreadableInput.
    """
    found = place.stat(name)
    if found is None:
        raise UnreadableInput(f"{name} does not exist", "check the path")
    digest = hashlib.blake2b(f"{found.size} {found.tag}".encode(), digest_size=16)
    if not place.is_url(name):
        if not os.path.isfile(name):  # opening a pipe would wait for ever
            raise UnreadableInput(f"{name} is not a file", "name a file of footage")
        inside = [found.size * i // (_PLACES + 1) for i in range(1, _PLACES + 1)] if found.size > 4 * _ENDS else []
        for offset, length in ((0, _ENDS), *((i, _INSIDE) for i in inside), (max(0, found.size - _ENDS), _ENDS)):
            digest.update(place.read_range(name, offset, length))
    return digest.hexdigest()


def settings_print(options: ProcessOptions) -> str:
    """Hash of what shapes a result beside its source. Raises WeightsError, UsageError."""
    values = {name: getattr(options, name) for name in SHAPING if name != "weights"}
    values |= {"version": __version__, "weights": weights_print(options.model, options.weights)}
    if options.detect is not None:
        files = (options.detect, options.detect_names)
        values["detector"] = [_detector_print(str(f)) for f in files if f is not None]
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def weights_print(model: str | None, weights: str | None) -> str:
    """Hash of the weights that a job would use, "none" where its model has none. Raises UsageError, WeightsError."""
    from streamdeblur.models import registry

    if weights is None:
        variant = registry.resolve(model) if model is not None else registry.default_variant()
        shipped = registry.shipped_weights(variant) if variant is not None else None
        return _file_print(str(shipped), shipped.stat().st_mtime_ns) if shipped is not None else "none"
    if weights.startswith("random:"):
        return weights
    found = place.stat(weights)
    if found is None:
        return "missing"  # what is wrong with it is said by whoever loads it
    return f"{found.size} {found.tag}" if place.is_url(weights) else _file_print(weights, int(found.tag))


def _detector_print(word: str) -> str:
    """Hash of a detector's file: a network, a list of names, or the Python file of a factory."""
    factory = factory_word(word)
    path = word if factory is None else factory.file
    return weights_print(None, path) if path is not None else "missing"


@lru_cache(maxsize=16)
def _file_print(path: str, changed: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def combined(*prints: str) -> str:
    """One hash of several."""
    return hashlib.blake2b("\0".join(prints).encode(), digest_size=16).hexdigest()
