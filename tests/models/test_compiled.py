"""Segments: what they compute is what the modules compute, and they are compiled for a kind of layer, not for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_stage import IMAGES, objective_of
from small_text_stage import text_objective_of, texts

from sdfast.data.order import Batch
from sdfast.models import compiled
from sdfast.models.checkpointing import use_checkpointing
from sdfast.models.compiled import Compilable, forget_compiled, nothing_new_compiled, segment, use_compiled
from sdfast.objectives.base import Shortcuts


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """The functions that were to be compiled, and whether for any size; they run as they are."""
    names: list[tuple[str, bool]] = []

    def compile_nothing(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        names.append((function.__qualname__, dynamic))
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    forget_compiled()
    yield names
    compiled._compiled.cache_clear()


def results(objective: Any, inputs: Any, on: bool, checkpointed: bool) -> list[torch.Tensor]:
    """The loss and all gradients of a batch."""
    use_compiled(objective.module, on)
    use_checkpointing(objective.module, checkpointed)
    objective.module.train().zero_grad()
    batch = Batch(0, torch.arange(6))
    torch.manual_seed(3)
    loss = objective.loss(inputs(batch.rows), batch, objective.draw(batch), slice(0, 6))["loss"]
    loss.backward()
    return [loss.detach(), *(each.grad.clone() for each in objective.module.parameters() if each.grad is not None)]


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("pretrain", {}),
        ("distill", {}),
        ("distill", {"tokens": "all", "layer": 1}),
        ("distill", {"layer": 1}),
        ("distill", {"shortcuts": Shortcuts(packed=False, cls_tail=False, masked_tail=False)}),
        ("finetune", {}),
        ("finetune", {"dropout": 0.5}),
    ],
)
def test_segments_of_images_compute_the_same(
    stage: str, more: dict[str, Any], checkpointed: bool, asked: list[tuple[str, bool]]
) -> None:
    objective = objective_of(stage, torch.float64, **more)
    plain = results(objective, lambda rows: IMAGES[rows], False, checkpointed)
    assert not asked
    ours = results(objective, lambda rows: IMAGES[rows], True, checkpointed)
    assert ("Block.carry", False) in asked and len(set(asked)) == len(asked)
    assert len(plain) == len(ours) > 10
    for one, other in zip(plain, ours, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra"])
@pytest.mark.parametrize(("stage", "dropout"), [("pretrain", 0.0), ("distill", 0.0), ("finetune", 0.5)])
def test_segments_of_texts_compute_the_same(
    stage: str, dropout: float, kind: str, asked: list[tuple[str, bool]]
) -> None:
    objective = text_objective_of(stage, torch.float64, dropout=dropout, kind=kind)
    plain = results(objective, texts, False, False)
    ours = results(objective, texts, True, False)
    assert ("PostNormBlock.after_attention", True) in asked
    assert len(plain) == len(ours) > 10 and all(torch.equal(*pair) for pair in zip(plain, ours, strict=True))


class Halving(Compilable):
    """A module with a segment."""

    @segment()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_a_batch_met_once_is_not_compiled_for() -> None:
    traced = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        traced.append([tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor)])
        return graph.forward

    module, make = Halving(), torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, dynamic: make(function, dynamic=dynamic, backend=backend))
        forget_compiled()
        use_compiled(module)
        for rows, new in ((4, True), (3, False), (4, False), (5, True)):
            before = len(traced)
            if new:
                out = module(torch.ones(rows))
            else:
                with nothing_new_compiled(module):
                    out = module(torch.ones(rows))
            assert out.tolist() == [0.5] * rows
            assert len(traced) - before == new
    forget_compiled()
    assert traced == [[(4,)], [(5,)]]
