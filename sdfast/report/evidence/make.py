"""Makes what is missing of the evidence of some finished stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sdfast.context import Context
from sdfast.errors import SdfastError, said
from sdfast.log import log
from sdfast.report.evidence import layers, maps, masked, mistakes
from sdfast.report.evidence.features import Features
from sdfast.report.evidence.pictures import draw
from sdfast.report.evidence.quiet import untouched
from sdfast.report.evidence.stages import subjects
from sdfast.rundir import Result


def make_evidence(context: Context, out: Path, results: Sequence[Result], umap: bool = False) -> dict[str, Path]:
    """Look at the models of finished stages, and keep in `<out>/report/` what a report shows of them.

    What was made from the same weights and rows before is not made again. It runs in one process, in inference mode
    on the context's device, and leaves every random state as it was. What cannot be made is left out, and one warning
    says why.

    Args:
        context: of the run.
        out: its directory.
        results: of the stages that are there.
        umap: also make maps with UMAP, which takes a while.

    Returns:
        PNG files of what was made or made again, by name: `reconstructions` or `words`, `layers`, `map`, `mistakes`.
    """
    failed: dict[str, str] = {}
    pictures: dict[str, Path] = {}
    try:
        models = subjects(context, out, results)
        if len(models) == 1:
            return {}
        with untouched(context.device):
            features = Features(context, out)
            items: dict[str, Callable[[], bool]] = {
                masked.ITEM: lambda: masked.make(context, out, models),
                layers.ITEM: lambda: layers.make(features, out, models),
                maps.ITEM: lambda: maps.make(context, features, out, models, umap),
                mistakes.ITEM: lambda: mistakes.make(context, out, models),
                "other fine-tunings": lambda: mistakes.make_others(context, out, results),
            }
            for name, item in items.items():
                try:
                    if item():
                        pictures |= draw(out, name)
                except Exception as error:
                    failed[name] = why(error)
    except Exception as error:
        failed["all of it"] = why(error)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        log.warning("report: some of what it shows could not be made (%s)", reasons)
    return pictures


def why(error: Exception) -> str:
    """Why something could not be made, in a few words without a full stop."""
    if isinstance(error, SdfastError):
        return str(error).rstrip(".")
    if isinstance(error, OSError):
        return said(error)
    if isinstance(error, ImportError) and error.name == "umap":
        return "UMAP needs `pip install umap-learn`"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
