"""What was trained by earlier versions is found done: a stage's fingerprint stays what it was, key by key.

`fingerprints.json` was written by the version before stages were data, from its own walk through a run: for each
configuration the first digits of the fingerprint of every stage, where the weights of a stage are named by its own.
They are of the bundled models and presets of that time, which it has as `starts` (digests) and `presets`; those of now
may be others.
Those with `finetune.probe` were added by the version before that key, for the same without it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sdfast
from sdfast.config import Config, deciding_keys, valid_keys
from sdfast.context import Context
from sdfast.durable import sha256_json
from sdfast.stages.graph import Stage, distillation, finetuning
from sdfast.stages.inputs import inputs_of
from sdfast.studies.store import Shared, Store

KNOWN = json.loads((Path(__file__).parent / "fingerprints.json").read_text())
MODELS = {"images": None, "texts": "bundled-text"}


def fingerprints(context: Context) -> dict[str, str]:
    weights, found = dict[Stage, str](), {}
    for target in (finetuning(context), distillation(context)):
        for stage in target.chain():
            digest = sha256_json(inputs_of(context, stage, weights))
            weights[stage], found[stage.folder.rpartition("/")[2]] = f"the weights of {digest}", digest[:12]
    return found


@pytest.mark.parametrize("modality", MODELS)
def test_stages_of_earlier_versions_are_found_done(
    modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, Shared())
    starts, preset = KNOWN["starts"][modality], KNOWN["presets"][modality].split()  # as the bundled models had it then
    for overrides, known in KNOWN[modality].items():
        start = starts.get(overrides, starts[""])
        monkeypatch.setattr(
            f"sdfast.modalities.{modality}.checkpoint.weights_digest", lambda module, start=start: start
        )
        config = sdfast.Pipeline(MODELS[modality], device="cpu", overrides=preset + overrides.split()).config
        if "data.max_length" in overrides:  # their packs are there, and what was cut of a document is not in them
            with Store(tmp_path, Shared()).opened(config.changed(["data.chunk=false"])):
                pass
        with store.opened(config) as context:
            assert fingerprints(context) == known, overrides


@pytest.mark.parametrize("modality", MODELS)
def test_each_setting_of_a_stage_decides_it_or_says_why_not(modality: str) -> None:
    """Changed alone, a key of a stage's section changes what is fingerprinted, unless it is written at the key."""
    base = Config().resolved(modality)  # type: ignore[arg-type]
    silent = set()
    for key in valid_keys():
        section, _, name = key.partition(".")
        if section not in ("pretrain", "distill", "finetune") or "." in name:
            continue
        values = getattr(base, section)
        named = {"layer": 2, "norm_pix": False, "epochs": 2, "head_steps": 2, "class_weights": "balanced"}
        other = named.get(name, _other(getattr(values, name)))
        changed = base.model_copy(update={section: values.model_copy(update={name: other})})
        if deciding_keys(changed, section, modality) == deciding_keys(base, section, modality):  # type: ignore[arg-type]
            silent.add(key)
    ours = {
        "images": {"pretrain.mask_only", "pretrain.mean", "pretrain.whole_word"},
        "texts": {"pretrain.mask", "pretrain.augment"},
    }
    ours["texts"] |= {"pretrain.norm_pix", "finetune.flip"}
    counted = {"pretrain.epochs", "distill.epochs", "finetune.epochs", "pretrain.head_steps"}
    assert silent == ours[modality] | counted | {"distill.rounds", "finetune.start", "finetune.evaluations"}


def test_a_probe_of_standardised_features_is_trained_anew() -> None:
    raw, probe = (
        Config().resolved("images").changed([f"finetune.method={method}", "finetune.probe.standardise=false"])
        for method in ("full", "linear_probe")
    )
    key = "finetune.probe"
    assert key not in deciding_keys(raw, "finetune", "images") | deciding_keys(probe, "finetune", "images")
    again = probe.changed(["finetune.probe.standardise=true"])
    assert deciding_keys(again, "finetune", "images")[key] == {"standardise": True}


def _other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return (0.1, 0.2) if isinstance(value, tuple) else "other"
