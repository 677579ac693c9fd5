"""What torch prints beside what it raises, or goes on after: for those who debug alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

#: Those of torch's loggers that print and take part in compiling and loading.
_LOGGERS = (
    "torch",
    "torch._dynamo",
    "torch._functorch._aot_autograd",
    "torch._functorch.aot_autograd",
    "torch._inductor",
    "torch._inductor.async_compile",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
)


def debugging() -> bool:
    """Whether the program was started to be debugged (``--debug``)."""
    return logging.getLogger("streamdeblur").isEnabledFor(logging.DEBUG)


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Mutes torch's own handlers inside, unless somebody debugs or set ``TORCH_LOGS``. Threads may be in it at once."""

    def refuse(_: logging.LogRecord) -> bool:
        return False

    handlers: set[logging.Handler] = set()
    if not debugging() and not os.environ.get("TORCH_LOGS"):
        handlers = {handler for name in _LOGGERS for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        handler.addFilter(refuse)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(refuse)
