"""Words to config to job, and back to words: the only room that prints.

Results go to stdout, everything said about them to stderr, so that ``--json`` can be piped. Errors are one line;
``--debug`` shows where they came from.
"""

from __future__ import annotations

from streamdeblur.cli.main import main

__all__ = ["main"]
