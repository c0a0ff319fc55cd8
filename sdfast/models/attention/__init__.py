"""Softmax attention over groups of sequences whose tokens lie in one matrix; one file per backend."""

from sdfast.models.attention.dispatch import BACKENDS, attend, attend_across, choose_backend, why_not
from sdfast.models.attention.groups import Group, Groups, Ragged

__all__ = ["BACKENDS", "Group", "Groups", "Ragged", "attend", "attend_across", "choose_backend", "why_not"]
