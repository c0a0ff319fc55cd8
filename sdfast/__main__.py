"""`python -m sdfast` is the `sdfast` command."""

from sdfast.cli import main

main()
