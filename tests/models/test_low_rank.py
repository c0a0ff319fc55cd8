"""LoRA computes what PEFT computes on transformers' model, trains A and B alone, and its folders are PEFT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from text_model_samples import BATCH, padded
from torch import Tensor, nn
from tower_samples import expected_of, save_tower

from sdfast.modalities.images import checkpoint as images
from sdfast.modalities.images.families import VIT
from sdfast.modalities.texts import checkpoint as texts
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.model import Dropouts
from sdfast.models.layout import Naming
from sdfast.models.low_rank import (
    QKV,
    TARGETS,
    LowRankLinear,
    add_low_rank,
    low_rank_layers,
    merge_low_rank,
    merged_state,
)
from sdfast.models.peft_folder import Adapter
from sdfast.ops.linear import Linear

TIGHT = {"rtol": 0.0, "atol": 1e-9}
CHOICES = [("query", "value"), TARGETS, ("key", "fc2"), ("proj", "fc1")]
KINDS = ["ViT", "Roberta", "Bert", "DistilBert", "Electra", "ModernBert", "EuroBert"]
DEPTH = {"ViTMAE": {}, "DistilBert": {"n_layers": 3}, "ModernBert": {"num_hidden_layers": 3, "layer_types": None}}


def opened(kind: str, path: Path) -> tuple[Any, Naming, Any]:
    """Our classifier of a folder in float64, the names of its tensors, and what writes it."""
    if kind == "ViT":
        module, processor, names = images.load_classifier(path)
        return module.double(), VIT, lambda to: images.save_classifier(module, to, processor, names, 0.0)
    text, companions, names = texts.load_classifier(path)
    naming = FAMILIES[text.shape.kind].naming
    return text.double(), naming, lambda to: texts.save_classifier(text, to, companions, names, Dropouts())


def given(kind: str, pixels: Tensor, ours: Any) -> tuple[Any, dict[str, Any]]:
    """The same inputs for our model and for transformers'."""
    if kind == "ViT":
        return pixels, {"pixel_values": pixels}
    ids, mask = padded(BATCH, ours.shape.pad_id)
    return BATCH, {"input_ids": ids, "attention_mask": mask}


def scramble_adapter(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def their_gradients(layer: LowRankLinear, sources: list[str], their: dict[str, Tensor]) -> dict[str, Any]:
    """Of A and B, by our parts; `sources` are the layers that PEFT has for ours."""
    a, b = ([their.get(f"{source}.lora_{matrix}.default.weight") for source in sources] for matrix in "AB")
    parts = [part for part in QKV if part in layer.lora_A]
    if not parts:  # one A, which the halves of a gated layer share
        return {part: (torch.stack(a).sum(dim=0), torch.cat(b)) for part in layer.lora_A}  # type: ignore[arg-type]
    if len(sources) == len(QKV):
        return {part: (a[QKV.index(part)], b[QKV.index(part)]) for part in parts}
    ((wide_a,), (wide_b,)) = a, b
    assert wide_a is not None and wide_b is not None  # side by side: see below
    columns = {part: slice(3 * place, 3 * place + 3) for place, part in enumerate(parts)}
    return {part: (wide_a[columns[part]], wide_b[layer.rows(part), columns[part]]) for part in parts}


def their_class(kind: str) -> str:
    return f"{kind}For{'ImageClassification' if kind == 'ViT' else 'SequenceClassification'}"


@pytest.mark.parametrize("targets", CHOICES, ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_gradients_and_folders_are_pefts(
    kind: str, targets: tuple[str, ...], hugging_face: Any, pixels: Tensor, tmp_path: Path
) -> None:
    """PEFT with the adapter's folder on transformers' model, our layers, and the merged folder in transformers."""
    peft = pytest.importorskip("peft")
    theirs, path = hugging_face(their_class(kind), num_labels=3)
    theirs.double()
    ours, naming, save = opened(kind, path)
    add_low_rank(ours.eval(), targets, rank=3, alpha=4.5, seed=1)
    scramble_adapter(ours)
    adapter = Adapter(ours, naming, encoder_only=False)
    seen, named = given(kind, pixels, ours)
    logits, weight = ours(seen), torch.randn(3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (logits @ weight).sum().backward()
    gradients = {f"{n}.{a}": p.grad for n, layer in low_rank_layers(ours).items() for a, p in layer.named_parameters()}
    assert {name.rpartition(".")[2] for name, grad in gradients.items() if grad is None} <= {"base", "bias"}
    adapter.write(ours, tmp_path / "adapter")

    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)
    wanted = wrapped(**named).logits
    torch.testing.assert_close(logits, wanted, **TIGHT)
    (wanted @ weight).sum().backward()
    their = {name: p.grad for name, p in wrapped.named_parameters() if "lora_" in name}
    matched = 0
    for name, layer in low_rank_layers(ours).items():
        sources = [f"base_model.model.{source}" for source in naming.modules(name)]
        for part, (a, b) in their_gradients(layer, sources, their).items():
            torch.testing.assert_close(gradients[f"{name}.lora_A.{part}"], a, **TIGHT)
            torch.testing.assert_close(gradients[f"{name}.lora_B.{part}"], b, **TIGHT)
        matched += sum(f"{source}.lora_A.default.weight" in their for source in sources)
    assert 2 * matched == len(their)

    merge_low_rank(ours)
    save(tmp_path / "merged")
    merged = type(theirs).from_pretrained(tmp_path / "merged", dtype=torch.float64).eval()
    torch.testing.assert_close(merged(**named).logits, wanted, **TIGHT)


@pytest.mark.parametrize("kind", ["ViTMAE", *KINDS[1:]])
def test_an_encoders_adapter_loads_on_its_own_class(
    kind: str, hugging_face: Any, pixels: Tensor, tmp_path: Path
) -> None:
    """That of further pre-training, where norms and the last block are trained in full."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    head = "ForPreTraining" if kind == "ViTMAE" else "ForMaskedLM"
    _, path = hugging_face(f"{kind}{head}", **DEPTH.get(kind, {"num_hidden_layers": 3}))
    if kind == "ViTMAE":
        loaded: Any = images.load_mae(str(path))
        images.save_encoder(loaded.module.double(), tmp_path / "base", loaded.processor)
        naming, base = VIT, tmp_path / "base"
    else:
        loaded, base = texts.load_mlm(str(path), dropouts=Dropouts()), path
        naming = FAMILIES[loaded.shape.kind].naming
    ours = loaded.module.double().eval()
    add_low_rank(ours, TARGETS, rank=2, alpha=2.0, seed=1, norms=True, full_blocks=1)
    with torch.no_grad():
        for parameter in ours.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapter = Adapter(ours, naming, encoder_only=True)
    seen, named = given("ViT" if kind == "ViTMAE" else kind, pixels, ours)
    wanted = ours.encoder.features(seen, "cls")
    adapter.write(ours, tmp_path / "adapter")
    theirs = transformers.AutoModel.from_pretrained(base, dtype=torch.float64).eval()
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    torch.testing.assert_close(wrapped(**named).last_hidden_state[:, 0], wanted, **TIGHT)


def test_a_source_with_one_matrix_gets_the_products_side_by_side() -> None:
    """As a model whose query, key and value are one layer in transformers: equal to the sum of the parts."""
    naming = Naming({"encoder.blocks.*.attn.qkv": ["layers.*.Wqkv"]}, ignored=VIT.ignored, wanted="")
    torch.manual_seed(1)
    layer = LowRankLinear(Linear(6, 10).double(), ("query", "value"), 2, 3.0, torch.Generator().manual_seed(1))
    scramble_adapter(layer)
    module = nn.Module()
    module.encoder = nn.Module()
    module.encoder.blocks = nn.ModuleList([nn.Module()])
    module.encoder.blocks[0].attn = nn.Module()
    module.encoder.blocks[0].attn.qkv = layer
    found = Adapter(module, naming, encoder_only=False)
    a, b = (found.tensors[f"layers.0.Wqkv.lora_{matrix}.weight"] for matrix in "AB")
    assert a.shape == (4, 6) and found.ranks == {"layers.0.Wqkv": 4}
    scale = found.alphas["layers.0.Wqkv"] / 4
    torch.testing.assert_close(layer.base + scale * b @ a, layer.weight, **TIGHT)
    assert layer.rows("value") == slice(8, 10)  # two values, and two keys that are not adapted


@pytest.fixture(params=["ViT", "Roberta"])
def classifier(request: Any, hugging_face: Any, pixels: Tensor) -> tuple[Any, Any]:
    _, path = hugging_face(their_class(request.param), num_labels=3)
    module = opened(request.param, path)[0].eval()
    return module, given(request.param, pixels, module)[0]


def test_the_start_is_the_model_itself_and_the_draw_follows_the_seed(classifier: tuple[Any, Any]) -> None:
    module, seen = classifier
    before = module(seen)
    add_low_rank(module, TARGETS, 4, 8.0, seed=3)
    torch.testing.assert_close(module(seen), before, **TIGHT)
    layer = next(iter(low_rank_layers(module).values()))
    assert not any(b.any() for b in layer.lora_B.values())
    bound = layer.in_features**-0.5
    drawn = torch.cat([a.detach().flatten() for a in layer.lora_A.values()])
    assert 0.8 * bound < drawn.abs().max() <= bound and abs(float(drawn.mean())) < 0.1 * bound


def test_every_shortcut_computes_the_same(classifier: tuple[Any, Any]) -> None:
    module, seen = classifier
    add_low_rank(module, TARGETS, 4, 8.0, seed=3)
    scramble_adapter(module)
    whole = module(seen, cls_tail=False)
    torch.testing.assert_close(module(seen), whole, **TIGHT)
    state = merged_state(module.state_dict())
    merge_low_rank(module)
    torch.testing.assert_close(module(seen), whole, **TIGHT)
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        n: t.shape for n, t in state.items()
    }
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())


def test_what_is_trained_is_what_was_asked_for(classifier: tuple[Any, Any]) -> None:
    module, _ = classifier
    add_low_rank(module, ("query", "value"), 4, 8.0, seed=3, norms=True, full_blocks=1)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    last = {name for name in dict(module.named_parameters()) if name.startswith("encoder.blocks.1.")}
    norms = {name for name in dict(module.encoder.named_parameters(prefix="encoder")) if ".norm" in name}
    heads = {name for name in dict(module.named_parameters()) if not name.startswith("encoder.")}
    parts = [f"lora_{m}.{part}" for m in "AB" for part in ("query", "value")]
    assert trained == last | norms | heads | {f"encoder.blocks.0.attn.qkv.{part}" for part in parts}


def test_products_are_of_float32_under_autocast() -> None:
    layer = LowRankLinear(Linear(8, 8), ("fc1",), 2, 2.0, torch.Generator())
    scramble_adapter(layer)
    plain = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, plain)


def test_the_configuration_says_what_was_trained(hugging_face: Any, tmp_path: Path) -> None:
    _, path = hugging_face("BertForSequenceClassification", num_labels=3)
    ours, naming, _ = opened("Bert", path)
    add_low_rank(ours, ("query", "value"), rank=2, alpha=6.0, seed=1)
    Adapter(ours, naming, encoder_only=False).write(ours, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 6.0)
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    assert config["target_modules"][:2] == [
        f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "value")
    ]


TOWERS = {  # the encoder's class, the classifier's, and settings
    "clip": ("CLIPVisionModel", "CLIPForImageClassification", {}),
    "siglip": ("SiglipVisionModel", "SiglipForImageClassification", {"vision_use_head": False}),
    "ijepa": ("IJepaModel", "IJepaForImageClassification", {}),
    "beit": (
        "BeitModel",
        "BeitForImageClassification",
        {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
    ),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_adapters_of_towers_are_pefts(kind: str, tmp_path: Path, pixels: Tensor) -> None:
    """On the encoder's folder, and on a classifier's, whose features are the mean of tokens or CLS."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    encoder, classifier, settings = TOWERS[kind]
    save_tower(encoder, tmp_path / "source", **settings)
    loaded = images.load_mae(str(tmp_path / "source"))
    naming = images.naming_of(loaded.shape)
    images.save_encoder(loaded.module, tmp_path / "encoder", loaded.processor)
    ours = loaded.module.double().eval()
    head = images.classifier_from_mae(ours, 3, 0.0, 1).eval()
    images.save_classifier(head, tmp_path / "classifier", loaded.processor, ["a", "b", "c"], 0.0)

    for module, name, folder in ((ours, encoder, "encoder"), (head, classifier, "classifier")):
        add_low_rank(module, TARGETS, rank=2, alpha=3.0, seed=1)
        scramble_adapter(module)
        Adapter(module, naming, encoder_only=folder == "encoder").write(module, tmp_path / "adapters" / folder)
        theirs = getattr(transformers, name).from_pretrained(tmp_path / folder, dtype=torch.float64).eval()
        wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapters" / folder)
        if folder == "encoder":
            tokens, matched = expected_of(encoder, wrapped.get_base_model(), pixels)  # whose layers PEFT has wrapped
            torch.testing.assert_close(module.encoder(pixels), tokens, **TIGHT)
            torch.testing.assert_close(module.encoder.features(pixels, "cls"), matched, **TIGHT)
        else:
            torch.testing.assert_close(module(pixels), wrapped(pixels).logits, **TIGHT)
