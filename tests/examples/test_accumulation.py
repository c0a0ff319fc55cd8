"""One batch, or four micro-batches that add up to it: the same weights, in the trainers that people use."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdfast.losses import mae_distill_loss, mlm_distill_loss

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import Trainer, TrainingArguments

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMAGES, TEXTS = (runpy.run_path(str(EXAMPLES / f"loss_hf_trainer{name}.py")) for name in ("", "_texts"))


def arguments(folder: Path, accumulate: int, steps: int) -> TrainingArguments:
    """16 rows a step. Neither Adam nor clipping, which hide a gradient's scale."""
    return TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=16 // accumulate, learning_rate=0.01, optim="sgd",
        gradient_accumulation_steps=accumulate, max_grad_norm=0.0, lr_scheduler_type="constant", save_strategy="no",
        report_to=[], remove_unused_columns=False, disable_tqdm=True, use_cpu=True, seed=0, logging_strategy="no",
    )  # fmt: skip


def moved(trainer: Trainer) -> torch.Tensor:
    """By how much training changed the weights, all in one vector."""
    before = flat(trainer.model)
    trainer.train()
    return flat(trainer.model) - before


def flat(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


class Labelled(IMAGES["Pictures"]):
    """Pictures with a class, as an image folder gives them."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**super().__getitem__(row), "labels": row % 3}


class WithKeywords(IMAGES["SelfDistilledViTMAE"]):
    """The example's model, taking whatever else is in the batch, as most models of transformers do."""

    def forward(self, pixel_values: torch.Tensor, rows: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return super().forward(pixel_values, rows)


def images_trainer(folder: Path, accumulate: int, steps: int = 2, accepts: bool | None = None) -> Trainer:
    """The example of images, on labelled ones."""
    torch.manual_seed(0)
    pictures = torch.randn(64, 3, 32, 32)
    model = WithKeywords(IMAGES["small_model"]().config)
    model.set_teacher(pictures + 0.1)

    def masked_by_content(_: Any, args: Any, kwargs: Any) -> Any:  # not by the place in the batch
        return args, {**kwargs, "noise": torch.nn.functional.avg_pool2d(args[0].mean(1), 8).flatten(1)}

    model.vit.register_forward_pre_hook(masked_by_content, with_kwargs=True)
    if accepts is not None:
        model.accepts_loss_kwargs = accepts
    return Trainer(model, arguments(folder, accumulate, steps), train_dataset=Labelled(pictures))


def texts_trainer(
    folder: Path, accumulate: int, steps: int = 2, accepts: bool | None = None, kind: Any = None
) -> Trainer:
    """The example of texts, in float64: the last bit of a weight near 1 is more than the bounds here in float32."""
    torch.manual_seed(0)
    texts, model = TEXTS["Texts"](64), TEXTS["small_model"]().double()
    kind, bank = kind or TEXTS["SelfDistillationTrainer"], torch.randn(64, 32).double()
    trainer = kind(model, arguments(folder, accumulate, steps), train_dataset=texts, bank=bank)
    if accepts is not None:
        trainer.model_accepts_loss_kwargs = accepts
    return trainer


Made = Callable[..., Trainer]


@pytest.mark.parametrize("trainer", [images_trainer, texts_trainer])
def test_four_micro_batches_move_the_weights_as_one_batch(trainer: Made, tmp_path: Path) -> None:
    one, four = (moved(trainer(tmp_path, accumulate)) for accumulate in (1, 4))
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(four, one, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("trainer", [images_trainer, texts_trainer])
def test_a_trainer_that_takes_the_loss_for_divided_moves_them_four_times_as_far(trainer: Made, tmp_path: Path) -> None:
    """What docs/losses.md warns of."""
    one, four = (moved(trainer(tmp_path, accumulate, steps=1, accepts=True)) for accumulate in (1, 4))
    torch.testing.assert_close(four, 4 * one, rtol=1e-4, atol=1e-6)


class WholeBatchTrainer(TEXTS["SelfDistillationTrainer"]):
    """As docs/losses.md has it: micro-batches with different numbers of labels count by these."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: torch.Tensor | None = None
    ) -> Any:
        assert num_items_in_batch is not None
        labels = inputs["labels"]
        both = torch.cat((inputs["masked_ids"], inputs["input_ids"]))
        out = model(input_ids=both, output_hidden_states=True)
        student = out.hidden_states[-1][len(labels) :, 0]
        loss = mlm_distill_loss(
            out.logits[: len(labels)], labels, student, self.bank, rows=inputs["rows"],
            mlm_weight=(labels != -100).sum() / num_items_in_batch,
            distill_weight=1 / self.current_gradient_accumulation_steps,
        )  # fmt: skip
        return loss.loss


def test_micro_batches_with_different_numbers_of_labels_can_count_by_them(tmp_path: Path) -> None:
    def uneven(accumulate: int, kind: Any, accepts: bool) -> torch.Tensor:
        trainer = texts_trainer(tmp_path, accumulate, accepts=accepts, kind=kind)
        trainer.train_dataset.labels[::3] = -100  # a third of the texts has no masked word
        return moved(trainer)

    expected = uneven(1, TEXTS["SelfDistillationTrainer"], accepts=False)
    torch.testing.assert_close(uneven(4, WholeBatchTrainer, accepts=True), expected, rtol=1e-4, atol=1e-7)
    means_of_means = uneven(4, TEXTS["SelfDistillationTrainer"], accepts=False)
    assert 0 < (means_of_means - expected).norm() < 0.3 * expected.norm()


def toy() -> tuple[torch.nn.Module, Callable[[slice], torch.Tensor]]:
    """A linear student and its loss on some of 16 images."""
    torch.manual_seed(0)
    model = torch.nn.Linear(12, 12)
    hidden, pixels, teacher = torch.randn(16, 4, 12), torch.randn(16, 3, 4, 4), torch.randn(16, 12)
    mask = torch.rand(16, 4).argsort(1) < 3

    def loss(rows: slice) -> torch.Tensor:
        pred = model(hidden[rows])
        return mae_distill_loss(pred, pixels[rows], mask[rows], pred[:, 0], teacher[rows], patch_size=2).loss

    return model, loss


def gradient(accumulate: int, backward: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    model, loss = toy()
    for first in range(0, 16, 16 // accumulate):
        backward(loss(slice(first, first + 16 // accumulate)))
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_a_loop_divides_by_the_number_of_micro_batches() -> None:
    whole = gradient(1, torch.Tensor.backward)
    torch.testing.assert_close(gradient(4, lambda loss: (loss / 4).backward()), whole)


def test_accelerate_divides_by_itself() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    def accelerated(accumulate: int) -> torch.Tensor:
        for state in (AcceleratorState, GradientState):
            state._reset_state()
        return gradient(accumulate, Accelerator(gradient_accumulation_steps=accumulate, cpu=True).backward)

    one, four = accelerated(1), accelerated(4)
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    torch.testing.assert_close(four, one)
    torch.testing.assert_close(one, gradient(1, torch.Tensor.backward))


@pytest.mark.filterwarnings("ignore")
def test_lightning_divides_by_itself(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    def trained(accumulate: int) -> torch.Tensor:
        model, loss = toy()

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
                rows = batch[0]
                return loss(slice(int(rows[0]), int(rows[-1]) + 1))

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), 0.1)

        rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(16)), 16 // accumulate)
        trainer = lightning.Trainer(
            default_root_dir=tmp_path, max_steps=2, accelerator="cpu", devices=1, logger=False,
            accumulate_grad_batches=accumulate, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, max_epochs=-1,
        )  # fmt: skip
        trainer.fit(Module(), rows)
        return flat(model)

    torch.testing.assert_close(trained(4), trained(1))
