"""`python -m cli`: the same as `atelier`."""

from cli.main import main

main()
