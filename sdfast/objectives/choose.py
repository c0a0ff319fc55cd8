"""The table of objectives, what follows from it for a configuration, and what stands in the way of one.

A new objective is a class in a file of its own, a row of the table here, and the value of its key in `sdfast.config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn.utils import parametrize

from sdfast.config import Config, FinetuneConfig, LoraConfig
from sdfast.errors import UserError
from sdfast.models.base import Classifier, MaskedModel
from sdfast.models.low_rank import add_low_rank, freeze_encoder, merge_low_rank, merged_state
from sdfast.models.standardised import fold_standardised, unstandardised_state
from sdfast.objectives.base import shortcuts
from sdfast.objectives.classification import Classification, LabelledViews
from sdfast.objectives.contrastive import (
    WHOLE_BATCH,
    SupervisedContrastive,
    add_projection,
    drop_projection,
    without_projection,
)
from sdfast.objectives.cross_entropy import PLAIN, LabelLoss
from sdfast.objectives.masked import MaskedTraining, MaskedViews
from sdfast.objectives.matching import PredictionMatching, WeightMatching
from sdfast.regularizers.choose import REGULARIZERS, on_loss, on_optimizer
from sdfast.regularizers.r3f import add_spectral_norm, fold_spectral_norm, folded_state
from sdfast.rng import derive_seed
from sdfast.teacher.targets import Teacher


@dataclass(frozen=True)
class Method:
    """One value of `distill.match` or `finetune.objective`.

    Attributes:
        kind: its class, for images and texts alike.
        arguments: what it is made with beside what all of its key are, from the key's section of the configuration.
        unbanked: what it matches of the teacher, where no bank can keep that; None for features.
        whole_weights: whether it compares weights with the teacher's, which then must not be spread over processes.
        prepare: what is done to a classifier before it is trained, from a seed; see `finished`.
        whole_batch: why it needs the whole batch in one place; None where it does not.
    """

    kind: Callable[..., Any]
    arguments: Callable[[Any], dict[str, Any]]
    unbanked: str | None = None
    whole_weights: bool = False
    prepare: Callable[[Classifier, FinetuneConfig, int], None] = lambda module, given, seed: None
    whole_batch: str | None = None


_COMPARED = "the teacher's weights are compared"
OBJECTIVES: Mapping[str, Mapping[str, Method]] = {
    "distill.match": {
        "features": Method(
            MaskedTraining,
            lambda given: {"tokens": given.tokens, "layer": given.layer},
        ),
        "predictions": Method(
            PredictionMatching,
            lambda given: {"compared": given.predictions.patches, "reduction": given.predictions.reduction},
            unbanked="they depend on the mask, so the teacher runs at every step",
        ),
        "weights-l2": Method(WeightMatching, lambda given: {"norm": "l2"}, unbanked=_COMPARED, whole_weights=True),
        "weights-mars": Method(WeightMatching, lambda given: {"norm": "mars"}, unbanked=_COMPARED, whole_weights=True),
    },
    "finetune.objective": {
        "cross_entropy": Method(Classification, lambda given: {"r3f": on_loss(given)}),
        "supcon": Method(
            SupervisedContrastive,
            lambda given: {"temperature": given.supcon.temperature},
            prepare=lambda module, given, seed: add_projection(module, given.supcon.projection, seed),
            whole_batch=WHOLE_BATCH,
        ),
    },
}


def masked_objective(
    module: MaskedModel,
    views: MaskedViews,
    config: Config,
    stage: Literal["head", "pretrain", "distill"],
    seed: int,
    teacher: Teacher | MaskedModel | None = None,
) -> MaskedTraining:
    """Further pre-training, a new head's training, self-distillation, or an ablation of it.

    Args:
        module: what is trained; it is given what the stage's method adds to it.
        views: what images or texts give: `MaskedImages` or `MaskedTexts`.
        config: of the run.
        stage: its name.
        seed: of the masks.
        teacher: of `distill`: where features come from, or the teacher itself where something else is matched (see
            `matches_features`); None without one, or where it has no weight.
    """
    own: dict[str, Any] = {"shortcuts": shortcuts(config.engine)}
    if stage != "head":
        _apply_method(module, getattr(config, stage), seed)
    if stage != "distill":
        return MaskedTraining(module, views, seed, head_only=stage == "head", **own)
    given, own["mae_weight"] = config.distill, config.distill.mae_weight
    if teacher is None:
        return MaskedTraining(module, views, seed, **own)
    method = _match(config)
    return method.kind(module, views, seed, teacher, weight=given.weight, **method.arguments(given), **own)


def classifier_objective(
    module: Classifier,
    views: LabelledViews,
    labels: Tensor,
    config: Config,
    seed: int,
    cross_entropy: LabelLoss = PLAIN,
) -> Classification:
    """Cross-entropy or another objective with labels, and its regularizer.

    Args:
        module: the classifier, with the weights that it starts from; it is given what training adds to it.
        views: what images or texts give: `LabelledImages` or `LabelledTexts`.
        labels: [n] int64 on the module's device, by row of the pack, or what the loss takes.
        config: of the run.
        seed: of what is added.
        cross_entropy: see `label_loss`; balanced weights depend on which rows are trained on.
    """
    given, method = config.finetune, OBJECTIVES["finetune.objective"][config.finetune.objective]
    _apply_method(module, given, seed)
    regularizer = on_optimizer(given, module)
    if REGULARIZERS[given.regularizer].spectral:
        add_spectral_norm(module.classifier, seed)
    method.prepare(module, given, seed)
    own = {"shortcuts": shortcuts(config.engine), "regularizer": regularizer, "cross_entropy": cross_entropy}
    return method.kind(module, views, labels, **own, **method.arguments(given))


def _apply_method(module: MaskedModel | Classifier, section: Any, seed: int) -> None:
    """Freeze what a stage's `method` does not train, and add what it trains instead."""
    if section.method == "lora":
        given: LoraConfig = section.lora
        seed = derive_seed(seed, "lora")
        add_low_rank(module, given.layers, given.rank, given.alpha, seed, given.norms, given.full_blocks)
    elif section.method != "full":
        freeze_encoder(module)


def finish(module: MaskedModel | Classifier) -> None:
    """Take out of a trained module what its objective added, folded into its weights where that acts."""
    merge_low_rank(module)
    if isinstance(module, Classifier):
        fold_standardised(module)
        if parametrize.is_parametrized(module.classifier):
            fold_spectral_norm(module.classifier)
        drop_projection(module)


def finished_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `finish` leaves of a module's tensors."""
    return without_projection(folded_state(unstandardised_state(merged_state(state)), "classifier"))


def matches_features(config: Config) -> bool:
    """Whether distill matches representations, which a bank can keep; else it needs the teacher itself."""
    return _match(config).unbanked is None


def why_no_bank(config: Config) -> str | None:
    """A sentence about what is not kept where distill matches something else than features; else None."""
    reason = _match(config).unbanked
    return None if reason is None else f"distill.match={config.distill.match}: {reason}, without a bank"


def check_match(config: Config) -> None:
    """What would stop distill, before its teacher is trained.

    Raises:
        UserError: weights are compared that are spread over processes.
    """
    if _match(config).whole_weights and config.distill.weight and config.zero.stage == 3:
        raise UserError(
            f"distill.match={config.distill.match} compares every weight, and --zero 3 spreads them over the processes;"
            " use --zero 0, 1 or 2."
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
        UserError: the objective of finetune does, and the batch is cut.
    """
    reason = OBJECTIVES["finetune.objective"][config.finetune.objective].whole_batch
    if reason is not None and (world > 1 or config.engine.accumulate > 1 or config.data.token_budget is not None):
        raise UserError(reason)


def _match(config: Config) -> Method:
    return OBJECTIVES["distill.match"][config.distill.match]
