"""Checkpoints of the authors' released program: ``torch.save({"model": state_dict})`` pickles.

Only tensors are read from them (``weights_only=True``): a pickle that wants anything else is refused, never run.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from streamdeblur.errors import WeightsError
from streamdeblur.models.checkpoint import Metadata, State, check_state, is_safetensors, read_metadata, require_file
from streamdeblur.models.mimo_unet import MIMO_UNET, MIMO_UNET_PLUS, MIMOUNetConfig, parameter_shapes

#: The networks they published, by our names.
PUBLISHED: Mapping[str, MIMOUNetConfig] = {"mimo-unet": MIMO_UNET, "mimo-unet-plus": MIMO_UNET_PLUS}

#: Our modules and theirs. They number levels from coarse to fine in the decoder, and SCM and FAM likewise.
_MODULES = {
    "stem": "feat_extract.0.main.0",
    "down2": "feat_extract.1.main.0",
    "down3": "feat_extract.2.main.0",
    "up2": "feat_extract.3.main.0",
    "up1": "feat_extract.4.main.0",
    "head1": "feat_extract.5.main.0",
    "head2": "ConvsOut.1.main.0",
    "head3": "ConvsOut.0.main.0",
    "merge1": "Convs.1.main.0",
    "merge2": "Convs.0.main.0",
    "aff1.mix": "AFFs.0.conv.0.main.0",
    "aff1.conv": "AFFs.0.conv.1.main.0",
    "aff2.mix": "AFFs.1.conv.0.main.0",
    "aff2.conv": "AFFs.1.conv.1.main.0",
    "fusion2.conv": "FAM2.merge.main.0",
    "fusion3.conv": "FAM1.merge.main.0",
    **{f"scm2.conv{i}": f"SCM2.main.{i - 1}.main.0" for i in (1, 2, 3, 4)},
    **{f"scm3.conv{i}": f"SCM1.main.{i - 1}.main.0" for i in (1, 2, 3, 4)},
    "scm2.mix": "SCM2.conv.main.0",
    "scm3.mix": "SCM1.conv.main.0",
}
_LEVELS = {
    "encoder1": "Encoder.0",
    "encoder2": "Encoder.1",
    "encoder3": "Encoder.2",
    "decoder3": "Decoder.0",
    "decoder2": "Decoder.1",
    "decoder1": "Decoder.2",
}
_BLOCK = re.compile(r"((?:en|de)coder[123])\.(\d+)\.conv([12])")


def name_map(config: MIMOUNetConfig) -> dict[str, str]:
    """Our parameter names to the authors', in our order. Raises ValueError for a network that they did not publish."""
    if not (config.mise and config.mosd and config.aff and config.fusion == "fam"):
        raise ValueError("the authors' program has no switches: only the full network has names in it")
    names = {}
    for name in parameter_shapes(config):
        module, parameter = name.rsplit(".", 1)
        block = _BLOCK.fullmatch(module)
        if block:
            level, index, conv = block.groups()
            theirs = f"{_LEVELS[level]}.layers.{index}.main.{int(conv) - 1}.main.0"
        else:
            theirs = _MODULES[module]
        names[name] = f"{theirs}.{parameter}"
    return names


def export_authors(state: Mapping[str, Tensor], config: MIMOUNetConfig) -> State:
    """A state of ours under the authors' names."""
    return {theirs: state[ours] for ours, theirs in name_map(config).items()}


def import_authors(path: str | os.PathLike[str]) -> tuple[State, str]:
    """Weights of an authors' checkpoint under our names, float32 on the CPU, and the variant they are of.

    The pickle holds the state dict as its entry ``model``, as theirs do, or is the bare state dict. Strict: every name
    and shape must be that of MIMO-UNet or of MIMO-UNet+ (``module.`` prefixes of DataParallel aside). Raises
    WeightsError, one line, for anything else: a checkpoint that is ours already, a pickle that asks to run code.
    """
    file = require_file(path)
    if is_safetensors(file):
        held = read_metadata(file)  # what else may be safetensors is refused here
        raise WeightsError(f"{file} is in this format already: it holds {held.summary()}", "use it with --weights")
    content = _load_tensors(file)
    found = content["model"] if isinstance(content, Mapping) and "model" in content else content
    bare = found is content
    if not isinstance(found, Mapping) or (bare and not any(isinstance(value, Tensor) for value in found.values())):
        raise WeightsError(f"{file} holds {_words(content)} and no state dict: not a checkpoint of MIMO-UNet's authors")
    theirs = {str(name).removeprefix("module."): value for name, value in found.items()}

    def expected(config: MIMOUNetConfig) -> dict[str, tuple[int, ...]]:
        shapes = parameter_shapes(config)
        return {name: shapes[ours] for ours, name in name_map(config).items()}

    def distance(variant: str) -> int:
        return len(expected(PUBLISHED[variant]).keys() ^ theirs.keys())

    variant = min(PUBLISHED, key=distance)
    config = PUBLISHED[variant]
    check_state(str(file), theirs, expected(config), f"the authors' {variant}")
    return {ours: theirs[name].to(torch.float32) for ours, name in name_map(config).items()}, variant


def authors_metadata(variant: str) -> Metadata:
    """What is known of an imported checkpoint, for ``save_checkpoint``: not what it was trained on, nor its licence."""
    return Metadata(variant, PUBLISHED[variant], recipe="imported from a checkpoint of MIMO-UNet's authors")


def _words(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    names = ", ".join(repr(str(k)) for k in list(content)[:3])
    return f"{'the entry' if len(content) == 1 else 'the entries'} {names}{' and more' if len(content) > 3 else ''}"


def _load_tensors(file: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols before it refuses them
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as exc:  # a damaged pickle can raise anything at all
        wanted = _code_wanted(file, exc)
        if wanted:
            raise WeightsError(
                f"{file} is refused: loading it would run code ({wanted})", "weights need none; don't trust this file"
            ) from exc
        raise WeightsError(
            f"{file} is damaged or no checkpoint of torch.save", "fetch it again, or give a .safetensors file"
        ) from exc


def _code_wanted(file: Path, error: Exception) -> str | None:
    """What a refused pickle wanted to call or build, or None if it was refused for another reason."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return named[1]
    # Newer pickle protocols are refused before their first call: look into the opcodes, which runs nothing.
    text = ["", ""]
    try:
        with file.open("rb") as stream:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(text)
                if isinstance(argument, str):
                    text = [text[1], argument]
    except Exception:  # not a pickle after all
        return None
    return None
