"""Divergence of two linear layers' predictions, which are never there all at once."""

from __future__ import annotations

from sdfast.losses.linear_kl.functional import linear_kl

__all__ = ["linear_kl"]
