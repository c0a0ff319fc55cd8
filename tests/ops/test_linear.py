"""The linear layer with its own float32 products on a CPU, oneDNN's or bf16x6, against `F.linear` in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdfast.models.blocks import Block, TransformerShape
from sdfast.ops.attention import Group, Groups
from sdfast.ops.linear import Linear, fp32_matmul, linear
from sdfast.ops.linear import layer as module


@dataclass(frozen=True)
class Case:
    """How to build the inputs of one call."""

    name: str
    rows: tuple[int, ...] = (100,)
    inputs: int = 24
    outputs: int = 40
    bias: bool = True
    residual: bool = False
    layout: str = "contiguous"  # contiguous | transposed | sliced
    grad: str = "dense"  # dense | transposed | expanded
    frozen: str = ""  # letters of x, w, b, r
    own: bool = True  # whether its products are those of this package

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("with bias"),
    Case("without bias", bias=False),
    Case("residual", residual=True),
    Case("residual without bias", bias=False, residual=True),
    Case("ViT-Ti", (197,), 192, 768, residual=True),
    Case("odd sizes", (67,), 13, 7, residual=True),
    Case("one input, one output", (64,), 1, 1),
    Case("few rows", (63,), residual=True, own=False),
    Case("3-D", (4, 25), residual=True, own=False),
    Case("one vector", (), residual=True, own=False),
    Case("no rows", (0,), residual=True, own=False),
    Case("transposed", residual=True, layout="transposed"),
    Case("sliced", residual=True, layout="sliced"),
    Case("transposed grad_output", residual=True, grad="transposed"),
    Case("expanded grad_output", residual=True, grad="expanded"),
    Case("frozen weight", residual=True, frozen="w"),
    Case("frozen layer", residual=True, frozen="wb"),
    Case("first layer", residual=True, frozen="xr"),
]
NAMES = "xwbr"


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "sliced":
        wide = torch.full((2 * tensor.shape[0], tensor.shape[1] + 3), 77.0, dtype=tensor.dtype)
        wide[::2, 1:-2] = tensor
        return wide[::2, 1:-2]
    return tensor


def build(case: Case, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor | None], Tensor]:
    """x, w, b and r by name, and grad_output; the values are float32's in every dtype."""
    rng = torch.Generator().manual_seed(0)
    shapes = {"x": (*case.rows, case.inputs), "w": (case.outputs, case.inputs), "b": (case.outputs,)}
    made: dict[str, Tensor | None] = {}
    for name, shape in {**shapes, "r": (*case.rows, case.outputs)}.items():
        value = torch.randn(shape, generator=rng).to(dtype)
        value = lay_out(value, case.layout) if name in "xr" else value
        made[name] = value.requires_grad_(name not in case.frozen)
    if not case.bias:
        made["b"] = None
    if not case.residual:
        made["r"] = None
    grad = torch.randn((*case.rows, case.outputs), generator=rng).to(dtype) * 2.5
    if case.grad == "expanded":
        grad = grad[:1].expand_as(grad)
    return made, lay_out(grad, "transposed" if case.grad == "transposed" else "contiguous")


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    out = F.linear(x, weight, bias)
    return out if residual is None else out + residual


def product_of(out: Tensor) -> Any:
    """What made it; None if that was torch."""
    return getattr(out.grad_fn, "product", None)


def results(function: Any, case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The output and the gradients of what is not frozen."""
    inputs, grad_output = build(case, dtype)
    out = function(*(inputs[name] for name in NAMES))
    if function is linear:
        assert (product_of(out) is not None) == (case.own and dtype == torch.float32)
    wanted = {name: each for name, each in inputs.items() if each is not None and each.requires_grad}
    grads = torch.autograd.grad(out, list(wanted.values()), grad_output)
    for name, value in build(case, dtype)[0].items():  # nothing was written into
        assert value is None or torch.equal(value, inputs[name])
    return {"out": out.detach(), **dict(zip(wanted, grads, strict=True))}


@pytest.fixture(params=["onednn", "bf16x6 plain", "bf16x6 amx"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The function that multiplies meanwhile."""
    name, _, level = request.param.partition(" ")
    if name == "onednn":
        if fp32_matmul.why_not_onednn() is not None:
            pytest.skip("oneDNN's linear operator is not there, or not known to be faster here")
        with fp32_matmul.float32_products("ieee"):
            yield fp32_matmul.onednn
        return
    monkeypatch.setenv("SDFAST_SIMD", level)
    if (reason := fp32_matmul.why_not_bf16x6()) is not None:
        pytest.skip(reason)
    try:
        torch.ops.sdfast.simd_level()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    monkeypatch.setattr(module, "_SMALLEST_WEIGHTS", 24 * 40)
    with fp32_matmul.float32_products("bf16x6"):
        yield fp32_matmul.bf16x6


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_that_of_eager(case: Case, path: Any) -> None:
    ours, eager, truth = results(linear, case), results(plain, case), results(plain, case, torch.float64)
    assert ours.keys() == eager.keys() == truth.keys()
    for name, exact in truth.items():
        assert ours[name].shape == exact.shape and ours[name].dtype == torch.float32
        if exact.numel():
            error, eagers = ((each[name].double() - exact).abs().max().item() for each in (ours, eager))
            unit = torch.finfo(torch.float32).eps / 2 * exact.abs().max().item()
            assert error <= 2 * max(eagers, unit), f"{case}: {name} is off by {error:.3g}, eager by {eagers:.3g}"


def test_a_frozen_weight_costs_no_product(path: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counted = {}
    for frozen in ("", "w", "x"):
        inputs, grad_output = build(Case("frozen", frozen=frozen))
        out = linear(inputs["x"], inputs["w"], inputs["b"], None)
        wanted = [each for each in (inputs["x"], inputs["w"]) if each is not None and each.requires_grad]
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(out, wanted, grad_output)
        counted[frozen] = counter.get_total_flops()
    one = 2 * 100 * 24 * 40
    # The counter does not know oneDNN's operator, which makes the gradient of the input.
    of_input = 0 if path is fp32_matmul.onednn else one
    assert counted == {"": of_input + one, "w": of_input, "x": one}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_fall_back(dtype: torch.dtype) -> None:
    case = Case("other dtype", residual=True)
    for ours, eager in zip(results(linear, case, dtype).values(), results(plain, case, dtype).values(), strict=True):
        assert torch.equal(ours, eager)


def test_autocast_falls_back() -> None:
    inputs, _ = build(Case("autocast"))
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(*(inputs[name] for name in NAMES))
        assert out.dtype == torch.bfloat16 and product_of(out) is None
        assert torch.equal(out, F.linear(*(inputs[name] for name in NAMES[:3])))


def test_the_compiler_takes_the_fallback_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    torch._dynamo.reset()
    case = Case("compiled", residual=True)
    inputs, _ = build(case)
    out = torch.compile(linear, fullgraph=True, backend="aot_eager")(*(inputs[name] for name in NAMES))
    torch.testing.assert_close(out, plain(*(inputs[name] for name in NAMES)))  # type: ignore[arg-type]
    assert not [each for each in recwarn if "lru_cache" in str(each.message)]


def test_gradcheck_of_the_fallback() -> None:
    inputs, _ = build(Case("gradcheck", (5,), 4, 3, residual=True), torch.float64)
    assert torch.autograd.gradcheck(linear, tuple(inputs[name] for name in NAMES))
    assert torch.autograd.gradgradcheck(linear, tuple(inputs[name] for name in NAMES))


def test_a_second_derivative_is_refused(path: Any) -> None:
    inputs, _ = build(Case("second derivative"))
    out = linear(*(inputs[name] for name in NAMES))
    (grad,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_layer_is_an_ordinary_one() -> None:
    ours, theirs = Linear(24, 40), nn.Linear(24, 40)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert Linear(24, 40, bias=False).state_dict().keys() == {"weight"}
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(80, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x, residual=torch.ones(80, 40)), theirs(x) + 1)


def test_checkpointing_a_block_changes_nothing(path: Any) -> None:
    torch.manual_seed(0)
    block = Block(TransformerShape(16, 1, 2, 32), 1e-6, True)
    groups = Groups((Group(4, 20, 20),))

    def gradients(call: Any) -> list[Tensor]:
        x = torch.randn(80, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = call(x)
        return [out, *torch.autograd.grad(out.square().sum(), (x, *block.parameters()))]

    kept = gradients(lambda x: block(x, groups))
    again = gradients(lambda x: checkpoint(block, x, groups, use_reentrant=False))
    assert product_of(block.fc1(torch.ones(80, 16))) is path
    assert all(torch.equal(ours, plainly) for ours, plainly in zip(again, kept, strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiled_block_of_many_rows_has_no_graph_break() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = Block(TransformerShape(16, 1, 2, 32), 1e-6, True)
    groups, x = Groups((Group(4, 20, 20),)), torch.randn(80, 16)
    out = torch.compile(block, fullgraph=True, backend="aot_eager")(x, groups)
    torch.testing.assert_close(out, block(x, groups))


def test_processes_that_share_a_batch_take_one_path_whatever_their_rows(
    path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed reduces gradients as they come, which the path decides; without gradients they are as one is."""
    x, weight = torch.zeros(64, 8, requires_grad=True), torch.zeros(4, 8)
    for world, taken in ((1, path), (2, None)):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda world=world: world)
        assert product_of(linear(x, weight, None)) == taken
        with torch.no_grad():
            assert fp32_matmul.bf16x6_is_on() == (path is fp32_matmul.bf16x6)


MIXED = [
    Case("2-D"),
    Case("3-D", (4, 25)),
    Case("without bias", bias=False),
    Case("residual", residual=True),
    Case("first layer", frozen="x"),
    Case("one row", (1,)),
]


def mixed_errors(case: Case, device: str, ours: bool, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Under autocast in bfloat16: how far the output and the gradients of x, weight and bias are from float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    tensors = {"x": draw(*case.rows, case.inputs), "w": draw(case.outputs, case.inputs) / 5}
    tensors |= {"b": draw(case.outputs)} if case.bias else {}
    tensors |= {"r": draw(*case.rows, case.outputs)} if case.residual else {}
    grad = draw(*case.rows, case.outputs)

    def results(dtype: torch.dtype, where: str) -> list[Tensor]:
        given = {
            name: value.to(where, dtype).requires_grad_(name not in case.frozen) for name, value in tensors.items()
        }
        with monkeypatch.context() as patch, torch.autocast(where, torch.bfloat16, enabled=dtype != torch.float64):
            if where == "cpu" and ours and dtype != torch.float64:  # what a GPU has and a CPU has not
                patch.setattr(module, "_is_mixed", lambda x, weight: True)
                patch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
                patch.setattr(torch, "mm", wide_product)
            out = linear(given["x"], given["w"], given.get("b"), given.get("r"))
            wanted = [value for value in given.values() if value.requires_grad]
            gradients = torch.autograd.grad(out, wanted, grad.to(where, out.dtype))
        assert [each.dtype for each in gradients] == [dtype] * len(wanted)
        return [each.detach().double().cpu() for each in (out, *gradients)]

    if not ours:
        monkeypatch.setattr(module, "_is_mixed", lambda x, weight: False)
    truth = results(torch.float64, "cpu")
    return [
        float((got - true).norm() / true.norm())
        for got, true in zip(results(torch.float32, device), truth, strict=True)
    ]


def wide_product(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """`torch.mm` with its argument for the result's type."""
    return torch.matmul(a, b) if out_dtype is None else torch.matmul(a.to(out_dtype), b.to(out_dtype))


@pytest.mark.parametrize("case", MIXED, ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_under_autocast_on_a_gpu(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        allowed = mixed_errors(case, device, False, patch)
    errors = mixed_errors(case, device, True, monkeypatch)
    assert len(errors) == len(allowed) >= 2
    assert all(error <= 2 * bound + 1e-7 for error, bound in zip(errors, allowed, strict=True))


def test_no_rows_under_autocast_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the language-model head is given where no word of a batch is masked."""
    monkeypatch.setattr(module, "_is_mixed", lambda x, weight: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(torch, "mm", wide_product)
    layer, x = Linear(24, 40), torch.zeros(0, 24, requires_grad=True)
    out = layer(x)
    gradients = torch.autograd.grad(out.sum(), (x, layer.weight, layer.bias))
    assert out.shape == (0, 40) and [each.shape for each in gradients] == [(0, 24), (40, 24), (40,)]
    assert all((each == 0).all() for each in gradients)
