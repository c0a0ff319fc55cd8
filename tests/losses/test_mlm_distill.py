"""The text loss against plain Python, transformers and the image loss's representation part."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sdfast.losses import mae_distill_loss, mlm_distill_loss
from sdfast.ops import registry


def batch(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) < 0.6] = -100
    return {
        "logits": torch.randn(3, 7, 11, generator=generator, dtype=dtype).requires_grad_(),
        "labels": labels,
        "student": torch.randn(3, 5, generator=generator, dtype=dtype).requires_grad_(),
        "teacher": torch.randn(8, 5, generator=generator, dtype=dtype),
        "rows": torch.tensor([7, 0, 3]),
    }


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_parts_and_gradients(backend: str) -> None:
    if registry.why_not("mae_distill", backend, "cpu") is not None:
        pytest.skip(str(registry.why_not("mae_distill", backend, "cpu")))
    arguments = batch()
    out = mlm_distill_loss(**arguments, mlm_weight=0.5, distill_weight=3.0, backend=backend)
    entropies = [
        math.log(math.fsum(math.exp(v) for v in row.tolist())) - row[label].item()
        for row, label in zip(arguments["logits"].flatten(0, 1), arguments["labels"].flatten().tolist(), strict=True)
        if label != -100
    ]
    mlm = math.fsum(entropies) / len(entropies)
    difference = arguments["student"] - arguments["teacher"][arguments["rows"]]
    distill = difference.square().sum().item() / 3
    assert out.mlm.item() == pytest.approx(mlm, rel=1e-12)
    assert out.distill.item() == pytest.approx(distill, rel=1e-12)
    assert out.loss.item() == pytest.approx(0.5 * mlm + 3.0 * distill, rel=1e-12)
    assert not out.mlm.requires_grad and not out.distill.requires_grad
    grad_logits, grad_student = torch.autograd.grad(out.loss, (arguments["logits"], arguments["student"]))
    torch.testing.assert_close(grad_student, 3.0 * 2 * difference / 3)
    assert (grad_logits[arguments["labels"] == -100] == 0).all()
    plain = torch.nn.functional.cross_entropy(arguments["logits"].flatten(0, 1), arguments["labels"].flatten())
    torch.testing.assert_close(grad_logits, 0.5 * torch.autograd.grad(plain, arguments["logits"])[0])


def test_each_part_alone_and_masked_positions_alone() -> None:
    arguments = batch()
    both = mlm_distill_loss(**arguments, backend="reference")
    tokens = mlm_distill_loss(arguments["logits"], arguments["labels"])
    assert tokens.loss.item() == both.mlm.item() and tokens.distill.item() == 0.0
    masked = arguments["labels"] != -100
    few = mlm_distill_loss(arguments["logits"][masked], arguments["labels"][masked])
    assert few.loss.item() == pytest.approx(both.mlm.item(), rel=1e-12)
    features = {name: arguments[name] for name in ("student", "teacher", "rows")}
    alone = mlm_distill_loss(**features, backend="reference")
    assert alone.loss.item() == mae_distill_loss(**features, backend="reference").loss.item()
    assert alone.mlm.item() == 0.0


def test_no_masked_token_gives_zero() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    out = mlm_distill_loss(logits, torch.full((2, 3), -100))
    out.loss.backward()
    assert out.loss.item() == 0.0 and (logits.grad == 0).all()


def test_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForMaskedLM(config).eval()
    ids, labels = torch.randint(0, 40, (2, 9)), torch.randint(0, 40, (2, 9))
    labels[:, ::2] = -100
    theirs = model(ids, labels=labels)
    assert mlm_distill_loss(theirs.logits, labels).loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)


def test_low_precision_logits_and_compile() -> None:
    torch._dynamo.reset()
    arguments = batch(torch.bfloat16)
    out = torch.compile(mlm_distill_loss, fullgraph=True, backend="aot_eager")(**arguments)
    wide = mlm_distill_loss(**{k: v.double() if v.is_floating_point() else v for k, v in arguments.items()})
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss.double(), wide.loss, rtol=1e-6, atol=1e-6)


def test_the_head_in_place_of_logits() -> None:
    arguments = batch()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(11, 4, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(11, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([3, 10, 0, 3, 7, 1])
    features = {name: arguments[name] for name in ("student", "teacher", "rows")}
    made = {"hidden": hidden, "head_weight": weight, "head_bias": bias}
    plain = mlm_distill_loss(torch.nn.functional.linear(hidden, weight, bias), labels, **features, mlm_weight=0.5)
    ours = mlm_distill_loss(labels=labels, **features, **made, mlm_weight=0.5)
    weighted = mlm_distill_loss(labels=labels, **made, token_weights=torch.full((6,), 0.25).double())
    assert ours.mlm.item() == pytest.approx(plain.mlm.item(), rel=1e-12) == weighted.mlm.item() * 4 / 6
    assert ours.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
    inputs = (hidden, weight, bias, arguments["student"])
    for mine, theirs in zip(
        torch.autograd.grad(ours.loss, inputs), torch.autograd.grad(plain.loss, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    for bad in ({"hidden": hidden}, {"hidden": hidden, "labels": labels}, {**made, "logits": hidden, "labels": labels}):
        with pytest.raises(ValueError, match="hidden should be given with head_weight"):
            mlm_distill_loss(**bad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": None, "student": None}, ValueError, "logits.*student"),
        ({"labels": None}, ValueError, "^labels should be given with logits"),
        ({"logits": None}, ValueError, "^labels was given without logits"),
        ({"student": None}, ValueError, "^teacher was given without student"),
        ({"labels": torch.zeros(3, 6).long()}, ValueError, r"^labels should have shape \[3, 7\]"),
        ({"labels": torch.zeros(3, 7)}, TypeError, "^labels should be torch.int64"),
        ({"logits": torch.zeros(3, 7, 11).long()}, TypeError, "^logits should be torch.float32"),
        ({"logits": torch.zeros(7)}, ValueError, r"^logits should have shape \[B, T, V\]"),
        ({"logits": [1.0]}, TypeError, "^logits should be a tensor"),
        ({"labels": torch.zeros(3, 7, device="meta").long()}, ValueError, "^labels should be on logits' device"),
        ({"rows": torch.tensor([0, 1, 8])}, ValueError, r"^rows should lie in \[0, 8\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mlm_distill_loss(**{**batch(), **change})
