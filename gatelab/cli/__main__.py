"""python -m gatelab.cli: the same as `gatelab`."""

from . import main

main()
