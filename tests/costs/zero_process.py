"""A rank of DeepSpeed on a CPU: for each case the bytes of tensors between steps, and at the worst moment of one."""

from __future__ import annotations

import copy
import gc
import json
import sys
import warnings
from typing import Any

import torch
from torch import nn

from sdfast.config import PretrainConfig
from sdfast.data.order import Batch
from sdfast.engine.deepspeed_options import zero_sizes
from sdfast.engine.zero import import_deepspeed
from sdfast.modalities.images.model import MaskedAutoencoder, ViTShape
from sdfast.modalities.images.objectives import MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.models.blocks import TransformerShape
from sdfast.models.checkpointing import use_checkpointing
from sdfast.objectives.base import Shortcuts
from sdfast.objectives.masked import MaskedTraining

SHAPE = ViTShape((96, 96), 16, 3, TransformerShape(384, 6, 6, 1536), TransformerShape(192, 2, 6, 768))


class Step(nn.Module):
    """What DeepSpeed trains: a batch's loss."""

    def __init__(self) -> None:
        super().__init__()
        self.module = MaskedAutoencoder(SHAPE)
        normalise = Normalise((0.5,) * 3, (0.2,) * 3)
        shortcuts = Shortcuts(packed=True, cls_tail=True, masked_tail=True)
        masked = MaskedImages(normalise, PretrainConfig())
        self.objective = [MaskedTraining(self.module, masked, 0, shortcuts=shortcuts)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch = Batch(0, torch.arange(len(images)))
        objective = self.objective[0]
        return objective.loss(images, batch, objective.draw(batch), slice(0, len(images)))["loss"]


def live_bytes() -> int:
    """Of the distinct storages of all tensors."""
    gc.collect()
    storages: dict[int, int] = {}
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.device.type == "cpu":
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


def growth(step: Any) -> int:
    """Largest sum of what torch's CPU allocator gave and has not got back."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    live = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def main(zero: int, batch: int, checkpointing: bool) -> None:
    deepspeed = import_deepspeed(torch.device("cpu"))
    torch.manual_seed(0)
    step = Step()
    numbers = [p.numel() for p in step.parameters() if p.requires_grad]
    sizes = zero_sizes(sum(numbers), sum(p.numel() for p in step.parameters()))
    use_checkpointing(step, checkpointing)
    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], lr=1e-4, fused=True)
    settings = {
        "train_micro_batch_size_per_gpu": batch,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": zero, **sizes},
    }
    engine, *_ = deepspeed.initialize(model=step, optimizer=optimizer, config=copy.deepcopy(settings))
    images = torch.randint(0, 256, (batch, 96, 96, 3), dtype=torch.uint8)

    def once() -> None:
        engine.backward(engine(images))
        engine.step()

    for _ in range(2):
        once()
    standing = live_bytes()
    print(json.dumps({"standing": standing, "peak": standing + growth(once)}), flush=True)
    engine.destroy()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for case in sys.argv[1:]:  # as 2:96:plain
        zero, batch, more = case.split(":")
        main(int(zero), int(batch), more == "checkpointing")
