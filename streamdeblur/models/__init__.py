"""The networks, the registry of variants, checkpoints and their metadata. Knows torch, numpy, safetensors; no video."""

from __future__ import annotations

from streamdeblur.models.base import ResidualModel
from streamdeblur.models.checkpoint import Metadata, load_checkpoint, read_metadata, save_checkpoint
from streamdeblur.models.ensemble import SelfEnsemble
from streamdeblur.models.mimo_unet import MIMOUNet, MIMOUNetConfig
from streamdeblur.models.registry import (
    Variant,
    build,
    cheapest_variant,
    default_variant,
    resolve,
    shipped_weights,
    variants,
)
from streamdeblur.models.simple import OFFSET_STEP, Identity, Offset

__all__ = [
    "OFFSET_STEP",
    "Identity",
    "MIMOUNet",
    "MIMOUNetConfig",
    "Metadata",
    "Offset",
    "ResidualModel",
    "SelfEnsemble",
    "Variant",
    "build",
    "cheapest_variant",
    "default_variant",
    "load_checkpoint",
    "read_metadata",
    "resolve",
    "save_checkpoint",
    "shipped_weights",
    "variants",
]
