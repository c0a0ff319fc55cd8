"""Twenty steps of the honest baseline equal the naive step: the same mathematics, however it runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from naive_setup import IMAGES, LR, batches, decayed_rate, noise_of, pixels_of
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

BOUND = 1e-9
# torch.compile without a code generator: the graphs are traced (and split), which is where an error could come from.
PLAIN: dict[str, Any] = {"compile": "no"}
LAYERS: dict[str, Any] = {"compile": "layers", "options": {"backend": "aot_eager"}}
WHOLE: dict[str, Any] = {"compile": "whole", "options": {"backend": "eager"}}


def compare(
    honest_step: Any, naive_step: Any, theirs: Callable[[int], tuple[Tensor, ...]], ours: Callable[[int], tuple]
) -> None:
    """Losses of every step, then the weights; `theirs` and `ours` are the arguments of a step."""
    assert honest_step.model.config._attn_implementation == "sdpa"
    assert all(group["fused"] for group in honest_step.optimizer.param_groups)
    for step in range(len(batches())):
        decayed_rate(naive_step, step)
        decayed_rate(honest_step, step)
        expected, losses = naive_step.step(*theirs(step)), honest_step.step(*ours(step))
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            assert abs(losses[name] - value) <= BOUND * max(1.0, float(value)), (step, name)
    compare_weights(honest_step.model, naive_step.model)


def compare_weights(ours: nn.Module, theirs: nn.Module) -> None:
    expected = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        assert (value - expected[name]).abs().max() <= BOUND, name
        assert value.grad is None


@pytest.mark.parametrize(
    ("stage", "speed"),
    [("pretrain", PLAIN), ("distill", PLAIN), ("distill", LAYERS), ("distill", WHOLE)],
    ids=lambda value: value if isinstance(value, str) else value["compile"],
)
def test_pretraining_and_distillation(
    stage: str, speed: dict[str, Any], naive: ModuleType, honest: ModuleType, mae_folder: Callable[[int], Path]
) -> None:
    torch._dynamo.reset()
    load, start, dtype = transformers.ViTMAEForPreTraining.from_pretrained, mae_folder(0), torch.float64
    models = [load(start).to(dtype) for _ in range(2)]
    noise = [noise_of(batch, dtype) for batch in batches()]
    pixels = [pixels_of(batch, dtype) for batch in batches()]
    theirs = [(pixels[step], noise[step]) for step in range(len(pixels))]
    if stage == "pretrain":
        steps = honest.HonestPretraining(models[0], LR, honest.Speed(**speed)), naive.NaivePretraining(models[1], LR)
        compare(*steps, theirs.__getitem__, theirs.__getitem__)
        return
    teacher = load(mae_folder(1)).to(dtype)
    every = pixels_of(type(batches()[0])(0, torch.arange(len(IMAGES))), dtype)
    with torch.no_grad():
        targets = naive.clean_cls(teacher, every)
    ours = [(pixels[step], batch.rows, noise[step]) for step, batch in enumerate(batches())]
    honest_step = honest.HonestDistillation(models[0], targets, LR, honest.Speed(**speed))
    compare(honest_step, naive.NaiveDistillation(models[1], teacher, LR), theirs.__getitem__, ours.__getitem__)


def test_finetuning(naive: ModuleType, honest: ModuleType) -> None:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(transformers.ViTForImageClassification(config).double())
    arguments = [(pixels_of(batch, torch.float64), batch.rows % 3) for batch in batches()]
    honest_step = honest.HonestFinetuning(models[0], LR)
    compare(honest_step, naive.NaiveFinetuning(models[1], LR), arguments.__getitem__, arguments.__getitem__)


def test_bfloat16_follows_float32(naive: ModuleType, honest: ModuleType, mae_folder: Callable[[int], Path]) -> None:
    """The autocast option takes effect, and its losses stay near."""
    load, start = transformers.ViTMAEForPreTraining.from_pretrained, mae_folder(0)
    steps = [honest.HonestPretraining(load(start), LR, honest.Speed(bf16=bf16)) for bf16 in (False, True)]
    for batch in batches()[:5]:
        arguments = pixels_of(batch, torch.float32), noise_of(batch, torch.float32)
        exact, rounded = (float(step.step(*arguments)["loss_mae"]) for step in steps)
        assert 0 < abs(exact - rounded) < 0.02 * exact


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_texts(stage: str, naive: ModuleType, honest: ModuleType) -> None:
    naive_text = importlib.import_module("naive_text")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=50, **sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        return transformers.BertForMaskedLM(config).double()

    lengths, generator = torch.tensor([7, 4, 9]), torch.Generator().manual_seed(0)
    clean = torch.randint(5, 50, (20,), generator=generator)
    seen, labels = clean.clone(), torch.full_like(clean, -100)
    seen[::6], labels[::6] = 4, clean[::6]
    ours, theirs, teacher = model(0), model(0), model(1)
    inputs, whole = (naive_text.inputs_of(ids, lengths, ours) for ids in (seen, clean))
    targets = teacher.eval().base_model(**whole).last_hidden_state[:, 0].detach() if stage == "distill" else None
    honest_step = honest.HonestTexts(ours, targets, LR)
    arguments = (seen, labels, lengths)
    if stage == "distill":
        naive_step, arguments = naive_text.NaiveTextDistillation(theirs, teacher, LR), (*arguments, clean)
    else:
        naive_step = naive_text.NaiveTextPretraining(theirs, LR)
    compare(
        honest_step,
        naive_step,
        lambda step: arguments,
        lambda step: (inputs, naive_text.padded(labels, lengths, -100), whole),
    )
