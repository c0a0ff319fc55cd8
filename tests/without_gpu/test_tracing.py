"""What is compiled on a GPU is one graph for each segment, with the kernels that were chosen, in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_launches import BATCH, MASKED, PATCHES
from pretend_gpu import cuda_is_said_to_be_there
from pretended_steps import CUDA, ROBERTA, VIT
from recorded_graphs import Graphs, recorded_graphs
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier
from sdfast.modalities.texts.model import Dropouts, MaskedLanguageModel
from sdfast.models.blocks import TransformerShape, use_attention
from sdfast.models.compiled import use_compiled
from sdfast.ops.attention import dispatch

VISIBLE = PATCHES - MASKED
SHALLOW = TransformerShape(512, 1, 16, 2048)
KERNELS = {"varlen": "varlen_attn", "sdpa": "scaled_dot_product_attention"}


@pytest.fixture
def on_a_gpu() -> Iterator[None]:
    """Tensors are fake, and those made without a device are on the GPU."""
    with cuda_is_said_to_be_there(), FakeTensorMode(), CUDA:
        yield


def traced(module: Any, attention: str, compute: Callable[[Any], list[Tensor]]) -> Graphs:
    """The graphs of the module's segments in a forward pass under autocast; each has to be a whole one."""
    use_attention(module, attention)
    use_compiled(module.train())
    with recorded_graphs(fullgraph=True) as graphs, torch.autocast("cuda", torch.bfloat16):
        results = compute(module)
    assert all(each.device.type == "cuda" and each.requires_grad for each in results)
    assert graphs.breaks == []
    return graphs


def attentions(graphs: Graphs) -> set[str]:
    """Which kernels the graphs call, by their names in `KERNELS`."""
    called = " ".join(target for number in range(len(graphs.modules)) for target in graphs.targets(number))
    return {name for name, kernel in KERNELS.items() if kernel in called}


def masked_step(sizes_differ: bool, distils: bool) -> Callable[[MaskedAutoencoder], list[Tensor]]:
    """What pretrain and distill compute of the student's images, with masks of one size or of different ones."""

    def compute(module: MaskedAutoencoder) -> list[Tensor]:
        encoder, pixels = module.encoder, torch.zeros(BATCH, 3, 224, 224)
        visible = torch.zeros(BATCH, VISIBLE, dtype=torch.int64)
        valid = torch.ones(BATCH, VISIBLE, dtype=torch.bool) if sizes_differ else None
        views = [encoder.view(encoder.embed(pixels, visible), visible, valid)]
        if distils:
            views.append(encoder.view(encoder.embed(pixels), cls_only=True))
        encoded, *others = encoder.encode(*views)
        ids = None if sizes_differ else torch.zeros(BATCH, MASKED, dtype=torch.int64)
        return [module.decoder(encoded, visible, valid, ids), *others]

    return compute


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("attention", "sizes_differ", "kernels"),
    [
        ("varlen", False, {"varlen"}),
        ("varlen", True, {"varlen", "sdpa"}),  # where sequences have padding, sdpa takes its place
        ("sdpa", False, {"sdpa"}),
    ],
)
def test_the_segments_of_pretrain(attention: str, sizes_differ: bool, kernels: set[str]) -> None:
    shape = replace(VIT, encoder=replace(VIT.encoder, depth=1), decoder=SHALLOW)
    graphs = traced(MaskedAutoencoder(shape), attention, masked_step(sizes_differ, distils=False))
    assert len(graphs.modules) == 5 and not any(graphs.symbols)
    assert attentions(graphs) == kernels


@pytest.mark.usefixtures("on_a_gpu")
def test_auto_chooses_for_the_sizes_that_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fastest(candidates: Any, device: Any, dtype: torch.dtype, heads: int, dim: int, shape: Any) -> str:
        asked.append((dtype, heads, dim, shape))
        return "varlen" if heads == 12 else "sdpa"

    monkeypatch.setattr(dispatch, "fastest", fastest)
    monkeypatch.setattr(dispatch, "_known", {})
    module = MaskedAutoencoder(replace(VIT, decoder=SHALLOW))
    graphs = traced(module, "auto", masked_step(sizes_differ=False, distils=True))
    assert len(graphs.modules) == 8 and not any(graphs.symbols)
    assert attentions(graphs) == {"varlen", "sdpa"}
    masked, clean = (BATCH, 1 + VISIBLE, 1 + VISIBLE), (BATCH, 1 + PATCHES, 1 + PATCHES)
    assert asked == [
        (torch.bfloat16, 12, 64, (masked, clean)),
        (torch.bfloat16, 12, 64, (masked,)),
        (torch.bfloat16, 16, 32, ((BATCH, MASKED, 1 + PATCHES),)),
    ]


@pytest.mark.usefixtures("on_a_gpu")
def test_the_segments_of_finetune() -> None:
    graphs = traced(ViTClassifier(VIT, 10, 0.1), "varlen", lambda module: [module(torch.zeros(BATCH, 3, 224, 224))])
    assert len(graphs.modules) == 3 and not any(graphs.symbols)
    assert attentions(graphs) == {"varlen"}


@pytest.mark.usefixtures("on_a_gpu")
def test_the_segments_of_texts_are_for_any_length() -> None:
    """Attention is none of them: how texts lie in it is known on the CPU."""

    def compute(module: MaskedLanguageModel) -> list[Tensor]:
        block, made = module.encoder.blocks[0], []
        for tokens in (1900, 2100):
            rows = torch.zeros(tokens, ROBERTA.encoder.width, dtype=torch.bfloat16)
            made.append(module.head(block.after_attention(rows, rows)))
        return made

    graphs = traced(MaskedLanguageModel(ROBERTA, Dropouts(0.1, 0.1)), "auto", compute)
    assert len(graphs.modules) == 2 and all(len(symbols) == 1 for symbols in graphs.symbols)
    assert attentions(graphs) == set()
