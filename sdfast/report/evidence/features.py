"""Features of the same rows after every block of each model, kept so that no stage is looked at twice."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdfast.context import Context
from sdfast.durable import write_bytes
from sdfast.report.evidence import keep
from sdfast.report.evidence.rows import Chosen, choose
from sdfast.report.evidence.stages import Subject

COUNT = 500  # rows


class Features:
    """Features of some rows by model, computed when first asked for.

    Attributes:
        chosen: the rows.
        of: what decides the features beside the weights.
        made: models that were looked at.
    """

    def __init__(self, context: Context, out: Path) -> None:
        """context, out: of the run."""
        self.context, self.out = context, out
        self.chosen: Chosen = choose(context, COUNT)
        self.of = {"rows": self.chosen.digest, **_settings(context)}
        self.made: list[str] = []

    def __call__(self, one: Subject) -> Tensor:
        """[depth, n, D] float32 of a model: see `Modality.layer_features`."""
        return self._found(one)[0]

    def what(self, one: Subject) -> str:
        """What stands for a row, in words."""
        return self._found(one)[1]

    def _found(self, one: Subject) -> tuple[Tensor, str]:
        path, of = self.out / keep.FOLDER / f"features-{one.key}.npz", {**self.of, "weights": one.weights}
        if (known := _read(path, of)) is not None:
            return known
        self.made.append(one.key)
        context, chosen = self.context, self.chosen
        found, what = context.modality.layer_features(context, one.encoder(context), chosen.seen, chosen.rows)
        file = io.BytesIO()
        np.savez(file, features=found.numpy(), of=np.array(json.dumps(of)), what=np.array(what))
        write_bytes(path, file.getvalue())
        return found, what


def _read(path: Path, of: Mapping[str, Any]) -> tuple[Tensor, str] | None:
    """Features from a file, where they are whole and were made from this."""
    try:
        with np.load(path) as kept:
            if json.loads(str(kept["of"])) != of:
                return None
            return torch.from_numpy(kept["features"]), str(kept["what"])
    except Exception:  # numpy and zipfile have many kinds for a file that is cut, changed or not there
        return None


def _settings(context: Context) -> dict[str, Any]:
    """What decides the input of the encoder, beside the rows."""
    processor = getattr(context.model, "processor", None)
    return {} if processor is None else {"mean": list(processor.mean), "std": list(processor.std)}
