"""From the configuration to what is minimised on images, and what stands in the way of it on any data."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from sdfast.config import Config
from sdfast.errors import UserError
from sdfast.models.vit import MaskedAutoencoder, ViTClassifier
from sdfast.objectives.base import Normalise, shortcuts
from sdfast.objectives.classification import Classification
from sdfast.objectives.contrastive import WHOLE_BATCH, SupervisedContrastive, add_projection
from sdfast.objectives.matching import PredictionMatching, WeightMatching
from sdfast.objectives.pretraining import FurtherPretraining
from sdfast.regularizers.choose import on_loss
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull
from sdfast.teacher.targets import Teacher


def masked_objective(
    module: MaskedAutoencoder,
    normalise: Normalise,
    config: Config,
    stage: Literal["pretrain", "distill"],
    seed: int,
    teacher: Teacher | MaskedAutoencoder | None = None,
    **more: Any,
) -> FurtherPretraining:
    """Further pre-training, self-distillation, or an ablation of it.

    Args:
        module: what is trained.
        normalise: from uint8 images to its input.
        config: of the run.
        stage: its name.
        seed: of the masks.
        teacher: of `distill`: where features come from, or the teacher itself where something else is matched (see
            `matches_features`); None without one, or where it has no weight.
        more: further arguments of `FurtherPretraining`.
    """
    given, own = config.distill, {"shortcuts": shortcuts(config.engine), **more}
    if stage == "distill":
        own["mae_weight"] = given.mae_weight
    if not isinstance(teacher, MaskedAutoencoder):
        if stage == "distill":
            own |= {"tokens": given.tokens, "layer": given.layer, "distill_weight": given.weight}
        return FurtherPretraining(module, normalise, config.pretrain, seed, teacher, **own)
    own["weight"] = given.weight
    if given.match == "predictions":
        own |= given.predictions.model_dump()
        return PredictionMatching(module, normalise, config.pretrain, seed, teacher, **own)
    norm: Literal["l2", "mars"] = "l2" if given.match == "weights-l2" else "mars"
    return WeightMatching(module, normalise, config.pretrain, seed, teacher.encoder, norm, **own)


def classifier_objective(
    module: ViTClassifier,
    normalise: Normalise,
    labels: Tensor,
    config: Config,
    seed: int,
    regularizer: Pull | Mars | None = None,
) -> Classification:
    """Cross-entropy, or supervised contrastive training, for which the classifier is given a projection.

    Args:
        module: the classifier.
        normalise: from uint8 images to its input.
        labels: [n] int64 on the module's device, by row of the pack.
        config: of the run.
        seed: of the flips and of the projection.
        regularizer: what acts on the optimiser.
    """
    given, switches = config.finetune, shortcuts(config.engine)
    if given.objective == "supcon":
        add_projection(module, given.supcon.projection, seed)
        temperature = given.supcon.temperature
        return SupervisedContrastive(module, normalise, labels, given.flip, seed, temperature, switches, regularizer)
    return Classification(module, normalise, labels, given.flip, seed, switches, on_loss(given), regularizer)


def matches_features(config: Config) -> bool:
    """Whether distill matches representations, which a bank can keep; else it needs the teacher itself."""
    return config.distill.match == "features"


def why_no_bank(config: Config) -> str | None:
    """A sentence about what is not kept where distill matches something else than features; else None."""
    match = config.distill.match
    if match == "features":
        return None
    if match == "predictions":
        return "distill.match=predictions: they depend on the mask, so the teacher runs at every step, without a bank"
    return f"distill.match={match}: the teacher's weights are compared, without a bank"


def check_match(config: Config) -> None:
    """What would stop distill, before its teacher is trained.

    Raises:
        UserError: weights are compared that are spread over processes.
    """
    distill = config.distill
    if distill.match.startswith("weights") and distill.weight and config.zero.stage == 3:
        raise UserError(
            f"distill.match={distill.match} compares every weight, and --zero 3 spreads them over the processes; use"
            " --zero 0, 1 or 2."
        )


def check_banked(config: Config) -> None:
    """What would stop a bank from being built.

    Raises:
        UserError: distill matches something that none can keep.
    """
    if (reason := why_no_bank(config)) is not None:
        raise UserError(f"there is no bank to build with {reason}; use distill.match=features.")


def check_whole_batch(config: Config, world: int) -> None:
    """What needs the whole batch in one place.

    Args:
        config: of the run.
        world: number of processes.

    Raises:
        UserError: the contrastive loss does, and the batch is cut.
    """
    cut = world > 1 or config.engine.accumulate > 1 or config.data.token_budget is not None
    if config.finetune.objective == "supcon" and cut:
        raise UserError(WHOLE_BATCH)


def without_effect(config: Config) -> set[str]:
    """The names of settings (and what else a stage's inputs name) that do not act under the objectives chosen."""
    names: set[str] = set()
    if config.distill.match != "features":
        names |= {"distill.tokens", "distill.layer", "teacher.dtype"}
    if config.distill.match != "predictions":
        names.add("distill.predictions")
    if config.finetune.objective != "supcon":
        names.add("finetune.supcon")
    if not config.finetune.best_dev:
        names.add("finetune.evaluations")
    return names
