"""The steps of `benchmarks/` as modules, and folders of tiny masked auto-encoders to start from."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def naive() -> ModuleType:
    return importlib.import_module("naive")


@pytest.fixture(scope="session")
def honest() -> ModuleType:
    return importlib.import_module("honest")


@pytest.fixture
def mae_folder(tmp_path: Path) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(seed)
        config = transformers.ViTMAEConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=16,
            patch_size=4,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
            norm_pix_loss=True,
        )
        folder = tmp_path / f"mae-{seed}"
        transformers.ViTMAEForPreTraining(config).save_pretrained(folder)
        return folder

    return make
