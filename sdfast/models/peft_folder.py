"""What LoRA has trained, as a folder in PEFT's format: `PeftModel.from_pretrained(model, folder)` puts it on a model.

Facts on the format: peft 0.21 (config.py, utils/save_and_load.py). Names are those that modules of transformers 5 have
in memory. PEFT is not imported: it wraps forward passes, and the step here uses weights (`sdfast.models.low_rank`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sdfast.durable import save_tensors, write_json
from sdfast.models.layout import Naming, pieces_of
from sdfast.models.low_rank import QKV, LowRankLinear, low_rank_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Adapter:
    """What LoRA has trained of a module, taken from it before `merge_low_rank`."""

    def __init__(self, module: nn.Module, naming: Naming, encoder_only: bool) -> None:
        """Copy it.

        Args:
            module: a classifier, or a masked model.
            naming: of the folder that the module is written as.
            encoder_only: for the encoder alone, with transformers' names of it; else what stands on it is part of it,
                where the naming knows a classifier.
        """
        self.naming, self.encoder_only = naming, encoder_only or "classifier" not in naming.names
        self.tensors, self.ranks, self.alphas = dict[str, Tensor](), dict[str, int](), dict[str, float]()
        layers = low_rank_layers(module)
        for name, layer in layers.items():
            sources = self._modules(name)
            for source, a, b in zip(sources, *_split(layer, len(sources)), strict=True):
                if a is not None:
                    self.tensors[f"{source}.lora_A.weight"] = a.detach().cpu().clone()
                    self.tensors[f"{source}.lora_B.weight"] = b.detach().cpu().clone()
                    self.ranks[source], self.alphas[source] = len(a), layer.scale * len(a)
        inside = tuple(f"{name}." for name in layers)
        named = ((n, p) for n, p in module.named_parameters() if n.startswith("encoder.") and not n.startswith(inside))
        self.in_full = {name for name, parameter in named if parameter.requires_grad}

    def write(self, module: nn.Module, folder: Path) -> None:
        """Write the adapter; layers that were trained in full, as a classifier, are its `modules_to_save`.

        Args:
            module: the same, finished: those layers are as it has them.
            folder: made where it is not.
        """
        tensors, saved = dict(self.tensors), dict[str, None]()
        sizes = {name: parameter.shape for name, parameter in module.named_parameters()}
        for name, parameter in module.named_parameters():
            if name in self.in_full or not (self.encoder_only or name.startswith("encoder.")):
                stem, _, leaf = name.rpartition(".")
                sources = self._modules(stem, leaf)
                pieces = pieces_of(name, parameter.detach().cpu(), self.naming, sizes, len(sources))
                for source, piece in zip(sources, pieces, strict=True):
                    saved[source], tensors[f"{source}.{leaf}"] = None, piece
        rank, alpha = next(iter(self.ranks.values())), next(iter(self.alphas.values()))
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "target_modules": list(self.ranks),
            "modules_to_save": list(saved) or None,
            "rank_pattern": {name: each for name, each in self.ranks.items() if each != rank},
            "alpha_pattern": {name: each for name, each in self.alphas.items() if each != alpha},
        }
        folder.mkdir(parents=True, exist_ok=True)
        named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
        save_tensors(folder / WEIGHTS, named, {"format": "pt"})
        write_json(folder / CONFIG, config)

    def _modules(self, ours: str, leaf: str = "weight") -> list[str]:
        prefix = self.naming.prefix if self.encoder_only else ""
        return [name.removeprefix(prefix) for name in self.naming.modules(ours, leaf)]


def _split(layer: LowRankLinear, count: int) -> tuple[list[Tensor | None], list[Tensor]]:
    """A and B of each of the layers that the source has for one: A is None for one that is not adapted."""
    a, b = dict(layer.lora_A.items()), dict(layer.lora_B.items())
    if not set(a) <= set(QKV):
        (whole,) = a
        return [a[whole]] * count, list(b[whole].chunk(count))
    if count == len(QKV):
        return [a.get(part) for part in QKV], [b.get(part, layer.base) for part in QKV]
    # one matrix there too: the products side by side
    parts = [part for part in QKV if part in a]
    wide = layer.base.new_zeros(layer.out_features, sum(len(a[part]) for part in parts))
    column = 0
    for part in parts:
        rows, rank = layer.rows(part), len(a[part])
        wide[rows, column : column + rank] = b[part].detach()
        column += rank
    return [torch.cat([a[part] for part in parts])], [wide]
