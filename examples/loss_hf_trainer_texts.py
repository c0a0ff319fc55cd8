"""The loss in `compute_loss` of a Hugging Face Trainer, with RobertaForMaskedLM.

    python examples/loss_hf_trainer_texts.py

Self-distillation for further pre-training: masked and clean tokens go through the model together, the first for the
words, the second for the CLS token; the teacher's CLS comes from a bank.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import RobertaConfig, RobertaForMaskedLM, Trainer, TrainingArguments

from sdfast.losses import mlm_distill_loss

WORDS, LENGTH, MASK = 40, 12, 4  # of the vocabulary; tokens of a text; the mask's id


class SelfDistillationTrainer(Trainer):
    """Masked words plus the distance of the clean CLS tokens from a bank's."""

    def __init__(self, *args: Any, bank: torch.Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bank = bank
        # The loss below is a mean over its micro-batch. Without this line the Trainer takes it to be divided by the
        # number of labels of all accumulated micro-batches, and does not average over these: each gradient would be
        # `gradient_accumulation_steps` times as large.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        both = torch.cat((inputs["masked_ids"], inputs["input_ids"]))
        out = model(input_ids=both, output_hidden_states=True)
        batch = len(inputs["rows"])
        student = out.hidden_states[-1][batch:, 0]  # [B, D]: CLS of the clean texts
        teacher = self.bank.to(student.device)
        loss = mlm_distill_loss(out.logits[:batch], inputs["labels"], student, teacher, rows=inputs["rows"])
        return (loss.loss, {"mlm": loss.mlm, "distill": loss.distill}) if return_outputs else loss.loss


class Texts(Dataset):
    """Texts that count upwards from some word, two of them masked; with the row of the bank that belongs to each."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(WORDS - 5, (count, 1), generator=generator)
        self.input_ids = 5 + (first + torch.arange(LENGTH)) % (WORDS - 5)
        self.input_ids[:, 0] = 0  # the CLS token
        places = 1 + torch.rand(count, LENGTH - 1, generator=generator).argsort(1)[:, :2]
        masked = torch.zeros_like(self.input_ids, dtype=torch.bool).scatter_(1, places, True)
        self.masked_ids = self.input_ids.masked_fill(masked, MASK)
        self.labels = self.input_ids.masked_fill(~masked, -100)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor | int]:
        tokens = {"masked_ids": self.masked_ids[row], "input_ids": self.input_ids[row]}
        return {**tokens, "labels": self.labels[row], "rows": row}


def small_model() -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH + 2, type_vocab_size=1, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=1,
    )  # fmt: skip
    return RobertaForMaskedLM(config)


def main(steps: int = 60) -> list[float]:
    """Train for some steps; the logged losses."""
    torch.manual_seed(0)
    texts, model = Texts(64), small_model()
    with torch.no_grad():
        bank = model.eval()(input_ids=texts.input_ids, output_hidden_states=True).hidden_states[-1][:, 0]
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=3e-3, logging_steps=3,
            gradient_accumulation_steps=2, save_strategy="no", report_to=[], remove_unused_columns=False,
            disable_tqdm=True, use_cpu=not torch.cuda.is_available(), seed=0,
        )  # fmt: skip
        trainer = SelfDistillationTrainer(model, arguments, train_dataset=texts, bank=bank)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}")
    return [float(loss) for loss in losses]


if __name__ == "__main__":
    main()
