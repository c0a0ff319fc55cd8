"""Methods compared under one budget, as runnable studies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdfast.errors import UserError

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline


def run_study(name: str, pipeline: Pipeline, seeds: int) -> str:
    """Run a study by name and return its table, as Markdown.

    Raises:
        UserError: there is no study of that name.
    """
    if name != "compare":
        raise UserError(f"there is no study '{name}'; choose compare.")
    from sdfast.studies.compare import compare

    compare(pipeline, seeds)
    return (pipeline.out / "compare.md").read_text(encoding="utf-8")
