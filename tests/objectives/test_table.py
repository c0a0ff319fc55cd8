"""The tables of objectives and regularizers: each value of a key has its row, and a new row serves both modalities."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from small_stage import IMAGES, MEAN, SHAPE, STD, teacher_of
from small_text_stage import MASK, PAD, WORDS, model, read, texts
from torch import Tensor

from sdfast.config import Config, DistillConfig, FinetuneConfig, PretrainConfig, deciding_keys
from sdfast.data.order import Batch
from sdfast.errors import UserError
from sdfast.modalities.images.model import MaskedAutoencoder
from sdfast.modalities.images.objectives import LabelledImages, MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.texts.masking import TokenMasking
from sdfast.modalities.texts.objectives import LabelledTexts, MaskedTexts
from sdfast.objectives.choose import (
    OBJECTIVES,
    Method,
    check_banked,
    masked_objective,
    matches_features,
)
from sdfast.objectives.masked import MaskedTraining
from sdfast.regularizers.choose import REGULARIZERS

BATCH, WHOLE = Batch(2, torch.arange(6)), slice(0, 6)


def test_each_value_of_a_key_has_a_row_and_what_a_row_names_is_a_key() -> None:
    annotations = {
        "distill.match": DistillConfig.model_fields["match"].annotation,
        "finetune.objective": FinetuneConfig.model_fields["objective"].annotation,
    }
    assert {key: set(rows) for key, rows in OBJECTIVES.items()} == {
        key: set(get_args(kind)) for key, kind in annotations.items()
    }
    assert set(REGULARIZERS) == set(get_args(FinetuneConfig.model_fields["regularizer"].annotation))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {"distill.predictions", "finetune.supcon", "finetune.recadam", "finetune.mars", "finetune.r3f"}),
        (
            ("distill.match=predictions", "finetune.regularizer=r4f"),
            {
                "distill.tokens",
                "distill.layer",
                "finetune.supcon",
                "finetune.recadam",
                "finetune.mars",
            },
        ),
        (
            ("distill.match=weights-l2", "finetune.objective=supcon", "finetune.regularizer=mars"),
            {"distill.tokens", "distill.layer", "distill.predictions"} | {"finetune.recadam", "finetune.r3f"},
        ),
    ],
)
def test_settings_of_what_was_not_chosen_decide_nothing(overrides: tuple[str, ...], expected: set[str]) -> None:
    assert without_effect(Config().changed(overrides)) == expected | {"finetune.evaluations"}


def without_effect(config: Config) -> set[str]:
    """The keys of texts that act only under something that was not chosen."""
    deciding = deciding_keys(config, "distill", "texts") | deciding_keys(config, "finetune", "texts")
    known = {f"distill.{name}" for name in ("tokens", "layer", "predictions")}
    known |= {f"finetune.{name}" for name in ("recadam", "mars", "r3f", "supcon", "evaluations")}
    return known - set(deciding)


@pytest.mark.parametrize(("one", "two"), [(MaskedImages, MaskedTexts), (LabelledImages, LabelledTexts)])
def test_images_and_texts_give_the_same_names(one: type, two: type) -> None:
    names = [{name for name in vars(kind) if not name.startswith("_")} for kind in (one, two)]
    assert names[0] == names[1]


class Shrinking(MaskedTraining):
    """An objective that only this test knows: the encoder's first bias is drawn to zero beside the reconstruction."""

    def __init__(self, *given: Any, strength: float, **more: Any) -> None:
        module, views, seed, teacher = given
        super().__init__(module, views, seed, **more)
        self.teacher_seen, self.strength = teacher, strength

    def loss(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> dict[str, Tensor]:
        parts = super().loss(inputs, batch, drawn, part)
        distance = self.module.encoder.norm.bias.square().sum()
        return {**parts, "loss": parts["loss"] + self.strength * distance, "loss_distill": distance.detach()}


def test_a_class_and_a_row_are_an_objective_of_images_and_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Method(Shrinking, lambda given: {"strength": 2.0}, unbanked="nothing of the teacher is")
    monkeypatch.setitem(OBJECTIVES["distill.match"], "shrinking", row)  # type: ignore[arg-type]
    plain = Config()
    config = plain.model_copy(update={"distill": plain.distill.model_copy(update={"match": "shrinking"})})
    assert not matches_features(config) and {"distill.tokens", "distill.predictions"} <= without_effect(config)
    with pytest.raises(UserError, match=r"no bank to build with distill\.match=shrinking: nothing of the teacher is"):
        check_banked(config)
    images = MaskedImages(Normalise(MEAN, STD), PretrainConfig())
    words = MaskedTexts(read, TokenMasking(MASK, WORDS, (0, PAD, 2, MASK), 0.3))
    for module, views, inputs, teacher in (
        (MaskedAutoencoder(SHAPE), images, IMAGES[:6], teacher_of()),
        (model(2), words, texts(BATCH.rows), model(3)),
    ):
        ours = masked_objective(module, views, config, "distill", 5, teacher)  # type: ignore[arg-type]
        parts = ours.loss(inputs, BATCH, ours.draw(BATCH), WHOLE)
        parts["loss"].backward()
        reconstructed = parts[views.part]
        torch.testing.assert_close(parts["loss"].detach(), reconstructed + 2 * parts["loss_distill"])
