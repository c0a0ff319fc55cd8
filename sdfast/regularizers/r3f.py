"""R3F (Aghajanyan et al., ICLR 2021): the output shall not depend on a little noise on the embedded input.

    L = CE(f(e)) + weight (KL(p || p') + KL(p' || p)),   p = softmax f(e),   p' = softmax f(detached e + noise)

The divergences are summed over classes and averaged over the batch, in float32; both sides carry gradients, but the
noised one not into the embedding. `r4f` has what R4F adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class R3F:
    """Settings.

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
