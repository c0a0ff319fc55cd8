"""sdfast: self-distillation for further pre-training of transformers, fast and exact (Lee et al., ICLR 2023).

    import sdfast
    result = sdfast.Pipeline(model="facebook/vit-mae-base", data="photos/", out="runs/birds").run()
    result.metrics["accuracy"]

Importing the package does no work: torch and the rest are loaded when they are first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Pipeline", "Result", "Study", "__version__"]

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline, Result
    from sdfast.studies.loaded import Study


def __getattr__(name: str) -> Any:
    if name in ("Pipeline", "Result"):
        from sdfast import pipeline

        return getattr(pipeline, name)
    if name == "Study":
        from sdfast.studies.loaded import Study

        return Study
    raise AttributeError(f"module 'sdfast' has no attribute '{name}'")
