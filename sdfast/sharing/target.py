"""What `sdfast export --to` asks for: a folder, or one file of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Form = Literal["folder", "onnx", "torch.export"]
_SUFFIXES: dict[str, Form] = {".onnx": "onnx", ".pt2": "torch.export"}


@dataclass(frozen=True)
class Target:
    """Where something is written, and as what.

    Attributes:
        form: what it is.
        path: of the folder or file.
        own: whether the place is the run's own, where what was exported before is replaced.
    """

    form: Form
    path: Path
    own: bool = False


def target_of(to: str | Path, out: Path, stage: str) -> Target:
    """What is asked for.

    Args:
        to: `onnx` or `torch.export` as a word, a file that ends in .onnx or .pt2, or a folder; a Path is never a word.
        out: the run directory, whose `export/` the words mean.
        stage: folder of the stage.
    """
    for suffix, form in _SUFFIXES.items():
        if to == form:
            return Target(form, out / "export" / f"{stage.replace('/', '-')}{suffix}", own=True)
        if Path(to).suffix == suffix:
            return Target(form, Path(to))
    return Target("folder", Path(to))
