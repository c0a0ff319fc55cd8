"""R3F (Aghajanyan et al., ICLR 2021): the output shall not depend on a little noise on the embedded input.

    L = CE(f(e)) + weight (KL(p || p') + KL(p' || p)),   p = softmax f(e),   p' = softmax f(detached e + noise)

The divergences are summed over classes and averaged over the batch, in float32; both sides carry gradients, but the
noised one not into the embedding. R4F adds a spectral norm on the classification head (Miyato et al., ICLR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

_FIRST_ITERATIONS = 15
_EPS = 1e-12


@dataclass(frozen=True)
class R3F:
    """The settings of R3F and R4F.

    Attributes:
        weight: of the two divergences.
        eps: size of the noise.
        noise: `normal`, of deviation eps, or `uniform` on [-eps, eps].
    """

    weight: float = 1.0
    eps: float = 1e-5
    noise: Literal["normal", "uniform"] = "normal"

    def draw(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Noise from torch's generator."""
        empty = torch.empty(shape, device=device, dtype=dtype)
        return empty.normal_(0.0, self.eps) if self.noise == "normal" else empty.uniform_(-self.eps, self.eps)


def symmetric_kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) of the softmax of logits [B, C], summed over classes and batch, in float32 at least.

    The entropies cancel: what is left is sum (p - q)(log p - log q).
    """
    dtype = torch.promote_types(left.dtype, torch.float32)
    log_p, log_q = F.log_softmax(left.to(dtype), dim=1), F.log_softmax(right.to(dtype), dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum()


class SpectralNorm(nn.Module):
    """A weight divided by its largest singular value, which is followed by one power iteration a training step.

    In the weight's own precision, under autocast too. The vectors are buffers, so that a checkpoint has them.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, seed: int) -> None:
        super().__init__()
        right = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(seed))
        self.register_buffer("left", torch.empty(weight.shape[0]).to(weight))
        self.register_buffer("right", F.normalize(right, dim=0).to(weight))
        for _ in range(_FIRST_ITERATIONS):
            self._iterate(weight)

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        self.left.copy_(F.normalize(weight.mv(self.right), dim=0, eps=_EPS))
        self.right.copy_(F.normalize(weight.t().mv(self.left), dim=0, eps=_EPS))

    def forward(self, weight: Tensor) -> Tensor:
        """Divide a weight by its largest singular value: [C, D] -> [C, D]."""
        with torch.autocast(weight.device.type, enabled=False):
            if self.training:
                self._iterate(weight)
            # copies: the next step overwrites what this one's backward pass still reads
            return weight / self.left.clone().dot(weight.mv(self.right.clone()))


def add_spectral_norm(head: nn.Linear, seed: int) -> None:
    """Have a head divide its weight by its largest singular value; `seed` is of the first vector."""
    parametrize.register_parametrization(head, "weight", SpectralNorm(head.weight.detach(), seed))


def folded_state(state: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """What `fold_spectral_norm` makes of a state whose module's head has that name; without spectral norm, the same."""
    prefix = f"{head}.parametrizations.weight."
    if f"{prefix}original" not in state:
        return state
    weight, left, right = (state[prefix + name] for name in ("original", "0.left", "0.right"))
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return {**rest, f"{head}.weight": weight / left.dot(weight.mv(right))}


def fold_spectral_norm(head: nn.Linear) -> None:
    """Make the divided weight the head's own, with the vectors as the last step left them."""
    head.eval()
    parametrize.remove_parametrizations(head, "weight", leave_parametrized=True)
