"""python -m gatelab: the same as `gatelab`."""

from .cli import main

if __name__ == "__main__":
    main()
