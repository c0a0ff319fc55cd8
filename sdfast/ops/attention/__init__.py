"""Softmax attention over groups of sequences whose tokens lie in one matrix."""

from sdfast.ops.attention.dispatch import BACKENDS, attend, attend_across, choose_backend
from sdfast.ops.attention.groups import Group, Groups, Ragged

__all__ = ["BACKENDS", "Group", "Groups", "Ragged", "attend", "attend_across", "choose_backend"]
