"""The command line: argument handling and presentation, nothing else."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `sdfast` command."""
    from sdfast.cli.main import run

    raise SystemExit(run())
