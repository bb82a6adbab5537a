"""Run the command line as `python -m layerwright`."""

from .cli import main

main()
