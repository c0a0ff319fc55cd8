"""A further family of models is a row in a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_folders import edit_config, sentence

from sdfast.modalities.images import families as image_families
from sdfast.modalities.images.checkpoint import load_classifier, load_mae, save_classifier
from sdfast.modalities.texts import families as text_families
from sdfast.modalities.texts import kinds
from sdfast.modalities.texts.checkpoint import load_mlm, save_mlm
from sdfast.models.layout import Naming

NAMINGS = {
    **{kind: family.naming for kind, family in image_families.FAMILIES.items()},
    **{kind: family.naming for kind, family in text_families.FAMILIES.items()},
    "timm": image_families.TIMM,
}


def test_images(hugging_face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kin has the names of a ViT."""
    _, path = hugging_face("ViTModel")
    digest = load_mae(str(path)).digest
    edit_config(path, model_type="vit_kin")
    assert "vit_kin model: of image models sdfast takes vit_mae" in sentence(path)
    monkeypatch.setitem(
        image_families.FAMILIES, "vit_kin", image_families.ImageFamily("ViTKin", image_families.VIT, {})
    )
    assert load_mae(str(path)).digest == digest


def test_texts(hugging_face: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model with the names of a RoBERTa is written as what it came as."""
    _, path = hugging_face("RobertaForMaskedLM")
    state = load_mlm(str(path)).module.state_dict()
    edit_config(path, model_type="norberta")
    assert "norberta model: of text models" in sentence(path, load_mlm)
    monkeypatch.setitem(text_families.FAMILIES, "norberta", replace(text_families.FAMILIES["roberta"], name="Norberta"))
    monkeypatch.setitem(kinds.TRAITS, "norberta", kinds.TRAITS["roberta"])
    loaded = load_mlm(str(path))
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.module.state_dict().items())
    save_mlm(loaded.module, tmp_path / "out", loaded.companions, loaded.dropouts)
    again = load_mlm(str(tmp_path / "out"))
    assert again.digest == loaded.digest and again.companions.config["architectures"] == ["NorbertaForMaskedLM"]


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_names_that_are_written_are_read_as_what_they_were(naming: Naming) -> None:
    for general in naming.names:
        ours = general.replace("*", "12")
        for name in (ours, f"{ours}.weight", f"{ours}.bias"):
            targets = [naming.target(source) for source in naming.sources(name)]
            assert [target and target.name for target in targets] == [name] * len(targets)
            parts = [None] if len(targets) == 1 else [*range(len(targets))]
            assert [target and target.part for target in targets] == parts


def test_a_classifier_of_another_family_is_refused(hugging_face: Any, tmp_path: Path) -> None:
    _, path = hugging_face("ViTForImageClassification", num_labels=3)
    module, processor, names = load_classifier(path)
    save_classifier(module, tmp_path / "out", processor, names, 0.0)
    edit_config(tmp_path / "out", model_type="dinov2")
    assert "holds no ViTForImageClassification" in sentence(tmp_path / "out", load_classifier)
