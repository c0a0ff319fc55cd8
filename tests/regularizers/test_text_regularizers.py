"""The baselines on texts: against plain Hugging Face modules and the definitions, and as stages of a run."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from resuming import check_resumes
from small_stage import CPU, initialise
from small_text_stage import LABELS, LENGTHS, SHAPES, text_objective_of, texts
from test_stage import config_of, weights
from text_fixtures import FEW_STEPS, write_text_model, write_texts
from torch import Tensor, nn

import sdfast
from sdfast.config import EngineConfig
from sdfast.data.order import Batch
from sdfast.durable import read_json
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.engine.optim import build_optimizer, is_decayed
from sdfast.engine.single import SingleEngine
from sdfast.errors import UserError
from sdfast.modalities.texts.checkpoint import Companions, load_classifier, save_classifier
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.model import TextClassifier
from sdfast.modalities.texts.objectives import LabelledTexts
from sdfast.modalities.texts.order import TextBatchOrder
from sdfast.models import layout
from sdfast.objectives.base import Shortcuts
from sdfast.objectives.classification import Classification
from sdfast.regularizers.choose import on_loss, on_optimizer
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.r3f import R3F, add_spectral_norm
from sdfast.regularizers.recadam import Pull, RecAdam

BATCH, WHOLE = Batch(0, torch.arange(6)), slice(0, 6)
NAMES = ["recadam", "mars", "r3f", "r4f"]


def objective(r3f: R3F | None, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    made: Any = text_objective_of("finetune", dtype, r3f=r3f, **changes)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter *= 8  # so that noise shows in the output
    return made


def classifier(kind: str) -> TextClassifier:
    module = TextClassifier(SHAPES[kind], 4)
    initialise(module, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 8
    return module


@pytest.mark.parametrize("cls_tail", [True, False])
@pytest.mark.parametrize("kind", ["roberta", "bert", "xlm-roberta", "camembert", "distilbert", "electra"])
def test_r3f_is_two_passes_of_transformers(kind: str, cls_tail: bool, tmp_path: Path) -> None:
    """Noise on what comes out of the words' table, before types, positions and LayerNorm: their `inputs_embeds`."""
    transformers = pytest.importorskip("transformers")
    module = classifier(kind)
    save_classifier(module, tmp_path, Companions(), list("abcd"), sdfast.modalities.texts.model.NO_DROPOUT)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    theirs, module = loaded.double().train(), module.double().train()
    r3f, batch = R3F(weight=0.7, eps=3.0), texts(BATCH.rows)
    ours = Classification(module, LabelledTexts(), LABELS, Shortcuts(cls_tail=cls_tail), r3f)
    torch.manual_seed(3)
    parts = ours.loss(batch, BATCH, None, WHOLE)
    parts["loss"].backward()

    torch.manual_seed(3)
    noise = torch.empty(len(batch.ids), SHAPES[kind].embedding_width, dtype=torch.float64).normal_(0, 3.0)
    ids, wide_noise = (
        nn.utils.rnn.pad_sequence(list(each.split(batch.lengths.tolist())), batch_first=True, padding_value=1)
        for each in (batch.ids, noise)
    )
    mask = (torch.arange(ids.shape[1]) < batch.lengths[:, None]).long()
    embedded = theirs.get_input_embeddings()(ids)
    clean = theirs(inputs_embeds=embedded, attention_mask=mask).logits
    noised = theirs(inputs_embeds=embedded.detach().clone() + wide_noise, attention_mask=mask).logits
    p, q = clean.softmax(1), noised.softmax(1)
    task = F.cross_entropy(clean, LABELS[:6])
    smooth = (F.kl_div(q.log(), p, reduction="sum") + F.kl_div(p.log(), q, reduction="sum")) / 6
    assert smooth > 1e-3 * task
    (task + 0.7 * smooth).backward()
    for name, value in (("loss", task + 0.7 * smooth), ("loss_task", task), ("loss_r3f", 0.7 * smooth)):
        torch.testing.assert_close(parts[name], value, msg=lambda text, name=name: f"{name}: {text}")
    gradients = {name: value.grad for name, value in module.named_parameters()}
    found, expected = layout.write_state(gradients, FAMILIES[kind].naming), dict(theirs.named_parameters())
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].grad, msg=lambda text, name=name: f"{name}: {text}")


def test_the_noised_pass_does_not_reach_the_words_and_both_reach_the_positions() -> None:
    made = objective(None)
    module, batch = made.module, texts(BATCH.rows)
    noise = torch.ones(len(batch.ids), 32, dtype=torch.float64)
    for chosen, reaches in ((0, True), (1, False)):
        module.zero_grad()
        module(batch, True, noise).chunk(2)[chosen].sum().backward()
        assert bool(module.encoder.word_embeddings.weight.grad.any()) is reaches
        assert module.encoder.position_embeddings.weight.grad.any()
        assert module.encoder.type_embeddings.weight.grad.any()


def test_both_passes_have_the_types_of_their_tokens() -> None:
    encoder, batch = classifier("bert").encoder, texts(BATCH.rows)
    types = torch.arange(len(batch.ids)) % 2
    once = encoder.embed(batch, types)
    assert not torch.allclose(once, encoder.embed(batch))
    torch.testing.assert_close(encoder.embed(batch, types, torch.zeros(len(batch.ids), 32)), torch.cat((once, once)))


def test_dropout_differs_between_the_passes() -> None:
    for dropout, least, most in ((0.3, 1e-6, 1e9), (0.0, -1.0, 1e-20)):
        made = objective(R3F(eps=0.0), dropout=dropout)
        made.module.train()
        assert least < float(made.loss(texts(BATCH.rows), BATCH, None, WHOLE)["loss_r3f"]) < most


def test_micro_batches_of_r3f_sum_to_the_whole() -> None:
    made, batch = objective(R3F(eps=0.0)), texts(BATCH.rows)  # noise differs between draws
    whole = made.loss(batch, BATCH, None, WHOLE)
    parts = [made.loss(batch[part], BATCH, None, part) for part in (slice(0, 2), slice(2, 6))]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


def test_recadam_is_the_definition_step_by_step() -> None:
    """Fidelity 4 written out for every parameter; the encoder is pulled, embeddings too, and the head is not."""
    settings = {"recadam": {"k": 0.7, "t0": 3, "gamma": 200.0}, "weight_decay": 0.1, "eps": 1e-4, "clip": 0.0}
    config, made = config_of("recadam", **settings), text_objective_of("finetune", torch.float64)
    made.regularizer = on_optimizer(config, made.module)  # type: ignore[arg-type]
    engine = SingleEngine(made, config, EngineConfig(), CPU)
    plain: Any = text_objective_of("finetune", torch.float64).module
    start = {name: value.detach().clone() for name, value in plain.named_parameters()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in start.items()}
    beta1, beta2 = config.betas
    for step in range(1, 6):
        batch, rate = Batch(0, torch.arange(8 * step - 8, 8 * step)), 1e-3 / step
        engine.step(texts(batch.rows), batch, None, rate)  # type: ignore[arg-type]
        plain.zero_grad()
        F.cross_entropy(plain(texts(batch.rows)), LABELS[batch.rows]).backward()
        share = 1 / (1 + math.exp(-0.7 * (step - 3)))
        for name, theta in plain.named_parameters():
            m, v = moments[name]
            m.mul_(beta1).add_((1 - beta1) * theta.grad)
            v.mul_(beta2).add_((1 - beta2) * theta.grad**2)
            pulled = name.startswith("encoder.")
            size = rate * math.sqrt(1 - beta2**step) / (1 - beta1**step) * (share if pulled else 1)
            with torch.no_grad():
                theta -= size * m / (v.sqrt() + 1e-4)
                if pulled:
                    theta -= rate * (1 - share) * 200.0 * (theta - start[name])
                if theta.ndim > 1:
                    theta -= rate * 0.1 * theta
    expected = dict(plain.named_parameters())
    for name, value in made.module.named_parameters():
        assert not torch.equal(value, start[name])
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12, msg=lambda t, n=name: f"{n}: {t}")


def test_every_parameter_is_in_its_group() -> None:
    module: Any = text_objective_of("finetune").module
    config = config_of("recadam", weight_decay=0.3)
    pull = on_optimizer(config, module)
    assert isinstance(pull, Pull)
    optimizer = build_optimizer(module.named_parameters(), config, "pretrain", regularizer=pull)
    assert isinstance(optimizer, RecAdam) and len(optimizer.param_groups) == 4
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        for place, parameter in enumerate(group["params"]):
            name = names.pop(id(parameter))
            assert group["weight_decay"] == (0.3 if is_decayed(name, parameter, "pretrain") else 0.0)
            assert (group["anchors"] is None) == name.startswith(("dense.", "classifier."))
            assert group["anchors"] is None or torch.equal(group["anchors"][place], parameter)
    assert not names


def test_mars_keeps_linear_layers_near_their_start_and_both_of_the_head_near_zero() -> None:
    module: Any = text_objective_of("finetune").module
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    config = config_of("mars", lr=0.05, mars={"radius": 0.1, "head_radius": 0.15})
    mars = on_optimizer(config, module)
    assert isinstance(mars, Mars)
    optimizer = build_optimizer(module.named_parameters(), config, "pretrain", regularizer=mars)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        bound = set()
        for name, value in module.named_parameters():
            head = name in ("dense.weight", "classifier.weight")
            drift = value.detach() - (0 if head else start[name])
            norm = float(drift.flatten(1).abs().sum(1).max()) if value.ndim > 1 else float(drift.abs().sum())
            if norm <= (0.15 if head else 0.1) * (1 + 1e-5):
                bound.add(name)
        blocks = [
            f"encoder.blocks.{n}.{layer}.weight" for n in (0, 1) for layer in ("attn.qkv", "attn.proj", "fc1", "fc2")
        ]
        # embeddings, biases and LayerNorms are free
        assert bound == {"dense.weight", "classifier.weight", *blocks}


# ---- stages ----------------------------------------------------------------------------------------------------


def trainer_of(name: str, directory: Path, accumulate: int = 1, **more: Any) -> Trainer:
    config = config_of(name, **more)
    made: Any = text_objective_of("finetune", dropout=0.1, r3f=on_loss(config))
    made.regularizer = on_optimizer(config, made.module)
    if name == "r4f":
        add_spectral_norm(made.module.classifier, 0)
    engine, order = EngineConfig(log_every=4, accumulate=accumulate), TextBatchOrder(torch.arange(50), LENGTHS, 16, 9)
    data, folder = TrainingData(order, texts), StageFolder(directory, {"a": "b"})
    return Trainer("finetune", made, config, engine, data, folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_text_stage_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    check_resumes(lambda folder: trainer_of(name, folder), tmp_path)


def test_each_changes_the_result_on_texts_and_strength_0_is_plain_fine_tuning_bit_for_bit(tmp_path: Path) -> None:
    def trained(folder: str, name: str, **more: Any) -> dict[str, Tensor]:
        trainer = trainer_of(name, tmp_path / folder, **more)
        trainer.run()
        return weights(trainer)

    plain = trained("plain", "none")
    for name in ("recadam", "mars", "r3f"):
        other = trained(name, name)
        assert any(not torch.equal(other[key], value) for key, value in plain.items()), name
    nothing = {"mars": {"mars": {"radius": 1e30, "head_radius": 1e30}}, "r3f": {"r3f": {"weight": 0}}}
    for name, settings in nothing.items():
        same = trained(f"{name}-0", name, **settings)
        assert all(torch.equal(same[key], value) for key, value in plain.items()), name
    settings = {"weight_decay": 0, "betas": (0, 0)}  # where RecAdam's order of operations is AdamW's
    still = trained("adamw", "none", **settings)
    same = trained("constant", "recadam", recadam={"anneal": "constant"}, **settings)
    assert all(torch.equal(same[key], value) for key, value in still.items())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_text_model(root / "model"), "data": write_texts(root / "data")}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    return sdfast.Pipeline(**inputs, out=out, overrides=(*FEW_STEPS, "finetune.start=init", *overrides), **more)


def test_a_run_on_texts_with_each(inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sdfast")
    out = tmp_path / "run"
    plain = pipeline(inputs, out).finetune()
    stored = read_json(out / "finetune" / "result.json")["inputs"]  # those of before there were methods stay done
    later = ("regularizer", "recadam", "mars", "r3f", "objective", "supcon")
    assert not [key for key in stored if any(part in key for part in later)]
    for name in NAMES:
        caplog.clear()
        chosen = (f"finetune.regularizer={name}", "finetune.mars.head_radius=0.1")
        result = pipeline(inputs, out, *chosen).finetune(name=name)
        assert result.weights != plain.weights and set(result.metrics) == set(plain.metrics)
        head = load_classifier(out / name / "model")[0].classifier
        top = float(torch.linalg.matrix_norm(head.weight.detach(), 2))
        assert head.weight.shape == (2, 32) and (abs(top - 1) < 0.02) == (name == "r4f")
        assert ("t0" in caplog.text) == (name == "recadam")


@pytest.mark.parametrize("name", ["recadam", "mars", "r4f"])
def test_zero_is_refused_for_texts_too(
    name: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(inputs, tmp_path / "run", f"finetune.regularizer={name}", "finetune.start=distill", zero=1)
    monkeypatch.setattr("sdfast.opening.import_deepspeed", lambda device: None)
    monkeypatch.setattr("sdfast.opening.join", lambda *_, **__: sdfast.ranks.Ranks())
    with pytest.raises(UserError, match=rf"finetune\.regularizer={name} needs every weight whole"):
        pipe.finetune()
    assert not (tmp_path / "run" / "pretrain").exists()
