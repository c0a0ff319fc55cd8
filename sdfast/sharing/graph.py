"""A stage's model as one file that other programs run, compared with the model before it can be seen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdfast import __version__
from sdfast.context import Context, Modality
from sdfast.data.problem import SINGLE
from sdfast.durable import explain_os_error, fsync_path, load_json
from sdfast.errors import RunError, SdfastError, UserError
from sdfast.export import export_stage
from sdfast.log import log
from sdfast.modalities.choose import modality_of
from sdfast.models.blocks import use_attention
from sdfast.models.hub import TOKENIZER_FILES
from sdfast.models.neighbours import has_neighbours
from sdfast.models.portable import Portable, Tensors, spread
from sdfast.sharing.forms import FORMS, Form, first_line, traced
from sdfast.sharing.target import Target
from sdfast.stages.evaluate import classifier_in

LIMIT = 1e-4  # largest difference, of outputs that are at most 1; of larger ones, their share
_ROWS = (1, 5)  # of the two batches that are compared


def write_graph(out: Path, context: Callable[[], Context], name: str, target: Target) -> int:
    """Write the model of a stage as one file, and beside it `<file>.json` and the tokenizer of a model of texts.

    The file is opened as another program would and compared with the model, on rows of the run's pack where that is
    there, in batches of two sizes; only then is it moved to its place.

    Args:
        out: the run directory.
        context, name: as `export_stage` has them.
        target: where, and as what.

    Returns:
        The optimiser steps that the model has seen.

    Raises:
        UserError: see `export_stage`; or a package is missing.
        RunError: the model cannot be written so, or the file gives something else than the model.
    """
    form, path = FORMS[target.form], target.path
    form.check()
    if path.exists() and not target.own:
        raise UserError(f"--to {path} is there already; choose another file.")
    staging = path.with_name(f".staging-{path.name}")
    with explain_os_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            folder, made = staging / "model", staging / "made"
            steps = export_stage(out, context, name, folder)
            made.mkdir()
            _write(out, folder, name, made / path.name, form, steps)
            _move(made, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return steps


def _write(out: Path, folder: Path, name: str, path: Path, form: Form, steps: int) -> None:
    modality = modality_of(folder)
    classifies = name.startswith("finetune")
    if classifies:
        found = classifier_in(modality, folder)
        module, companions, names = found.module, found.companions, found.names
    else:
        loaded = modality.reload(folder)
        module, companions, names = loaded.module, modality.companions(loaded), []
    module.eval().requires_grad_(False)
    model = modality.portable(module, companions)
    model.module.eval()
    batches, rows = _batches(out, modality, model)
    with torch.no_grad():
        own = [model.own(*batch) for batch in batches]  # as everywhere else, before attention is the plainest
        use_attention(module, "sdpa")
        wanted = [(*model.module(*batch)[:-1], last) for batch, last in zip(batches, own, strict=True)]
    about = _about(folder, name, steps, model, names)
    try:
        write = form.prepare(traced(model, batches[-1]), model)
        write(path, json.dumps(about))
        worst = _compared(form, path, model, batches, wanted)
        about["checked"] = {"largest difference": worst, "rows": rows, "batches": [len(each[0]) for each in batches]}
        write(path, json.dumps(about))
        _compared(form, path, model, batches, wanted)
    except (SdfastError, OSError):
        raise
    except Exception as error:  # the exporters raise many kinds
        raise RunError(f"the model cannot be written as {form.name}: {first_line(error)}.") from error
    size = path.stat().st_size / 1e6
    log.info("%s: %.1f MB; %s", path.name, size, _measured(worst, batches, rows))
    path.with_name(f"{path.name}.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    for each in (each for each in TOKENIZER_FILES if (folder / each).is_file()):
        beside = path.with_name(f"{path.stem}.tokenizer")
        beside.mkdir(exist_ok=True)
        shutil.copyfile(folder / each, beside / each)


def _batches(out: Path, modality: Modality, model: Portable) -> tuple[list[Tensors], str]:
    """Inputs of two sizes, and what they are of."""
    try:
        pack = modality.open_pack(out / "pack")
        which = next(each for each in ("test", "val", "train") if each in pack.splits)
        split = pack.split(which)
        rows = spread(len(split), sum(_ROWS))
        found = [model.given(split, part) for part in rows.split(_ROWS)]
        with torch.no_grad():
            for batch in found:
                model.own(*batch)  # a pack of another size of pictures, or longer texts, is another run's
        return found, f"rows of the run's {which} split"
    except (SdfastError, OSError, RuntimeError):
        return [model.given(None, torch.arange(count)) for count in _ROWS], "random inputs, as the run's pack is gone"


def _compared(
    form: Form, path: Path, model: Portable, batches: Sequence[Tensors], wanted: Sequence[Sequence[Tensor]]
) -> float:
    """The largest difference between what a file and the model give, as a share where that is above 1.

    Raises:
        RunError: it is too large.
    """
    run, worst = form.open(path, model), 0.0
    for batch, expected in zip(batches, wanted, strict=True):
        for name, given, own in zip(model.outputs, run(batch), expected, strict=True):
            if given.shape != own.shape:
                raise RunError(f"{form.name} gives {name} of {list(given.shape)}, the model of {list(own.shape)}.")
            difference = float((given - own).abs().max()) / max(1.0, float(own.abs().max()))
            if not difference <= LIMIT:
                raise RunError(
                    f"what was written as {form.name} gives {name} that differ from the model's by {difference:.1e},"
                    f" more than {LIMIT:.0e}, so it is not kept; please report it with the output of `sdfast env`."
                )
            worst = max(worst, difference)
    return worst


def _measured(worst: float, batches: Sequence[Tensors], rows: str) -> str:
    sizes = " and ".join(" x ".join(str(size) for size in batch[0].shape) for batch in batches)
    return f"it differs from the model by at most {worst:.1e} ({rows}, {sizes})"


def _about(folder: Path, name: str, steps: int, model: Portable, names: Sequence[str]) -> dict[str, Any]:
    """What a file says of itself."""
    config = load_json(folder / "config.json")
    about: dict[str, Any] = {"made by": f"sdfast {__version__}", "stage": name, "steps": steps}
    about |= {"inputs": model.about, "outputs": list(model.outputs)}
    if not names:
        return about
    about |= {"classes": list(names), "problem_type": config.get("problem_type", SINGLE)}
    if has_neighbours(folder):
        about["logits"] = "logarithms of the classes' shares of the votes of the nearest training rows"
    if "sdfast_threshold" in config:
        about["threshold"] = config["sdfast_threshold"]
    return about


def _move(made: Path, path: Path) -> None:
    """Bring all that was made to its place, the file itself last."""
    for each in made.rglob("*"):
        fsync_path(each)
    beside = [each for each in made.iterdir() if each.name != path.name]
    for each in [*beside, made / path.name]:
        place = path.with_name(each.name)
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(each, place)
    fsync_path(path.parent)
