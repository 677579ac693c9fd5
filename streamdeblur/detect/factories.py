"""Python factories named by one word: what stands for a detector or a restorer of the user's own.

    package.module:factory    a function without arguments, of a module that is importable, or lies in this folder
    FILE.py:factory           the same from a file, which may import what lies next to it

They run code of their author's: name only what you trust.

Factories of several folders may each have a ``network.py`` beside them, or a package ``models``: whatever was imported
from another one's folder is out of the way while one is built, and within its ``at_home``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from streamdeblur.errors import StreamdeblurError, UsageError

_WORD = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|.+\.py):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class FactoryWord:
    """Such a word, taken apart. module: dotted name, or path of a Python file. name: of the function."""

    word: str
    module: str
    name: str

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
        with self.at_home():
            return self._build(what)

    def at_home(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, imports find what lies where the factory does: for code that imports when it is called.

        It changes what the whole process imports, so no other thread may import meanwhile.
        """
        folder = Path(self.module).resolve().parent if self.module.endswith(".py") else Path.cwd()
        return _homes.setdefault(folder, _Home(folder)).entered()

    def _build(self, what: str) -> Callable[..., Any]:
        try:
            factory = getattr(_imported(self.module), self.name, None)
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
    return FactoryWord(word, found["module"], found["name"]) if found else None


def _imported(module: str) -> ModuleType:
    if not module.endswith(".py"):
        return importlib.import_module(module)
    path = Path(module)
    if not path.is_file():
        raise UsageError(f"no file {module}", "name a Python file with a factory, as mine/factory.py:build")
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_streamdeblur_factory_{path.stem}_{place}", path.resolve())
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


class _Home:
    """A folder with factories, and the modules that came from it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: dict[str, ModuleType] = {}

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Imports search the folder first, and find no module of another home."""
        for other in _homes.values():
            if other is not self:
                for name, module in other._modules.items():
                    if sys.modules.get(name) is module:
                        del sys.modules[name]
        sys.modules.update(self._modules)
        others = {name.partition(".")[0] for name in sys.modules if name not in self._modules}
        sys.path.insert(0, str(self._folder))  # the console script does not search the current folder either
        count = len(sys.modules)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(str(self._folder))
            if len(sys.modules) != count:
                self._remember(others)

    def _remember(self, others: set[str]) -> None:
        """Modules that are new here. others: packages that were there before, of which there may be new parts."""
        for name, module in list(sys.modules.items()):
            root = name.partition(".")[0]
            if root not in others and self._holds(sys.modules.get(root)):
                self._modules[name] = module

    def _holds(self, module: ModuleType | None) -> bool:
        """Whether a module or package lies in the folder itself; those in an environment below it don't."""
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
        return any(isinstance(place, str) and Path(place).parent == self._folder for place in places)


_homes: dict[Path, _Home] = {}
