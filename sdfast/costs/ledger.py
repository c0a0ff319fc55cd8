"""What a computation costs, from torch's own operators as they are called: FLOPs of products, bytes that are alive.

The tensors are real ones on the CPU, so that what decides a step's course (masks, lengths) is there, but what the
numbers would be does not matter: a product of matrices is counted and not computed, and some other operators are not
computed either. What torch allocates for those is never touched, and so takes no memory. Fake tensors (torch's
`FakeTensorMode`) and the meta device would allocate nothing at all, but import torch's compiler, which takes two
seconds, and ask Python for every shape, which takes longer than what is computed here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN, _ONEDNN = torch.ops.aten, torch.ops.mkldnn
_Counted = tuple[int, list[int]]


def _product(left: Tensor, right: Tensor) -> _Counted:
    """FLOPs of [..., M, K] [..., K, N], a multiply-add being 2, and the shape of what comes out."""
    return 2 * left.numel() * right.shape[-1], [*left.shape[:-1], right.shape[-1]]


# The operators that multiply matrices, and one that looks up; everything else is counted as nothing.
_PRODUCTS: dict[Any, Callable[..., _Counted]] = {
    _ATEN.mm.default: _product,
    _ATEN.bmm.default: _product,
    _ATEN.addmm.default: lambda added, left, right, **_: _product(left, right),
    _ATEN.addmm_.default: lambda added, left, right, **_: _product(left, right),
    _ATEN.embedding_dense_backward.default: lambda gradient, ids, rows, *_: (0, [rows, gradient.shape[-1]]),
}
if hasattr(_ONEDNN, "_linear_pointwise"):
    _PRODUCTS |= {
        _ONEDNN._linear_pointwise.default: lambda x, weight, *_: _product(x, weight.t()),
        _ONEDNN._linear_pointwise.binary: lambda x, added, weight, *_: _product(x, weight.t()),
    }
# What takes long besides, and gives something that is like its first argument.
_ALIKE = {
    _ATEN.gelu.default,
    _ATEN.gelu_backward.default,
    _ATEN._softmax.default,
    _ATEN._softmax_backward_data.default,
    _ATEN.add.Tensor,
    _ATEN.add_.Tensor,
}


class Products(TorchDispatchMode):
    """Counts the products of matrices made inside, which are not computed: their results are arbitrary.

    Attributes:
        flops: of the products so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler to keep it away from here."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.evaluate(function, args, kwargs or {})

    def evaluate(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives."""
        product = _PRODUCTS.get(function)
        if product is not None:
            flops, shape = product(*args, **kwargs)
            self.flops += flops
            return args[0] if function is _ATEN.addmm_.default else args[0].new_empty(shape)
        if function in _ALIKE and _are_alike(args):
            return args[0] if function is _ATEN.add_.Tensor else torch.empty_like(args[0])
        if function is _ATEN._to_copy.default and args[0].dim() > 1 and args[0].is_floating_point():
            dtype = kwargs.get("dtype") or args[0].dtype
            if dtype.is_floating_point:
                return torch.empty_like(args[0], dtype=dtype)
        return function(*args, **kwargs)


def _are_alike(args: Any) -> bool:
    """Whether all tensors among them are matrices of floats, of one size and dtype."""
    first, *others = (each for each in args if isinstance(each, Tensor))
    alike = all(each.shape == first.shape and each.dtype == first.dtype for each in others)
    return alike and first.dim() > 1 and first.is_floating_point()


@dataclass
class Span:
    """The part of a step from one parameter's gradient to the next one's.

    Attributes:
        fullest: the most bytes alive in it, but for the gradients of parameters that have got them.
        name: of the parameter whose gradient ends it; empty for what comes after the last one.
        gradient: bytes of that gradient.
    """

    fullest: int = 0
    name: str = ""
    gradient: int = 0


class Ledger(Products):
    """Follows what is allocated inside, besides what was there before.

    Attributes:
        alive: bytes now, but for the gradients of parameters that have got them.
        spans: of the time since, the last one not ended yet.
    """

    def __init__(self, module: nn.Module, *given: Tensor, cuda: bool = False) -> None:
        """Set up.

        Args:
            module: which is trained.
            given: what else is there already.
            cuda: dropout keeps a byte for each number, as it does on a GPU, and not a number.
        """
        super().__init__()
        self.alive, self.spans, self.cuda = 0, [Span()], cuda
        tensors = (*module.parameters(), *module.buffers(), *given)
        self._sizes = dict.fromkeys((each.untyped_storage()._cdata for each in tensors), 0)  # by storage
        self._storages: dict[int, Any] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._ends_span(name))

    def size(self, tensor: Tensor) -> int:
        """Bytes of its storage; 0 for what was there before."""
        return self._sizes[tensor.untyped_storage()._cdata]

    def evaluate(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives; its tensors are followed from now on."""
        result = super().evaluate(function, args, kwargs)
        several = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        self.follow(*(each for each in several if isinstance(each, Tensor)))
        if self.cuda and function is _ATEN.bernoulli_.float:
            key, size = result.untyped_storage()._cdata, result.numel()
            self.alive += size - self._sizes[key]
            self._sizes[key] = size
        return result

    def follow(self, *tensors: Tensor) -> None:
        """Count tensors as alive from now on, until they are not."""
        for storage in (each.untyped_storage() for each in tensors):
            if storage._cdata not in self._sizes:
                self._born(storage, storage._cdata)
        self.spans[-1].fullest = max(self.spans[-1].fullest, self.alive)

    def _born(self, storage: torch.UntypedStorage, key: int) -> None:
        def ended(_: Any) -> None:
            self.alive -= self._sizes.pop(key)
            del self._storages[key]

        self._sizes[key] = storage.nbytes()
        self.alive += self._sizes[key]
        self._storages[key] = weakref.ref(storage, ended)

    def _ends_span(self, name: str) -> Callable[[Tensor], None]:
        def made(parameter: Tensor) -> None:
            assert parameter.grad is not None
            size = self.size(parameter.grad)
            self._sizes[parameter.grad.untyped_storage()._cdata] = 0  # no activation any more
            self.alive -= size
            self.spans[-1].name, self.spans[-1].gradient = name, size
            self.spans.append(Span(self.alive))

        return made
