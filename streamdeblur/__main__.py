"""``python -m streamdeblur``."""

from streamdeblur.cli import main

if __name__ == "__main__":
    main()
