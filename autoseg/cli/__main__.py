"""Makes `python -m autoseg.cli` the same as `autoseg`."""

from autoseg.cli import main

if __name__ == "__main__":
    main()
