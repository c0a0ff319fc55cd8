"""ModernBERT and EuroBERT beyond what all kinds of text models are tested by: long texts, variants, settings, costs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pre_norm_shapes import in_float64, pre_norm_shape
from small_stage import initialise
from test_bad_folders import edit_config, edit_tensors, sentence
from test_round_trip import loaded_cleanly
from text_model_samples import padded, unpadded
from torch.utils.flop_counter import FlopCounterMode

from sdfast.config import Config
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import (
    Companions,
    classifier_from_mlm,
    fresh_mlm,
    load_classifier,
    load_mlm,
    save_classifier,
    save_mlm,
)
from sdfast.modalities.texts.costs import TextTask, text_flops
from sdfast.modalities.texts.model import NO_DROPOUT, Asking, TextView, first_tokens
from sdfast.modalities.texts.modern import masked_model
from sdfast.models.blocks import TransformerShape, use_attention
from sdfast.models.compiled import use_compiled
from sdfast.models.weights import described, weights_digest
from sdfast.objectives.matching import EncoderDistance

TIGHT = {"rtol": 0.0, "atol": 1e-10}
LENGTHS = torch.tensor([7, 1, 300, 150, 23])
BATCH = TokenBatch(torch.randint(5, 60, (481,), generator=torch.Generator().manual_seed(3)), LENGTHS)
LONG = {"max_position_embeddings": 320}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("ModernBert", {}),
    ("ModernBert", {"num_hidden_layers": 5, "layer_types": None, "local_attention": 33}),
    ("ModernBert", {"layer_types": ["sliding_attention", "full_attention"], "local_attention": 1}),
    ("ModernBert", {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}),
    ("ModernBert", {"decoder_bias": False, "hidden_activation": "silu", "classifier_activation": "gelu_pytorch_tanh"}),
    ("ModernBert", {"tie_word_embeddings": False, "classifier_pooling": "mean"}),
    ("EuroBert", {}),
    ("EuroBert", {"tie_word_embeddings": True, "classifier_pooling": "mean", "num_key_value_heads": None}),
    ("EuroBert", {"attention_bias": True, "mlp_bias": True, "classifier_pooling": "bos", "num_key_value_heads": 1}),
    ("EuroBert", {"rope_parameters": {"rope_type": "default", "rope_theta": 250_000.0}, "hidden_act": "gelu"}),
]


@pytest.mark.parametrize(("kind", "more"), VARIANTS)
def test_long_texts_of_every_variant(kind: str, more: dict[str, Any], hugging_face: Any, tmp_path: Path) -> None:
    """Longer than the windows by far: hidden states, logits, tokens that ask; and the folder that is written again."""
    transformers = pytest.importorskip("transformers")
    theirs, path = hugging_face(f"{kind}ForMaskedLM", **{**LONG, **more})
    loaded = load_mlm(str(path), dropouts=NO_DROPOUT)
    save_mlm(loaded.module, tmp_path / "ours", loaded.companions, loaded.dropouts)
    again = load_mlm(str(tmp_path / "ours"))
    assert again.digest == loaded.digest and again.shape == loaded.shape
    ids, mask = padded(BATCH, 0)
    wanted = theirs.double()(ids, attention_mask=mask, output_hidden_states=True)
    reloaded = loaded_cleanly(transformers.AutoModelForMaskedLM, tmp_path / "ours").double()
    assert torch.equal(reloaded(ids, attention_mask=mask).logits, wanted.logits)
    ours = loaded.module.double()
    inner = ours.encoder(BATCH, layer=1)
    torch.testing.assert_close(inner, unpadded(wanted.hidden_states[1], BATCH), **TIGHT)
    encoded = ours.encoder(BATCH)
    torch.testing.assert_close(encoded, unpadded(wanted.hidden_states[-1], BATCH), **TIGHT)
    torch.testing.assert_close(ours.logits(encoded), unpadded(wanted.logits, BATCH), **TIGHT)
    asking = Asking(torch.tensor([0, 3, 8, 200, 307, 400, 480]), torch.tensor([2, 0, 3, 1, 1]))
    views = TextView(ours.encoder.embed(BATCH), LENGTHS, asking), TextView(ours.encoder.embed(BATCH), LENGTHS, None, 1)
    for found, expected in zip(ours.encoder.encode(*views), (encoded[asking.rows], inner), strict=True):
        torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize(("kind", "more"), VARIANTS)
def test_classifiers_of_every_variant(kind: str, more: dict[str, Any], hugging_face: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs, path = hugging_face(f"{kind}ForSequenceClassification", num_labels=3, **{**LONG, **more})
    ours, companions, names = load_classifier(path)
    save_classifier(ours, tmp_path / "ours", companions, names, NO_DROPOUT)
    reloaded = loaded_cleanly(transformers.AutoModelForSequenceClassification, tmp_path / "ours").double()
    ids, mask = padded(BATCH, 0)
    wanted = theirs.double()(ids, attention_mask=mask).logits
    assert torch.equal(reloaded(ids, attention_mask=mask).logits, wanted)
    ours.double().eval()
    for cls_tail in (True, False):
        torch.testing.assert_close(ours(BATCH, cls_tail), wanted, **TIGHT)
    noise = torch.zeros(481, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(BATCH, noise=noise), torch.cat((wanted, wanted)), **TIGHT)


@pytest.mark.parametrize("kind", ["ModernBert", "EuroBert"])
def test_as_transformers_computes_it(kind: str, hugging_face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where transformers' own casts change nothing, with every backend and with eager masks."""
    theirs, path = hugging_face(f"{kind}ForMaskedLM", **LONG)
    monkeypatch.undo()
    theirs.set_attn_implementation("eager")
    ids, mask = padded(BATCH, 0)
    wanted = unpadded(theirs(ids, attention_mask=mask).logits, BATCH)
    module = load_mlm(str(path), dropouts=NO_DROPOUT).module
    for backend in ("auto", "reference", "sdpa"):
        use_attention(module, backend)
        torch.testing.assert_close(module.logits(module.encoder(BATCH)), wanted, rtol=1e-4, atol=2e-5)


def loss_and_gradients(module: Any, half: bool) -> tuple[torch.Tensor, ...]:
    """Of the first tokens."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = module.logits(module.encoder(BATCH, first_tokens(LENGTHS))).float().logsumexp(1).sum()
    return found.detach(), *torch.autograd.grad(found, list(module.parameters()))


@pytest.mark.parametrize("kind", ["ModernBert", "EuroBert"])
@pytest.mark.parametrize("how", ["half", pytest.param("compiled", marks=pytest.mark.slow)])
def test_bfloat16_and_compiled_segments_agree(how: str, kind: str, hugging_face: Any) -> None:
    module = load_mlm(str(hugging_face(f"{kind}ForMaskedLM", **LONG)[1]), dropouts=NO_DROPOUT).module.train()
    exact = loss_and_gradients(module, half=False)
    if how == "compiled":
        torch._dynamo.reset()
        use_compiled(module)
    near = 0.05 if how == "half" else 1e-4
    for ours, truth in zip(loss_and_gradients(module, half=how == "half"), exact, strict=True):
        assert (ours - truth).norm() <= near * truth.norm() + 1e-3 * near


# ---- settings --------------------------------------------------------------------------------------------------


def test_a_published_configuration_of_transformers_4(hugging_face: Any) -> None:
    """As answerdotai/ModernBERT-base has it: bases and the rhythm of the layers in keys that version 5 renamed."""
    _, path = hugging_face("ModernBertForMaskedLM", layer_types=None, num_hidden_layers=4, **LONG)
    wanted = load_mlm(str(path))
    config = json.loads((path / "config.json").read_text())
    for key in ("layer_types", "rope_parameters"):
        del config[key]
    config |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    config |= {"layer_norm_eps": 1e-05, "position_embedding_type": "absolute", "gradient_checkpointing": False}
    (path / "config.json").write_text(json.dumps(config))
    found = load_mlm(str(path))
    assert found.digest == wanted.digest and found.shape.pre_norm == wanted.shape.pre_norm
    assert found.shape.pre_norm is not None and found.shape.pre_norm.local == (False, True, True)
    (path / "config.json").write_text(json.dumps({**config, "local_rope_theta": None, "global_attn_every_n_layers": 1}))
    other = load_mlm(str(path)).shape.pre_norm
    assert other is not None and other.local_base == 160000.0 and other.local == (False,)


def test_published_code_is_not_carried_along(hugging_face: Any, tmp_path: Path) -> None:
    """EuroBERT as it is published: a base beside the other settings, and code of its own."""
    _, path = hugging_face("EuroBertForMaskedLM", **LONG)
    config = json.loads((path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 250000, "rope_scaling": None, "auto_map": {"AutoModel": "modeling_eurobert.EuroBertModel"}}
    (path / "config.json").write_text(json.dumps(config))
    loaded = load_mlm(str(path))
    assert loaded.shape.pre_norm is not None and loaded.shape.pre_norm.base == 250000.0
    save_mlm(loaded.module, tmp_path / "ours", loaded.companions, loaded.dropouts)
    written = json.loads((tmp_path / "ours/config.json").read_text())
    assert "auto_map" not in written and written["rope_parameters"]["rope_theta"] == 250000.0


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("ModernBert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions of the type linear"),
        ("ModernBert", {"layer_types": ["full_attention"]}, "layer_types .* names 1 layers, but there are 2"),
        ("ModernBert", {"layer_types": ["chunked_attention"] * 2}, "a list of full_attention and sliding_attention"),
        ("ModernBert", {"hidden_activation": "relu"}, "hidden_activation .* one of gelu, gelu_pytorch_tanh"),
        ("ModernBert", {"classifier_pooling": "max"}, "classifier_pooling .* one of cls, mean"),
        (
            "EuroBert",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "rotary positions of the type yarn",
        ),
        ("EuroBert", {"head_dim": 16}, "heads of 16"),
        ("EuroBert", {"num_key_value_heads": 3}, "its 3 heads of keys do not divide its 4 heads"),
        ("EuroBert", {"classifier_pooling": "cls"}, "one of bos, mean, late"),
    ],
)
def test_what_is_not_taken_is_said(kind: str, changes: dict[str, Any], words: str, hugging_face: Any) -> None:
    _, path = hugging_face(f"{kind}ForMaskedLM")
    edit_config(path, **changes)
    assert re.search(words, sentence(path, load_mlm))


def test_a_missing_layer_is_named(hugging_face: Any) -> None:
    _, path = hugging_face("EuroBertForMaskedLM")
    edit_tensors(path, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    assert "has no tensor 'model.layers.1.self_attn.k_proj.weight'" in sentence(path, load_mlm)


# ---- the heads -------------------------------------------------------------------------------------------------


def test_a_classifier_takes_over_the_head_that_transformers_takes_over(tmp_path: Path) -> None:
    """`AutoModelForSequenceClassification` of a masked ModernBERT keeps dense layer and norm of its head."""
    transformers = pytest.importorskip("transformers")
    mlm = fresh_mlm(pre_norm_shape("modernbert", 60, 40, 0, TransformerShape(32, 2, 4, 48)), 1)
    save_mlm(mlm, tmp_path, Companions(), NO_DROPOUT)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ours = classifier_from_mlm(mlm, 3, NO_DROPOUT, seed=5)
    assert torch.equal(ours.head.dense.weight, theirs.head.dense.weight)
    assert torch.equal(ours.head.dense.weight, mlm.head.dense.weight)
    assert 0.01 < ours.classifier.weight.std() < 0.03


def test_digests_and_distances_know_the_shape() -> None:
    shape = pre_norm_shape("eurobert", 60, 40, 0, TransformerShape(32, 2, 4, 48))
    one, other = masked_model(shape), masked_model(shape)
    initialise(one, 1)
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(other)
    other.shape = replace(shape, pre_norm=replace(shape.pre_norm, pooling="mean"))
    assert weights_digest(one) != weights_digest(other)
    assert json.loads(json.dumps(described(shape))) == described(shape)
    with torch.no_grad():
        for first, change in ((0, 1.0), (33, 2.0), (41, 4.0)):  # a query, a key and a value of the first block
            other.encoder.blocks[0].attn.qkv.weight[first, 0] += change
    assert EncoderDistance(other.encoder, one.encoder, "mars")().item() == pytest.approx(7.0, rel=1e-5)


# ---- costs -----------------------------------------------------------------------------------------------------


def test_flops_count_what_the_windows_hold() -> None:
    """Of a text that is longer than the window, by hand; of a short one as torch counts them."""
    shape = pre_norm_shape("modernbert", 60, 200, 0, TransformerShape(16, 4, 2, 24))
    wide = replace(shape, pre_norm=replace(shape.pre_norm, window=199))
    config = Config.model_validate({"distill": {"weight": 0.0}})
    narrow, whole = (text_flops(TextTask("pretrain", config, each), [100], [15]).step for each in (shape, wide))
    away = np.abs(np.arange(100)[:, None] - np.arange(100)) > 3
    local = 1  # of the four blocks the second and the last; the last computes what is masked
    assert whole - narrow == local * 3 * 2 * 2 * 16 * away.sum()
    module = masked_model(wide)
    use_attention(module, "reference")
    batch, chosen = TokenBatch(torch.zeros(20, dtype=torch.int64), torch.tensor([20])), torch.tensor([2, 9])
    with FlopCounterMode(display=False) as counted:
        logits = module.logits(module.encoder(batch, Asking(chosen, torch.tensor([2]))))
        F.cross_entropy(logits, chosen).backward()
    assert text_flops(TextTask("pretrain", config, wide), [20], [2]).step == pytest.approx(
        counted.get_total_flops(), rel=0.02
    )


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
