"""``python -m streamdeblur`` and ``streamdeblur``."""

from __future__ import annotations

from typing import NoReturn

from streamdeblur import interrupts


def main() -> NoReturn:
    interrupts.end_at_once()  # until the commands are loaded, which takes a moment
    from streamdeblur.cli import main as run

    run()


if __name__ == "__main__":
    main()
