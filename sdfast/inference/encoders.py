"""The encoder that a stage of a run left, or that it was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdfast.config import Config
from sdfast.context import Classifier, Modality
from sdfast.durable import recover_directory
from sdfast.errors import UserError, nearest
from sdfast.modalities.choose import modality_of
from sdfast.models.hub import find_model_folder
from sdfast.opening import model_path
from sdfast.rundir import RESULT, check_model
from sdfast.stages.evaluate import fine_tuned

STAGES = ("init", "pretrain", "distill", "finetune")


@dataclass(frozen=True)
class StageEncoder:
    """A model whose encoder gives features.

    Attributes:
        stage: `init`, `pretrain`, `distill`, `distill/round-1` or `finetune`.
        modality: of it.
        model: with an encoder, and what lies beside it; without classes.
        weights: digest of the weights of the whole model.
    """

    stage: str
    modality: Modality
    model: Classifier
    weights: str


def finished_stages(out: Path) -> list[str]:
    """Those of a run that have ended, in order; `init` is always there."""
    return ["init", *(stage for stage in STAGES[1:] if (out / stage / RESULT).is_file())]


def stage_encoder(out: Path, config: Config, stage: str, read_only: bool = False) -> StageEncoder:
    """The encoder of a stage, with the bytes that were written.

    Args:
        out: the run directory.
        config: of the run.
        stage: see `StageEncoder`.
        read_only: the run directory cannot be written.

    Raises:
        UserError: there is no such stage, it has not ended or its model is damaged; or the model that the run was given
            is not there any more.
    """
    if stage == "init":
        return _given(out, config)
    if stage not in STAGES and not stage.startswith("distill/round-"):
        raise UserError(f"--stage {stage} is not known; {nearest(stage, list(STAGES))}")
    folder = out / stage
    if not (folder / RESULT).is_file():
        done = ", ".join(finished_stages(out))
        raise UserError(
            f"{folder} holds no model that is done; run `sdfast train --stage {stage.partition('/')[0]}` with this"
            f" --out first, or choose another --stage ({done})."
        )
    if not read_only:
        recover_directory(folder / "model")
    if stage == "finetune":
        tuned = fine_tuned(out)
        return StageEncoder(stage, tuned.modality, tuned.classifier, tuned.stored.weights)
    stored, model = check_model(folder), folder / "model"
    modality = modality_of(model)
    loaded = modality.reload(model)
    return StageEncoder(
        stage, modality, Classifier(loaded.module, [], modality.companions(loaded), model), stored.weights
    )


def _given(out: Path, config: Config) -> StageEncoder:
    """The model that the run was given; where images are normalised as the data set is, as the run does it."""
    path = model_path(config)
    try:
        folder = find_model_folder(path)
        modality = modality_of(folder)
        loaded = modality.load(path, config)
    except UserError as error:
        raise UserError(f"--stage init is the model that the run was given: {error}") from error
    if config.data.normalise == "dataset":
        loaded = modality.fitted(loaded, modality.open_pack(out / "pack"), config)
    return StageEncoder(
        "init", modality, Classifier(loaded.module, [], modality.companions(loaded), folder), loaded.digest
    )
