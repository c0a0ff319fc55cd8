"""What is written at the keys, made use of: what decides a stage, what another kind of data refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sdfast.config.sections import MASK_RATIOS, ModalityName, OptimisationConfig, PretrainConfig
from sdfast.config.whole import Config
from sdfast.errors import UserError


def deciding_keys(
    config: Config, kind: str, modality: ModalityName, section: OptimisationConfig | None = None
) -> dict[str, Any]:
    """The settings that decide the result of a kind of stage, by dotted keys, as JSON values.

    Args:
        config: of the run.
        kind: `head`, `pretrain`, `distill` or `finetune`.
        modality: of the model.
        section: how the stage is optimised, where that is not the section of its name.
    """
    own = "pretrain" if kind == "head" else kind
    if section is not None:
        config = config.model_copy(update={own: section})
    sections = {own: getattr(config, own)} | ({"pretrain": config.pretrain} if own != "pretrain" else {})
    found = {}
    for name, values in sections.items():
        dumped = values.model_dump(mode="json")
        for key, field in type(values).model_fields.items():
            said = _said(field)
            if (
                (name == own or said.get("also") == kind)
                and said.get("decides", True)
                and said.get("of", modality) == modality
                and _acts(config, said.get("when"))
                and not (said.get("left_out") in (True, modality) and dumped[key] == field.default)
                and not ("before" in said and dumped[key] == said["before"])
            ):
                found[f"{name}.{key}"] = dumped[key]
    return found


def _said(field: FieldInfo) -> dict[str, Any]:
    """What is written at a key; see above `OptimisationConfig`."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _acts(config: Config, when: str | None) -> bool:
    if when is None:
        return True
    key, _, values = when.partition("=")
    section, name = key.split(".")
    return str(getattr(getattr(config, section), name)).lower() in values.split("|")


def refuse_other_modality(config: Config, modality: ModalityName) -> None:
    """Stop at settings that say nothing for a kind of data.

    Raises:
        UserError: one of them is not at its default.
    """
    for name in type(config).model_fields:
        section = getattr(config, name)
        for key, field in type(section).model_fields.items() if isinstance(section, BaseModel) else ():
            value = getattr(section, key)
            if _said(field).get("of", modality) == modality or value == field.default:
                continue
            if key == "norm_pix" and value:  # as the config.yaml of an older run of texts has it
                continue
            if key == "chunk" and not value:  # as the config.yaml of an older run, which has no such key, is read
                continue
            raise UserError(
                f"{name}.{key}={value} says nothing for {config.model_spec}, which is a model of {modality}; leave it"
                " away."
            )


def with_own_settings(config: Config, own: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The configuration with a model's own settings where no key says otherwise.

    Args:
        config: of the run.
        own: see `Modality.own_settings`.

    Returns:
        The configuration, and a sentence for each setting that is not the usual one or not the model's.
    """
    usual = PretrainConfig().model_copy(update={"mask_ratio": MASK_RATIOS["images"], "norm_pix": True})
    taken, notes = {}, []
    for key, value in own.items():
        given = getattr(config.pretrain, key)
        if given is None:
            taken[key] = value
            if value != getattr(usual, key):
                notes.append(f"pretrain.{key}={_yaml(value)}, as it was pre-trained; give the key for another value.")
        elif given != value:
            notes.append(f"it was pre-trained with {key}={_yaml(value)}; pretrain.{key}={_yaml(given)}, as given.")
    pretrain = config.pretrain.model_copy(update=taken)
    return config.model_copy(update={"pretrain": pretrain}), notes


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
