"""The yardstick for texts: the training steps on public Hugging Face modules, padded, with a head for every token.

Further pre-training is `RobertaForMaskedLM`'s own forward and backward. Self-distillation adds a live teacher on the
clean texts and the student on them, with a second backward that adds to the first one's gradients (fidelity 3.3).
"""

from __future__ import annotations

import copy

import torch
from naive import pretraining_optimizer
from torch import Tensor, nn
from transformers import PreTrainedModel


def padded(ids: Tensor, lengths: Tensor, value: int) -> Tensor:
    """[T] -> [B, N], `value` behind the shorter ones."""
    return nn.utils.rnn.pad_sequence(list(ids.split(lengths.tolist())), batch_first=True, padding_value=value)


def inputs_of(ids: Tensor, lengths: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    """What the model is called with. Positions are by place: a random word may be the padding id by accident."""
    wide = padded(ids, lengths, model.config.pad_token_id)
    mask = (torch.arange(wide.shape[1]) < lengths[:, None]).long()
    behind_padding = model.config.model_type in ("roberta", "xlm-roberta", "camembert")
    first = model.config.pad_token_id + 1 if behind_padding else 0
    positions = (torch.arange(wide.shape[1]) + first).expand_as(wide)
    return {"input_ids": wide, "attention_mask": mask, "position_ids": positions}


class NaiveTextPretraining:
    """One further pre-training step."""

    def __init__(self, model: PreTrainedModel, lr: float = 1e-4) -> None:
        self.model = model.train()
        self.optimizer = pretraining_optimizer(self.model, lr)

    def step(self, seen: Tensor, labels: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """seen, labels: [T] int64, labels -100 where a token is not masked; lengths: [B]."""
        self.optimizer.zero_grad()
        loss = self.model(**inputs_of(seen, lengths, self.model), labels=padded(labels, lengths, -100)).loss
        loss.backward()
        self.optimizer.step()
        return {"loss_mlm": loss.detach()}


class NaiveTextDistillation:
    """One self-distillation step: two backward calls and a live teacher."""

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel, lr: float = 1e-4, tokens: str = "cls") -> None:
        self.model, self.tokens = model.train(), tokens
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.optimizer = pretraining_optimizer(self.model, lr)

    def step(self, seen: Tensor, labels: Tensor, lengths: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """clean: [T] int64, the texts as they are; see `NaiveTextPretraining.step`."""
        self.optimizer.zero_grad()
        loss_mlm = self.model(**inputs_of(seen, lengths, self.model), labels=padded(labels, lengths, -100)).loss
        loss_mlm.backward()
        inputs = inputs_of(clean, lengths, self.model)
        with torch.no_grad():
            target = self.teacher.base_model(**inputs).last_hidden_state
        student = self.model.base_model(**inputs).last_hidden_state
        distance = (student - target).square()
        if self.tokens == "cls":
            loss_distill = distance[:, 0].sum() / len(lengths)
        else:
            loss_distill = (distance * inputs["attention_mask"][..., None]).sum() / len(lengths)
        loss_distill.backward()
        self.optimizer.step()
        return {"loss_mlm": loss_mlm.detach(), "loss_distill": loss_distill.detach()}
