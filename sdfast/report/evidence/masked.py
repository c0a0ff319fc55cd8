"""What is hidden from a model and what it puts in its place, before and after each stage: pictures, or words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.context import Context
from sdfast.report.evidence import keep
from sdfast.report.evidence.rows import choose
from sdfast.report.evidence.stages import Subject
from sdfast.rng import derive_seed

ITEM = "masked"
COUNT = 8  # rows
_SHOWN = ("initial", "head", "pretrain", "distill")


def make(context: Context, out: Path, models: Mapping[str, Subject], item: str = ITEM) -> bool:
    """Keep what each model fills in; whether there was something to do.

    Args:
        context: of the run.
        out: its directory.
        models: see `subjects`.
        item: what it is kept as; of a study each of several by itself.

    Raises:
        UserError: the model has no mask token.
    """
    wanted = {key: models[key] for key in _SHOWN if key in models}
    if not {"pretrain", "distill"} & set(wanted):
        return False
    chosen, seed, how = choose(context, COUNT), derive_seed(context.config.seed, "report"), context.config.pretrain
    of = {
        "rows": chosen.digest,
        "seed": seed,
        "settings": [how.mask, how.mask_ratio, how.normalised_pixels],
        "initial": context.model.digest,
    }
    known = keep.read_made_of(out, item, of)
    kept = {} if known is None else known["models"]
    current = {
        key: kept[key]
        for key, one in wanted.items()
        if key in kept and kept[key]["weights"] == one.weights and kept[key]["stage"] == one.place
    }
    if known is not None and list(current) == list(wanted) and list(kept) == list(wanted):
        return False
    examples = context.modality.masked_examples(context, chosen.seen, chosen.rows, seed)
    for key, one in wanted.items():
        if key not in current:
            current[key] = {**one.said(), **examples.filled(one.masked_model(context), given=key == "initial")}
    rows = zip(chosen.names, chosen.label_words(context), examples.shown(), strict=True)
    value: dict[str, Any] = {
        "kind": context.modality.name,
        "split": chosen.name,
        "rows": [{"name": name, "label": label, **shown} for name, label, shown in rows],
        "models": {key: current[key] for key in wanted},
        "notes": _notes(context, wanted),
    }
    keep.write(out, item, of, value)
    return True


def _notes(context: Context, models: Mapping[str, Subject]) -> list[str]:
    """What a person must know to read it."""
    model, config, found = context.model, context.config, []
    if getattr(model, "fresh_decoder", False):
        found.append("The model came without a decoder: the initial one is newly made and can fill in nothing yet.")
    if getattr(model, "fresh_head", False):
        found.append("The model came without a language-model head: the initial one is newly made and guesses nothing.")
    if "distill" in models and not config.distill.mae_weight:
        found.append("distill.mae_weight is 0: distillation does not train what fills in.")
    return found
