"""The loss inside a Hugging Face Trainer with ViTMAEForPreTraining: `python examples/loss_hf_trainer.py`.

Self-distillation for further pre-training: one masked pass for the pixels, one clean pass for the CLS token, the
teacher's CLS from a bank. The loss sits in `forward`, so that DDP, accumulation, autocast and checkpoints of the
Trainer work as ever. Replace `small_model()` by `SelfDistilledViTMAE.from_pretrained("facebook/vit-mae-base")`.
The loss in a Trainer's `compute_loss` instead: examples/loss_hf_trainer_texts.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

from sdfast.losses import MaeDistillLoss


class SelfDistilledViTMAE(ViTMAEForPreTraining):
    """ViTMAEForPreTraining whose forward pass returns the self-distillation loss."""

    # The loss is a mean over its micro-batch. Without this line the Trainer takes a `forward` with **kwargs, in a batch
    # with `labels`, to divide by their number over all accumulated micro-batches, and does not average over these.
    accepts_loss_kwargs = False

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        self.objective = MaeDistillLoss(config.patch_size, norm_pix=config.norm_pix_loss)

    @contextmanager
    def nothing_masked(self) -> Iterator[None]:
        ratio, self.config.mask_ratio = self.config.mask_ratio, 0.0
        try:
            yield
        finally:
            self.config.mask_ratio = ratio

    def clean_cls(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, D]: the CLS token of the unmasked images (patch order, which ViTMAE shuffles, does not change it)."""
        with self.nothing_masked():
            return self.vit(pixel_values).last_hidden_state[:, 0]

    def set_teacher(self, images: torch.Tensor) -> None:
        """Keep the present model's features of every image as the teacher."""
        with torch.no_grad():
            bank = copy.deepcopy(self).eval().clean_cls(images)
        self.register_buffer("teacher_bank", bank, persistent=False)

    def forward(self, pixel_values: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        encoded = self.vit(pixel_values)
        pred = self.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
        student = self.clean_cls(pixel_values)
        out = self.objective(pred, pixel_values, encoded.mask, student, self.teacher_bank, rows=rows)
        return {"loss": out.loss, "mae": out.mae, "distill": out.distill}


class Pictures(Dataset):
    """Images with the row of the bank that belongs to each."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor | int]:
        return {"pixel_values": self.images[row], "rows": row}


def small_model() -> SelfDistilledViTMAE:
    config = ViTMAEConfig(
        image_size=32, patch_size=8, norm_pix_loss=True, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, hidden_dropout_prob=0.0,
    )  # fmt: skip
    return SelfDistilledViTMAE(config)


def main(steps: int = 15) -> list[float]:
    """Train for some steps; the logged losses."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8).repeat(1, 1, 4, 4)  # 64 pictures of 4 x 4 equal patches
    model = small_model()
    model.set_teacher(images)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=3e-3, logging_steps=3,
            gradient_accumulation_steps=2, save_strategy="no", report_to=[], remove_unused_columns=False,
            disable_tqdm=True, use_cpu=not torch.cuda.is_available(), seed=0,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Pictures(images))
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}")
    return [float(loss) for loss in losses]


if __name__ == "__main__":
    main()
