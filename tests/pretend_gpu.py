"""CUDA tensors where there is no GPU: they have shapes, dtypes and a device, and no numbers.

Inside `PretendGpu`, what is made on `cuda` is a fake tensor and everything computed of it is too, while tensors on the
CPU stay real. So a training step runs as on a GPU, but for the kernels themselves, and what a GPU would do badly is
seen: waiting for the device, copying between devices, multiplying in float32.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.cuda.amp.common
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What reads numbers of a device's tensors to know what, or how much, to do next.
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "unique_dim", "_unique2", "equal"}
WAITING |= {"bincount", "repeat_interleave"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution"}
ATTENTION = ("_scaled_dot_product_", "_varlen_attn")  # how the names of its kernels begin, forward and backward
_attention = F.scaled_dot_product_attention


@contextlib.contextmanager
def cuda_is_said_to_be_there() -> Iterator[None]:
    """Autocast in bfloat16 on `cuda` is not refused, and nothing looks for a driver."""
    with contextlib.ExitStack() as stack:
        for owner, name, answer in (
            (torch.cuda.amp.common, "amp_definitely_not_available", False),
            (torch.cuda, "is_bf16_supported", True),
            (torch.cuda, "is_current_stream_capturing", False),
            (torch.cuda, "_lazy_init", None),
        ):
            stack.enter_context(mock.patch.object(owner, name, return_value=answer))
        yield


class PretendGpu(TorchDispatchMode):
    """See above; for code that runs eagerly.

    Attributes:
        watching: whether what a GPU would do badly is noted.
        faults: sentences about that.
        moved: for each place in the sources that copies from the CPU without waiting, how often it did.
        wide: names and operands' shapes of products with a float32 matrix.
        narrow: how many products had none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.watching = False
        self.faults: list[str] = []
        self.moved: dict[str, int] = defaultdict(int)
        self.wide: list[tuple[Any, ...]] = []
        self.narrow = 0
        self._around: contextlib.ExitStack | None = None

    def __enter__(self) -> PretendGpu:
        with contextlib.ExitStack() as stack:
            stack.enter_context(cuda_is_said_to_be_there())
            stack.enter_context(mock.patch.object(Tensor, "backward", backward))
            stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", fused_attention))
            before = torch._C._only_lift_cpu_tensors()
            torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") shows its copy
            stack.callback(torch._C._set_only_lift_cpu_tensors, before)
            if not torch.cuda.is_available():
                torch._C._ensureCUDADeviceGuardSet()  # one that does nothing
            super().__enter__()
            self._around = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        assert self._around is not None
        self._around.close()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        self.watching = True
        try:
            yield
        finally:
            self.watching = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        asked = kwargs.get("device")
        on_gpu = any(isinstance(each, FakeTensor) for each in given)
        if not on_gpu and (asked is None or torch.device(asked).type != "cuda"):
            return func(*args, **kwargs)
        if self.watching:
            self._watch(func, given, args, kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()  # some number: nobody knows which
        if func._schema.name == "aten::_fused_adamw_":
            return None  # it writes in place, and torch has no fake of it
        with self.fake:
            return func(*args, **kwargs)

    def _watch(self, func: Any, given: list[Tensor], args: Any, kwargs: dict[str, Any]) -> None:
        name = func._schema.name.split("::")[1]
        devices = {each.device.type for each in given}
        if _waits(name, args, kwargs) and "cuda" in devices:
            self.faults.append(f"{name} waits for the device in {_place()}")
        if name in ("_to_copy", "copy_"):
            to = torch.device(kwargs["device"]).type if kwargs.get("device") else args[0].device.type
            source = args[0 if name == "_to_copy" else 1].device.type
            unwaiting = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if (source, to) == ("cpu", "cuda") and unwaiting:
                self.moved[_place()] += 1
            elif source != to:
                self.faults.append(f"{name} from {source} to {to} in {_place()}")
        if name.startswith("index") and "cuda" in devices and any(each.device.type == "cpu" for each in _indices(args)):
            self.faults.append(f"{name} copies an index to the device in {_place()}")
        if name in PRODUCTS or name.startswith(ATTENTION):
            operands = given[:3] if name.startswith(ATTENTION) else given  # the others hold statistics of rows
            matrices = [each for each in operands if each.is_floating_point() and each.dim() > 1]
            if any(each.dtype == torch.float32 for each in matrices):
                self.wide.append((name, *(tuple(each.shape) for each in matrices)))
            else:
                self.narrow += 1


def _indices(args: Any) -> list[Tensor]:
    """Of `index` and `index_put`; the other operators take one index, which has to be on the device."""
    return [each for each in args[1] if each is not None] if isinstance(args[1], list | tuple) else []


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name in ("index", "index_put", "index_put_"):
        return any(index.dtype in (torch.bool, torch.uint8) for index in _indices(args))
    return name in WAITING and not (name == "repeat_interleave" and kwargs.get("output_size") is not None)


def _place() -> str:
    """The innermost line of sdfast that is being executed: module and function."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("sdfast."):
        frame = frame.f_back
    if frame is None:
        return "torch"
    return f"{frame.f_globals['__name__'].removeprefix('sdfast.')}.{frame.f_code.co_name}"


def backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """`Tensor.backward` of fake tensors: torch's engine asks a driver for streams before it begins.

    The nodes are called in the order in which their gradients are complete, and gradients of operands that were
    broadcast are summed, as the engine does it.
    """
    root = loss.grad_fn
    waiting = _consumers(root)
    pending: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    pending[root][0] = torch.ones_like(loss)
    ready = [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            grads = pending.pop(node, {})
            following_nodes = [(following, slot) for following, slot in node.next_functions if following is not None]
            for (following, slot), grad in zip(following_nodes, _call(node, grads), strict=True):
                if grad is not None:
                    grad = _as_operand(following, slot, grad)
                    before = pending[following].get(slot)
                    pending[following][slot] = grad if before is None else before + grad
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """`scaled_dot_product_attention` by a kernel that a GPU has: torch chooses one by asking a driver."""
    if not isinstance(q, FakeTensor):
        return _attention(q, k, v, attn_mask, dropout_p, is_causal)
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (each.to(torch.get_autocast_dtype("cuda")) for each in (q, k, v))
    bias = None
    if attn_mask is not None:
        bias = torch.zeros((), dtype=q.dtype, device=q.device).expand(*q.shape[:-1], k.shape[-2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention.default
    return kernel(q, k, v, bias, torch.is_grad_enabled(), dropout_p, is_causal)[0]


def _consumers(root: Any) -> dict[Any, int]:
    """How many edges lead to each node."""
    counts: dict[Any, int] = defaultdict(int)
    stack, seen = [root], {root}
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None:
                counts[following] += 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    return counts


def _call(node: Any, grads: dict[int, Tensor]) -> list[Tensor | None]:
    """A node's gradients, one for each node that follows."""
    wanted = [following is not None for following, _ in node.next_functions]
    if not grads:
        return [None] * sum(wanted)
    if hasattr(node, "variable"):
        variable, grad = node.variable, grads[0]
        assert grad.shape == variable.shape and grad.device == variable.device and grad.dtype == variable.dtype
        variable.grad = grad if variable.grad is None else variable.grad + grad
        return []
    given = [grads.get(slot) for slot in range(len(node._input_metadata))]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        made, wanted = node.apply(*given), list(node.needs_input_grad)  # of all operands, not of tensors alone
    else:
        made = node(*given)
    made = made if isinstance(made, tuple) else (made,)
    return [grad for grad, is_wanted in zip(made, wanted, strict=False) if is_wanted]  # what is over is None


def _as_operand(node: Any, slot: int, grad: Tensor) -> Tensor:
    """A gradient in the shape and dtype of what the node made."""
    made = node._input_metadata[slot]
    assert grad.device == made.device
    return grad.sum_to_size(made.shape).to(made.dtype)
