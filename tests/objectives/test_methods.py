"""Stages that train little: LoRA and a linear probe leave the rest alone, go on, and take every shortcut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import check_resumes
from small_stage import IMAGES, LABELS, MEAN, SHAPE, STD, initialise, losses_of, teacher_encoder
from small_text_stage import LENGTHS, texts
from small_text_stage import SHAPE as TEXT_SHAPE
from small_text_stage import model as text_model
from small_text_stage import read as read_texts
from torch import Tensor, nn

from sdfast.config import Config
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.errors import UserError
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier
from sdfast.modalities.images.objectives import LabelledImages, MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.texts.masking import TokenMasking
from sdfast.modalities.texts.model import Dropouts, TextClassifier
from sdfast.modalities.texts.objectives import LabelledTexts, MaskedTexts
from sdfast.modalities.texts.order import TextBatchOrder
from sdfast.models.low_rank import low_rank_layers
from sdfast.models.neighbours import Neighbours, left_out
from sdfast.objectives.choose import classifier_objective, masked_objective
from sdfast.rng import derive_seed
from sdfast.teacher.live import LiveTeacher

STEPS, ROWS = 12, torch.arange(50)
LORA = ("lora.rank=3", "lora.targets=all")


def trainer_of(stage: str, folder: Path, *overrides: str, text: bool = False, batch: int = 16) -> Trainer:
    """A small stage with keys of its own, and of others with their section's name."""
    own = [key if key.startswith("engine.") else f"{stage}.{key}" for key in overrides]
    config = Config().changed([f"{stage}.steps={STEPS}", f"{stage}.batch_size={batch}", f"{stage}.lr=0.003", *own])
    if text:
        objective = text_objective(stage, config)
    else:
        normalise = Normalise(MEAN, STD)
        if stage == "finetune":
            classifier = ViTClassifier(SHAPE, 4, config.finetune.dropout)
            initialise(classifier, 2)
            objective = classifier_objective(
                classifier, LabelledImages(normalise, config.finetune.flip, 5), LABELS, config, 5
            )
        else:
            module = MaskedAutoencoder(SHAPE)
            initialise(module, 2)
            teacher = LiveTeacher(teacher_encoder(), "cls") if stage == "distill" else None
            objective = masked_objective(module, MaskedImages(normalise, config.pretrain), config, stage, 5, teacher)  # type: ignore[arg-type]
    order = TextBatchOrder(ROWS, LENGTHS, batch, 9) if text else BatchOrder(ROWS, batch, 9)
    data = TrainingData(order, texts if text else IMAGES.__getitem__)
    return Trainer(stage, objective, getattr(config, stage), config.engine, data, StageFolder(folder, {"case": "one"}))


def text_objective(stage: str, config: Config) -> Any:
    if stage == "finetune":
        classifier = TextClassifier(TEXT_SHAPE, 4, Dropouts(config.finetune.dropout, config.finetune.dropout))
        initialise(classifier, 2)
        return classifier_objective(classifier, LabelledTexts(), LABELS, config, 5)
    masked = MaskedTexts(read_texts, TokenMasking(4, 60, (0, 1, 2, 4), 0.15), "token")
    teacher = LiveTeacher(text_model(3).encoder, "cls") if stage == "distill" else None
    return masked_objective(text_model(2), masked, config, stage, 5, teacher)  # type: ignore[arg-type]


KINDS = [
    ("pretrain", "lora", False),
    ("distill", "lora", False),
    ("finetune", "lora", False),
    ("finetune", "linear_probe", False),
    ("pretrain", "lora", True),
    ("distill", "lora", True),
    ("finetune", "lora", True),
    ("finetune", "linear_probe", True),
]


@pytest.mark.parametrize(("stage", "method", "text"), KINDS)
def test_frozen_weights_stay_and_the_others_move(stage: str, method: str, text: bool, tmp_path: Path) -> None:
    trainer = trainer_of(stage, tmp_path, f"method={method}", *(LORA if method == "lora" else ()), text=text)
    module = trainer.objective.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer.run()
    moved = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    low_rank = {name for name in before if "lora_" in name}
    on_top = {name for name, _ in module.named_parameters() if not name.startswith("encoder.")}
    assert bool(low_rank) == (method == "lora")
    assert moved == low_rank | (on_top - {"decoder.position_embeddings"})
    assert set(trainer.engine.parameters) == moved  # AdamW keeps moments of these alone
    assert len(trainer.engine.optimizer.state) == len(moved)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("key", ["objective=supcon", "regularizer=r3f", "regularizer=r4f"])
def test_other_losses_train_the_adapter_too(key: str, text: bool, tmp_path: Path) -> None:
    trainer = trainer_of("finetune", tmp_path, "method=lora", key, text=text)
    module: Any = trainer.objective.module
    before = {name: tensor.clone() for name, tensor in module.encoder.state_dict().items()}
    trainer.run()
    after = module.encoder.state_dict()
    assert {n for n in after if not torch.equal(after[n], before[n])} == {n for n in after if "lora_" in n}


@pytest.mark.parametrize(("stage", "method", "text"), KINDS)
def test_a_stopped_stage_goes_on_bit_for_bit(stage: str, method: str, text: bool, tmp_path: Path) -> None:
    check_resumes(lambda folder: trainer_of(stage, folder, f"method={method}", text=text), tmp_path)


@pytest.mark.parametrize("text", [False, True])
def test_every_shortcut_gives_the_same(text: bool, tmp_path: Path) -> None:
    """Losses of all steps, and the adapter in the end; with checkpointed blocks too."""
    found = {}
    for name, switches in (
        ("all", ()),
        ("none", ("engine.packed=false", "engine.cls_tail=false", "engine.masked_tail=false")),
        ("checkpointed", ("engine.activation_checkpointing=true",)),
    ):
        trainer = trainer_of("distill", tmp_path / name, "method=lora", *LORA, *switches, text=text)
        found[name] = losses_of(trainer), trainer.objective.module.state_dict()
    for name in ("none", "checkpointed"):
        for one, other in zip(found["all"][0], found[name][0], strict=True):
            assert one == pytest.approx(other, rel=1e-5)
        for key, tensor in found["all"][1].items():
            torch.testing.assert_close(found[name][1][key], tensor, rtol=1e-3, atol=2e-4)


def test_a_probes_encoder_computes_as_in_evaluation(tmp_path: Path) -> None:
    trainer = trainer_of("finetune", tmp_path, "method=linear_probe", "dropout=0.5", "flip=0")
    module: Any = trainer.objective.module
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(module.train()(images), module.eval()(images))


def test_the_adapters_draw_is_one_of_its_own(tmp_path: Path) -> None:
    """A depends on the seed, and not on what else is drawn from it."""
    objective = trainer_of("pretrain", tmp_path, "method=lora", "lora.rank=2").objective
    layer = next(iter(low_rank_layers(objective.module).values()))
    generator, bound = torch.Generator().manual_seed(derive_seed(5, "lora")), layer.in_features**-0.5
    drawn = torch.empty(2, layer.in_features).uniform_(-bound, bound, generator=generator)
    assert torch.equal(layer.lora_A["query"], drawn)


def noisy_features(rows: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    centres = torch.randn(3, width, generator=generator)
    return centres[labels] + 1.5 * torch.randn(rows, width, generator=generator), labels


def test_neighbours_vote_as_scikit_learns() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = noisy_features(120, 6)
    asking, k, temperature = features[:40] + 0.3, 7, 0.07
    ours = Neighbours(features, labels, 3, k, temperature)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda far: np.exp((1 - far) / temperature))
    theirs.fit(features.numpy().astype(np.float64), labels.numpy())
    wanted = theirs.predict_proba(asking.numpy().astype(np.float64))
    np.testing.assert_allclose(ours(asking).exp().numpy(), wanted.clip(1e-6), atol=1e-4)
    with left_out(ours):
        for row in (0, 50):
            rest = torch.arange(120) != row
            alone = Neighbours(features[rest], labels[rest], 3, k, temperature)
            torch.testing.assert_close(ours(features[row : row + 1]), alone(features[row : row + 1]))
    assert ours(asking).shape == (40, 3) and Neighbours(features[:2], labels[:2], 3, k, 1.0)(asking).isfinite().all()


def test_a_probe_ends_where_scikit_learns_logistic_regression_does(tmp_path: Path) -> None:
    """Without decay both minimise the mean cross-entropy of a linear layer on the frozen encoder's CLS."""
    from sklearn.linear_model import LogisticRegression

    keys = ("weight_decay=0", "flip=0", "steps=300", "lr=0.1", "warmup=0", "clip=0")
    trainer = trainer_of("finetune", tmp_path, "method=linear_probe", *keys, batch=50)
    module: Any = trainer.objective.module
    normalise = Normalise(MEAN, STD)
    with torch.no_grad():  # three features of one size, by which the labels cannot be told apart
        module.encoder.norm = nn.Identity()
        states = module.encoder.features(normalise(IMAGES), "cls")
        _, sizes, axes = torch.linalg.svd(states - states.mean(dim=0), full_matrices=False)
        module.encoder.norm = nn.Linear(32, 3).requires_grad_(False)
        module.encoder.norm.weight.copy_(axes[:3] / sizes[:3, None] * 50**0.5)
        module.encoder.norm.bias.copy_(-module.encoder.norm.weight @ states.mean(dim=0))
    module.classifier = nn.Linear(3, 4)
    trainer = rebuilt(trainer, tmp_path)
    trainer.run()
    with torch.no_grad():
        features = module.eval().encoder.features(normalise(IMAGES), "cls").double()
        ours = module.classifier.double()(features).softmax(dim=1)
    theirs = LogisticRegression(C=1e8, tol=1e-10, max_iter=10_000).fit(features.numpy(), LABELS.numpy())
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(features.numpy()), atol=2e-3)


def rebuilt(trainer: Trainer, folder: Path) -> Trainer:
    """A trainer of the same objective, whose module was changed."""
    data = TrainingData(trainer.order, trainer.read)
    return Trainer("finetune", trainer.objective, trainer.config, trainer.settings, data, StageFolder(folder, {}))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["finetune.method=lora", "finetune.regularizer=recadam"], "recadam holds all weights near their start"),
        (["finetune.method=lora", "finetune.regularizer=mars"], "mars holds all weights near their start"),
        (["finetune.method=knn", "finetune.regularizer=r3f"], "r3f is for an encoder that is trained, not knn"),
        (["finetune.method=linear_probe", "finetune.objective=supcon"], "supcon trains the encoder, and method=linear"),
        (["distill.method=lora", "distill.match=weights-l2"], "weights-l2 compares all weights"),
        (["finetune.lora.targets=[query,keys]"], "finetune.lora.targets"),
        (["finetune.lora.rank=0"], "finetune.lora.rank=0 does not fit"),
        (["pretrain.method=knn"], "pretrain.method=knn does not fit"),
    ],
)
def test_what_does_not_go_together_is_said(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Config().changed(overrides)


def test_targets_are_one_set_in_whatever_order_they_are_given() -> None:
    one, other = (
        Config().changed([f"finetune.lora.targets={each}"]) for each in ("[value,query]", "[query,value,query]")
    )
    assert one == other == Config()
