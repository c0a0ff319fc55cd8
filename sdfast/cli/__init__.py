"""The command line: argument handling and presentation, nothing else."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `sdfast` command."""
    import sys

    from sdfast.cli.main import run

    code = run()
    if "sdfast.launch" in sys.modules:  # several processes have met through it
        sys.modules["sdfast.launch"].end(code)
    raise SystemExit(code)
