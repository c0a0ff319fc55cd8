"""Twenty steps of each stage equal the naive step on Hugging Face modules: losses and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from naive_setup import BATCH, IMAGES, LR, MEAN, SEED, STD, STEPS, batches, decayed_rate, noise_of, pixels_of
from small_stage import losses_of
from torch import Tensor, nn

from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.modalities.images.checkpoint import load_mae, save_classifier, save_mae
from sdfast.modalities.images.model import ViTClassifier
from sdfast.modalities.images.objectives import LabelledImages, MaskedImages
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.modalities.images.reader import Normalise
from sdfast.objectives.base import Objective
from sdfast.objectives.classification import Classification
from sdfast.objectives.masked import MaskedTraining
from sdfast.teacher.live import LiveTeacher

transformers = pytest.importorskip("transformers")


def train_ours(
    objective: Objective, config: PretrainConfig | FinetuneConfig, directory: Path
) -> list[dict[str, float]]:
    """The losses of every step, from the loop that users run."""
    trainer = Trainer(
        "test",
        objective,
        config,
        EngineConfig(log_every=1),
        TrainingData(BatchOrder(torch.arange(40), BATCH, SEED), lambda rows: IMAGES[rows]),
        StageFolder(directory, {}),
    )
    return losses_of(trainer)


def compare_weights(
    ours: nn.Module, theirs: nn.Module, save: Callable[[Path], None], folder: Path, bound: float
) -> None:
    """Through the saved folder, so that the layout is tested too."""
    folder.mkdir()
    save(folder)
    reloaded = type(theirs).from_pretrained(folder).to(torch.float64)  # type: ignore[attr-defined]
    expected = theirs.state_dict()
    for name, value in reloaded.state_dict().items():
        if name.endswith("k_proj.bias") and bound > 1e-6:
            continue  # softmax ignores it: its gradient is zero but for float32 noise, which Adam divides by itself
        assert (value - expected[name].double()).abs().max() <= bound, name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_pretraining_and_distillation(
    stage: str, dtype: torch.dtype, bound: float, naive: ModuleType, mae_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    start, teacher_folder = mae_folder(0), mae_folder(1)
    module = load_mae(str(start)).module.to(dtype)
    load = transformers.ViTMAEForPreTraining.from_pretrained
    theirs = load(start).to(dtype)
    teacher = None
    if stage == "distill":
        teacher = LiveTeacher(load_mae(str(teacher_folder)).module.encoder, "cls").to(dtype)
        naive_step = naive.NaiveDistillation(theirs, load(teacher_folder).to(dtype), LR)
    else:
        naive_step = naive.NaivePretraining(theirs, LR)
    masked = MaskedImages(Normalise(MEAN, STD).to(dtype), PretrainConfig())
    objective = MaskedTraining(module, masked, SEED, teacher)
    ours = train_ours(objective, PretrainConfig(steps=STEPS, batch_size=BATCH, lr=LR), tmp_path / "run")
    for step, batch in enumerate(batches()):
        decayed_rate(naive_step, step)
        losses = naive_step.step(pixels_of(batch, dtype), noise_of(batch, dtype))
        for name, value in losses.items():
            assert abs(ours[step][name] - float(value)) <= bound * max(1.0, abs(float(value))), (step, name)
    for name, value in load_names(module).items():
        assert (value - load_names_hf(theirs)[name]).abs().max() <= bound, name
    processor = ImageProcessor(16, 16, MEAN, STD)
    single = 1e-6 if dtype is torch.float64 else bound  # folders hold float32
    compare_weights(module, theirs, lambda f: save_mae(module, f, processor), tmp_path / "saved", single)


def load_names(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that keep their shape in both layouts, by a common name."""
    state = module.state_dict()
    return {
        "cls": state["encoder.cls_token"],
        "patch": state["encoder.patch_embed.weight"],
        "query of block 1": state["encoder.blocks.1.attn.qkv.weight"][:32],
        "value of block 0": state["encoder.blocks.0.attn.qkv.weight"][64:],
        "last norm": state["encoder.norm.weight"],
        "mask token": state["decoder.mask_token"],
        "pixels": state["decoder.pred.weight"],
    }


def load_names_hf(model: nn.Module) -> dict[str, Tensor]:
    vit, decoder = model.vit, model.decoder
    return {
        "cls": vit.embeddings.cls_token,
        "patch": vit.embeddings.patch_embeddings.projection.weight,
        "query of block 1": vit.layers[1].attention.q_proj.weight,
        "value of block 0": vit.layers[0].attention.v_proj.weight,
        "last norm": vit.layernorm.weight,
        "mask token": decoder.mask_token,
        "pixels": decoder.decoder_pred.weight,
    }


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_finetuning(dtype: torch.dtype, bound: float, naive: ModuleType, mae_folder: Callable, tmp_path: Path) -> None:
    from sdfast.modalities.images.checkpoint import classifier_from_mae

    names = ["a", "b", "c"]
    labels = torch.arange(40) % 3
    module: ViTClassifier = classifier_from_mae(load_mae(str(mae_folder(0))).module, 3, 0.0, seed=2)
    folder = tmp_path / "start"
    folder.mkdir()
    save_classifier(module, folder, ImageProcessor(16, 16, MEAN, STD), names, 0.0)
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).to(dtype)
    module.to(dtype)
    naive_step = naive.NaiveFinetuning(theirs, LR)
    config = FinetuneConfig(steps=STEPS, batch_size=BATCH, lr=LR, warmup=0.0, flip=0.5)
    objective = Classification(module, LabelledImages(Normalise(MEAN, STD).to(dtype), 0.5, SEED), labels)
    ours = train_ours(objective, config, tmp_path / "run")
    flipped_once = False
    for step, batch in enumerate(batches()):
        decayed_rate(naive_step, step)
        flips = objective.draw(batch)
        flipped_once |= bool(flips.any()) and not bool(flips.all())
        pixels = torch.stack([x.flip(-1) if f else x for x, f in zip(pixels_of(batch, dtype), flips, strict=True)])
        loss = naive_step.step(pixels, labels[batch.rows])["loss"]
        assert abs(ours[step]["loss"] - float(loss)) <= bound * max(1.0, abs(float(loss))), step
    assert flipped_once
    state = module.state_dict()
    assert (state["classifier.weight"] - theirs.classifier.weight).abs().max() <= bound
    assert (state["encoder.position_embeddings"] - theirs.vit.embeddings.position_embeddings).abs().max() <= bound
