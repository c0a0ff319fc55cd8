"""Typed configuration: preset, then file, then dotted overrides; printable, and exportable as a JSON schema."""

from __future__ import annotations

from sdfast.config.keys import deciding_keys, refuse_other_modality, with_own_settings
from sdfast.config.resolve import presets, resolve
from sdfast.config.sections import (
    HEADS,
    MASK_RATIOS,
    DistillConfig,
    EngineConfig,
    FinetuneConfig,
    LoraConfig,
    ModalityName,
    OptimisationConfig,
    PretrainConfig,
    TeacherConfig,
    ZeroConfig,
)
from sdfast.config.whole import Config, leaves, valid_keys

__all__ = [
    "HEADS",
    "MASK_RATIOS",
    "Config",
    "DistillConfig",
    "EngineConfig",
    "FinetuneConfig",
    "LoraConfig",
    "ModalityName",
    "OptimisationConfig",
    "PretrainConfig",
    "TeacherConfig",
    "ZeroConfig",
    "deciding_keys",
    "leaves",
    "presets",
    "refuse_other_modality",
    "resolve",
    "valid_keys",
    "with_own_settings",
]
