"""Python factories named by one word: what stands for a detector or a restorer of the user's own.

    package.module:factory    a function without arguments, of a module that is importable, or lies in this folder
    FILE.py:factory           the same from a file, which may import what lies next to it

They run code of their author's: name only what you trust.

Factories of several folders may each have a ``network.py`` beside them, or a package ``models``: what was imported from
one's folder, or from a folder that it added to ``sys.path``, is out of the way while another one is built, and within
its ``at_home``. Elsewhere the one that came first is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from streamdeblur.errors import StreamdeblurError, UsageError

_WORD = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|.+\.py):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class FactoryWord:
    """Such a word, taken apart. module: dotted name, or path of a Python file. name: of the function. home: the folder
    of that file, or the current one: where what it imports is looked for first, wherever the program goes later.
    """

    word: str
    module: str
    name: str
    home: Path

    @property
    def label(self) -> str:
        """Short, for tables: the file without its folder and ending."""
        return f"{Path(self.module).stem if self.module.endswith('.py') else self.module}:{self.name}"

    @property
    def file(self) -> str | None:
        """The Python file that the function is in, as far as that can be told without running it."""
        if self.module.endswith(".py"):
            return self.module
        try:
            with self.at_home():
                spec = importlib.util.find_spec(self.module)
        except Exception:  # packages on the way are imported, and may do anything
            return None
        return spec.origin if spec is not None and spec.has_location else None

    def build(self, what: str) -> Callable[..., Any]:
        """Import the module, call the factory, return what it made.

        what: of which kind it shall be ("detector", "model"), for messages. Raises UsageError for a module, a function
        or a result that is none, and for whatever is raised on the way; errors of ours pass as they are.
        """
        with _home(self.home).entered(built=True):
            return self._build(what)

    def at_home(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, imports find what lies where the factory does: for code that imports when it is called.

        It changes what the whole process imports. One thread at a time is inside; others should not import meanwhile.
        """
        return _home(self.home).entered()

    def _build(self, what: str) -> Callable[..., Any]:
        try:
            factory = getattr(_imported(self), self.name, None)
        except StreamdeblurError:
            raise
        except (Exception, SystemExit) as e:  # whatever the module does when it is imported
            raise UsageError(
                f"{what} {self.word} can't be imported: {type(e).__name__}: {e}", "see that it imports by itself"
            ) from e
        if not callable(factory):
            raise UsageError(
                f"{what} {self.word}: {self.module} has no function {self.name}", f"name a factory of a {what}"
            )
        try:
            made = factory()
        except StreamdeblurError:
            raise
        except (Exception, SystemExit) as e:
            raise UsageError(
                f"{what} {self.word} failed to build: {type(e).__name__}: {e}", "call its factory by hand"
            ) from e
        if not callable(made):
            raise UsageError(
                f"{what} {self.word} built a {type(made).__name__}, which can't be called", f"return a {what}"
            )
        return made  # type: ignore[no-any-return]


def factory_word(word: str) -> FactoryWord | None:
    """The word taken apart; None where it names no factory."""
    found = _WORD.fullmatch(word)
    if found is None:
        return None
    module = found["module"]
    return FactoryWord(
        word, module, found["name"], Path(module).resolve().parent if module.endswith(".py") else Path.cwd()
    )


def _imported(word: FactoryWord) -> ModuleType:
    if not word.module.endswith(".py"):
        return importlib.import_module(word.module)
    path = word.home / Path(word.module).name
    if not path.is_file():
        raise UsageError(f"no file {word.module}", "name a Python file with a factory, as mine/factory.py:build")
    place = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_streamdeblur_factory_{path.stem}_{place}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


class _Home:
    """A folder with factories, and the modules that came from it."""

    def __init__(self, folder: Path) -> None:
        self._modules: dict[str, ModuleType] = {}
        self._paths = [str(folder)]  # first that, then what its code added to sys.path

    @contextlib.contextmanager
    def entered(self, *, built: bool = False) -> Iterator[None]:
        """Imports search this home first, and find no module of another one. built: modules may be made anew."""
        with _lock:
            hidden = {
                name: module
                for other in _homes.values()
                for name, module in other._modules.items()
                if other is not self and sys.modules.get(name) is module
            }
            for name in hidden:
                del sys.modules[name]
            sys.modules.update(self._modules)
            modules, paths = set(sys.modules), list(sys.path)
            # What lies in a folder that is searched anyhow, is everybody's.
            everybodys = {os.path.realpath(p) for p in paths}
            sys.path[:0] = self._paths
            try:
                yield
            finally:
                self._paths += [p for p in sys.path if p not in paths and p not in self._paths]
                sys.path[:] = paths
                if built or sys.modules.keys() != modules:
                    self._remember(modules - self._modules.keys(), everybodys)
                taken = {name.partition(".")[0] for name in hidden}
                for name in self._modules:  # parts of a package go with it
                    if name.partition(".")[0] in taken:
                        sys.modules.pop(name, None)
                sys.modules.update(hidden)

    def _remember(self, others: set[str], everybodys: set[str]) -> None:
        """Modules that are new here. others: those that were there, of whose packages there may be new parts."""
        roots = {name.partition(".")[0] for name in others}
        folders = {os.path.realpath(p) for p in self._paths} - everybodys
        for name, module in list(sys.modules.items()):
            root = name.partition(".")[0]
            if root not in roots and _lies_in(sys.modules.get(root), folders):
                self._modules[name] = module


def _lies_in(module: ModuleType | None, folders: set[str]) -> bool:
    """Whether a module or package lies in one of the folders itself; those in an environment below it don't."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(isinstance(place, str) and os.path.realpath(os.path.dirname(place)) in folders for place in places)


_homes: dict[Path, _Home] = {}
_lock = threading.RLock()


def _home(folder: Path) -> _Home:
    with _lock:
        return _homes.setdefault(folder, _Home(folder))
