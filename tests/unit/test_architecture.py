"""The import arrows: a room imports only rooms above it, and heavy libraries only where the table lets them in.

Read from the import statements of every module, those inside functions and under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "streamdeblur"
ROOT = Path(__file__).parents[2] / PACKAGE

#: In the order data meets them; a room knows only those before it.
ROOMS = (
    "version",
    "errors",
    "interrupts",
    "heap",
    "frames",
    "config",
    "color",
    "video",
    "models",
    "restore",
    "runtime",
    "detect",
    "jobs",
    "training",
    "evaluation",
    "cli",
)

#: Modules that travel to machines with torch, numpy and safetensors and nothing else (a name covers its submodules).
PORTABLE = (
    "color",
    "models",
    "restore",
    "evaluation.metrics",
    *(
        f"evaluation.benchmark.{name}"
        for name in (
            "bare",
            "ceiling",
            "child",
            "energy",
            "machine",
            "network",
            "pictures",
            "quality",
            "reference",
            "results",
            "timing",
            "variation",
            "ways",
        )
    ),
    *(
        f"training.{name}"
        for name in (
            "bare",
            "batches",
            "codec",
            "convolutions",
            "losses",
            "meter",
            "monitor",
            "networks",
            "optimizers",
            "outcome",
            "recipe",
            "schedule",
            "shards",
            "state",
            "stopping",
            "teacher",
            "trainer",
            "validation",
        )
    ),
)
PORTABLE_LIBRARIES = {"torch", "numpy", "safetensors"}
#: Optional libraries of engines: in portable modules only ``require("NAME", EXTRA)`` of models.export loads them,
#: inside functions, and only in the modules named here.
OPTIONAL: dict[str, set[str]] = {
    "models.export": {"openvino", "nncf", "onnx", "onnxscript"},
    "restore.engines.openvino": {"openvino"},
    "restore.engines.onnx": {"onnxruntime"},
}
PORTABLE_BELOW = ("version", "errors", "interrupts", "heap", "frames", *PORTABLE)

#: Rooms that name every library they may import; the others are held by FORBIDDEN alone.
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "interrupts": set(),
    "heap": set(),
    "frames": {"numpy"},
    "config": {"pydantic", "yaml"},
    **dict.fromkeys(PORTABLE, PORTABLE_LIBRARIES),
}
FORBIDDEN: dict[str, set[str]] = {
    "video": {"torch"},
    "runtime": {"av"},
    "training": {"av"},
    "evaluation": {"av"},
}
RAY_USERS = ("runtime.ray_", "jobs.batch", "training.ray")


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def imports(module: str, tree: ast.AST, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of all that is imported; ``from a import b`` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def required(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """(line, library, whether inside a function) of every ``require("NAME", ...)`` and import by name."""
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    inner = {id(n) for function in functions for n in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("require", "import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value.split(".")[0], id(node) in inner


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What the module does against the table, one line each; its name is dotted, from the package on."""
    tree = ast.parse(source)
    inside = module.removeprefix(PACKAGE).removeprefix(".")
    room = inside.split(".")[0]
    found = []

    def report(line: int, what: str) -> None:
        found.append(f"{module}:{line} {what}")

    if room in ("", "__main__"):
        return found  # the front door opens every room
    if room not in ROOMS:
        return [f"{module}:1 is in no room; rooms are {', '.join(ROOMS)}"]

    portable = any(within(inside, part) for part in PORTABLE)
    for line, name in imports(module, tree, is_package):
        library = name.split(".")[0]
        if library == PACKAGE:
            target = name.removeprefix(PACKAGE).removeprefix(".")
            other = target.split(".")[0]
            if other not in ROOMS:
                report(line, f"imports {name}: go to the room that owns it, not through the front door")
            elif ROOMS.index(other) > ROOMS.index(room):
                report(line, f"imports {name}: {other} comes after {room}, arrows point up the list only")
            elif portable and not any(within(target, part) for part in PORTABLE_BELOW):
                report(line, f"imports {name}: {inside} travels to bare machines, {other} does not")
        elif library not in sys.stdlib_module_names and library != "__future__":
            for part, libraries in ALLOWED.items():
                if within(inside, part) and library not in libraries:
                    report(
                        line, f"imports {library}: {part} may import {', '.join(sorted(libraries)) or 'nothing'} only"
                    )
            if library in FORBIDDEN.get(room, ()):
                report(line, f"imports {library}: {room} must not know it")
            if library == "ray" and not inside.startswith(RAY_USERS):
                report(line, f"imports ray: only {', '.join(RAY_USERS)} do")

    if portable:
        for line, library, inside_function in required(tree):
            if library not in OPTIONAL.get(inside, set()):
                report(line, f"requires {library}: not one of its optional libraries")
            elif not inside_function:
                report(line, f"requires {library} when it is imported: do it inside a function")
    if room != "cli":
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                report(node.lineno, "prints: only cli does; use logging")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def test_every_module_keeps_the_table() -> None:
    found = [
        line
        for module, path in modules()
        for line in violations(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    ]
    assert not found, "import arrows broken:\n" + "\n".join(found)


def test_there_is_something_to_check() -> None:
    rooms = {module.split(".")[1] for module, _ in modules() if "." in module}
    assert {"errors", "frames", "color", "models"} <= rooms


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("streamdeblur.models.x", "from streamdeblur.jobs.process import process_video", "jobs comes after models"),
        ("streamdeblur.models.x", "from streamdeblur import jobs", "jobs comes after models"),
        ("streamdeblur.video.x", "from ..restore import tiles", "restore comes after video"),
        ("streamdeblur.video.x", "def f():\n    import torch.nn", "imports torch"),
        ("streamdeblur.models.x", "if TYPE_CHECKING:\n    from av import VideoFrame", "imports av"),
        ("streamdeblur.restore.memory", "import psutil", "imports psutil"),
        ("streamdeblur.restore.x", "from streamdeblur.config import Settings", "travels to bare machines"),
        ("streamdeblur.training.trainer", "import cv2", "imports cv2"),
        (
            "streamdeblur.training.trainer",
            "from streamdeblur.training.synthesis import blur",
            "travels to bare machines",
        ),
        ("streamdeblur.runtime.pool", "import ray", "imports ray"),
        ("streamdeblur.runtime.pool", "import av.error", "imports av"),
        ("streamdeblur.frames", "import torch", "imports torch"),
        ("streamdeblur.errors", "import numpy as np", "imports numpy"),
        ("streamdeblur.errors", "from streamdeblur.frames import Frame", "frames comes after errors"),
        ("streamdeblur.config", "import click", "imports click"),
        ("streamdeblur.jobs.process", "import ray", "imports ray"),
        ("streamdeblur.jobs.process", "print('done')", "prints"),
        ("streamdeblur.jobs.process", "from streamdeblur import Restorer", "front door"),
        ("streamdeblur.extras", "", "in no room"),
        ("streamdeblur.restore.engines.openvino", "import openvino", "imports openvino"),
        ("streamdeblur.restore.engines.openvino", "v = require('openvino', 'openvino')", "inside a function"),
        ("streamdeblur.restore.tiles", "def f():\n    require('openvino', 'openvino')", "not one of its optional"),
        ("streamdeblur.models.base", "def f():\n    importlib.import_module('onnx')", "not one of its optional"),
    ],
)
def test_the_checker_sees_a_violation(module: str, source: str, word: str) -> None:
    found = violations(module, source)
    assert len(found) == 1
    assert word in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("streamdeblur.runtime.ray_pool", "import ray\nimport torch"),
        ("streamdeblur.jobs.batch", "import ray\nfrom streamdeblur.runtime.ray_pool import RayPool"),
        ("streamdeblur.models.x", "from __future__ import annotations\nimport torch\nfrom . import base\nimport json"),
        (
            "streamdeblur.models.x",
            "from streamdeblur.version import __version__\nfrom streamdeblur.errors import WeightsError",
        ),
        ("streamdeblur.config", "import yaml\nfrom pydantic import BaseModel"),
        ("streamdeblur.restore.engines.onnx", "def f():\n    return require('onnxruntime', 'onnx')"),
        ("streamdeblur.cli.main", "print('done')\nimport click\nfrom streamdeblur.jobs import process"),
        ("streamdeblur.jobs.process", "import logging\nlogging.getLogger(__name__).info('print(')"),
    ],
)
def test_the_checker_lets_pass_what_is_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_relative_imports_in_a_package_file_resolve_to_the_package() -> None:
    assert violations("streamdeblur.models", "from .base import Model", is_package=True) == []
    assert violations("streamdeblur.models", "from ..jobs import demo", is_package=True)


def test_portable_modules_import_where_only_torch_numpy_and_safetensors_are() -> None:
    # Statements can't show what a package's __init__ drags in: import them all with the rest of the world hidden.
    names = [m for m, _ in modules() if any(within(m.removeprefix(f"{PACKAGE}."), part) for part in PORTABLE)]
    assert names
    hidden = {"av", "cv2", "ray", "pydantic", "yaml", "click", "rich", "psutil"}.union(*OPTIONAL.values())
    program = f"""
import importlib, sys
class Bare:
    hidden = {hidden!r}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.hidden:
            raise ModuleNotFoundError(f"{{name}} is not on a bare machine", name=name)
sys.meta_path.insert(0, Bare())
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_line_answers_before_anything_heavy_is_loaded() -> None:
    """``--help`` and a wrong option must not wait for PyTorch."""
    heavy = ("torch", "av", "ray", "cv2", "aiohttp", "onnxruntime")
    code = f"import sys, streamdeblur.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def test_a_restorer_gets_ready_without_the_compiler() -> None:
    """PyTorch loads it (and sympy) for operations on the meta device and in dispatch modes: a second of every start."""
    code = """
import sys, torch
from streamdeblur import Restorer
for model in ("identity", "mimo-unet"):
    Restorer(model, weights=None if model == "identity" else "random:0", engine="eager", device="cpu")(
        torch.zeros(1, 3, 64, 64)
    )
print([m for m in ("torch._dynamo", "torch._inductor", "sympy") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"
