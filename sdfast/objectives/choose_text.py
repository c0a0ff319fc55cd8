"""From the configuration to what is minimised on texts."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from sdfast.config import Config
from sdfast.data.text_batch import TokenReader
from sdfast.data.text_masking import TokenMasking
from sdfast.errors import UserError
from sdfast.models.text import MaskedLanguageModel, TextClassifier
from sdfast.objectives.base import shortcuts
from sdfast.objectives.contrastive import add_projection
from sdfast.objectives.masked_lm import MaskedLanguageModelling
from sdfast.objectives.text_classification import TextClassification
from sdfast.objectives.text_contrastive import TextSupervisedContrastive
from sdfast.objectives.text_matching import TextPredictionMatching, TextWeightMatching
from sdfast.regularizers.choose import on_loss
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull
from sdfast.teacher.live_text import TextTokens
from sdfast.teacher.targets import Teacher


def masked_text_objective(
    module: MaskedLanguageModel,
    read: TokenReader,
    masking: TokenMasking,
    config: Config,
    stage: Literal["head", "pretrain", "distill"],
    seed: int,
    teacher: Teacher | MaskedLanguageModel | None = None,
) -> MaskedLanguageModelling:
    """Further pre-training, a new head's training, self-distillation, or an ablation of it.

    Args:
        module: what is trained.
        read: the tokens of some rows.
        masking: which tokens are masked, and how.
        config: of the run.
        stage: its name.
        seed: of the masks.
        teacher: of `distill`: where features come from, or the teacher itself where something else is matched (see
            `sdfast.objectives.choose.matches_features`); None without one, or where it has no weight.
    """
    given = config.distill
    own: dict[str, Any] = {"mean": config.pretrain.mean, "shortcuts": shortcuts(config.engine)}
    if stage != "distill":
        return MaskedLanguageModelling(module, read, masking, seed, head_only=stage == "head", **own)
    own["mlm_weight"] = given.mae_weight
    if isinstance(teacher, MaskedLanguageModel):
        own["weight"] = given.weight
        if given.match == "predictions":
            own |= given.predictions.model_dump()
            return TextPredictionMatching(module, read, masking, seed, teacher, **own)
        norm: Literal["l2", "mars"] = "l2" if given.match == "weights-l2" else "mars"
        return TextWeightMatching(module, read, masking, seed, teacher.encoder, norm, **own)
    if teacher is not None:
        own |= {"tokens": matched_tokens(config), "layer": given.layer, "distill_weight": given.weight}
    return MaskedLanguageModelling(module, read, masking, seed, teacher, **own)


def text_classifier_objective(
    module: TextClassifier, labels: Tensor, config: Config, seed: int, regularizer: Pull | Mars | None = None
) -> TextClassification:
    """Cross-entropy, or supervised contrastive training, for which the classifier is given a projection.

    Args:
        module: the classifier.
        labels: [n] int64 on the module's device, by row of the pack.
        config: of the run.
        seed: of the projection.
        regularizer: what acts on the optimiser.
    """
    given, switches = config.finetune, shortcuts(config.engine)
    if given.objective == "supcon":
        add_projection(module, given.supcon.projection, seed)
        return TextSupervisedContrastive(module, labels, given.supcon.temperature, switches, regularizer)
    return TextClassification(module, labels, switches, on_loss(given), regularizer)


def matched_tokens(config: Config) -> TextTokens:
    """What self-distillation matches of a text.

    Raises:
        UserError: patches.
    """
    tokens = config.distill.tokens
    if tokens == "patch":
        raise UserError("distill.tokens=patch is for images; for texts use cls (the first token) or all.")
    return tokens
