"""The whole configuration, checked; a sentence for what does not fit."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from sdfast.config.sections import (
    MASK_RATIOS,
    DistillConfig,
    EngineConfig,
    FinetuneConfig,
    ModalityName,
    OptimisationConfig,
    PretrainConfig,
    Section,
    TeacherConfig,
    ZeroConfig,
)
from sdfast.data.config import DataConfig
from sdfast.errors import UserError, shortened
from sdfast.plain_yaml import load_yaml

_KEY_PARTS = 16
_NAME = re.compile(r"\w[\w .-]{0,99}")


class Config(Section):
    """A whole run."""

    model: str | None = Field(
        None,
        min_length=1,
        description="hub id, folder or file of weights of the pre-trained model; bundled when not given",
    )
    out: str | None = Field(None, min_length=1, description="run directory; runs/<name> when not given")
    name: str | None = Field(
        None, description="what the run is called, in reports and lists (--name); it decides nothing"
    )
    seed: int = Field(0, ge=0, description="seed of order, masks, flips, dropout and heads")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run")
    data: DataConfig = DataConfig()
    pretrain: PretrainConfig = PretrainConfig()
    distill: DistillConfig = DistillConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    teacher: TeacherConfig = TeacherConfig()
    engine: EngineConfig = EngineConfig()
    zero: ZeroConfig = ZeroConfig()
    deepspeed: dict[str, Any] = Field({}, description="any option of DeepSpeed, as deepspeed.<key>=<value>")

    @field_validator("name", mode="before")
    @classmethod
    def _names_a_folder(cls, value: Any) -> Any:
        """A number is read as the word that was written."""
        if value is None:
            return None
        name = str(value)
        if isinstance(value, bool | float | list | dict) or not _NAME.fullmatch(name) or name.endswith((".", " ")):
            raise ValueError(
                "a name is that of a folder: letters, digits, and after the first of them blanks, dots, dashes and"
                " underscores too, at most 100"
            )
        return name

    @field_validator("deepspeed")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        level: list[Any] = [value]
        for _ in range(_KEY_PARTS):
            for each in level:
                if isinstance(each, dict) and not all(isinstance(key, str) for key in each):
                    raise ValueError("its keys must be words")
                if not isinstance(each, dict | list | str | int | float | None) or each in (math.inf, -math.inf):
                    raise ValueError("its values must be words, numbers, true, false, lists and further keys")
            level = [part for each in level for part in _parts(each)]
            if not level:
                return value
        raise ValueError("it is nested too deeply")

    @property
    def model_spec(self) -> str:
        """The model as it was asked for."""
        return self.model or "bundled"

    @property
    def data_spec(self) -> str:
        """The data as they were asked for."""
        return self.data.source or "bundled"

    def resolved(self, modality: ModalityName, rows: Mapping[str, int] | None = None) -> Config:
        """The configuration with a value for each key that depends on what is trained on.

        Args:
            modality: decides `pretrain.mask_ratio` and `pretrain.norm_pix`.
            rows: of each stage, training rows; those with `epochs` decide its steps.
        """
        pretrain = self.pretrain
        if pretrain.mask_ratio is None:
            pretrain = pretrain.model_copy(update={"mask_ratio": MASK_RATIOS[modality]})
        if modality == "images":
            pretrain = pretrain.model_copy(update={"norm_pix": pretrain.normalised_pixels})
        config = self.model_copy(update={"pretrain": pretrain})
        for stage, count in (rows or {}).items():
            section: OptimisationConfig = getattr(config, stage)
            if section.epochs is not None:
                steps = section.epochs * -(-count // section.batch_size)
                section = section.model_copy(update={"steps": steps})
                config = config.model_copy(update={stage: section})
        return config

    def changed(self, overrides: Iterable[str]) -> Config:
        """The configuration with `key=value` overrides.

        Raises:
            UserError: a key or value that does not exist or fit.
        """
        values = self.model_dump(mode="json")
        for text in overrides:
            values = merged(values, parse_override(text))
        return validated(values)

    def flat(self) -> dict[str, Any]:
        """All values by their dotted keys, as JSON values."""
        return dict(leaves(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """The whole configuration as YAML, ready for `--config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, by dotted keys."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def valid_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """All dotted keys of the configuration."""
    keys = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += valid_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def parse_override(text: str) -> dict[str, Any]:
    """The nested keys of `key=value`; a UserError where it is none."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip() or key.count(".") > _KEY_PARTS:
        shell = " (a pattern of files is put in quotes)" if text.endswith(".tar") else ""
        raise UserError(f"'{shortened(text)}' is not an override; write key=value, such as pretrain.steps=1000{shell}.")
    try:
        parsed: Any = value if value.startswith("#") else load_yaml(value)  # '#rrggbb' is no comment here
    except ValueError as error:
        if key.strip() != "data.group":
            raise UserError(f"the value of '{shortened(text)}' cannot be read; quote it.") from error
        parsed = value  # a regular expression, as [A-Z]+(\d+)
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def merged(base: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys, those of the layer before those of the base."""
    result = dict(base)
    for key, value in layer.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    if "steps" in layer and "epochs" not in layer:
        result.pop("epochs", None)  # of a weaker layer, which the steps replace
    return result


def validated(values: dict[str, Any]) -> Config:
    """The configuration of nested keys; a UserError about the first that does not fit."""
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_misfit(error)) from None
    for key, value in config.flat().items():
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{key} has a NUL character in it, which no name of a file or column can have.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{key} does not fit: it is a larger number than any count or seed.")
    return config


def _misfit(error: ValidationError) -> str:
    """The sentence about the first value that does not fit, or key that is none."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    keys = valid_keys()
    known = [depth for depth in range(len(location), 0, -1) if ".".join(location[:depth]) in keys]
    key = ".".join(location[: known[0]] if known else location)
    if first["type"] == "extra_forbidden":
        below = first.get("input")
        while isinstance(below, Mapping) and below:  # of a section that is none, the key that was given
            name, below = next(iter(below.items()))
            location.append(str(name))
        key = ".".join(location)
        close = difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
        last = [name for name in keys if name.rsplit(".", 1)[-1] == location[-1]]
        fix = f"did you mean '{(close or last)[0]}'?" if close or last else "`sdfast config show` lists all keys."
        return f"there is no configuration key '{shortened(key)}'; {fix}"
    value = first.get("input")
    shown = f"={shortened(value)}" if isinstance(value, (str, int, float, bool)) else ""
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key}{shown} does not fit: {reason[0].lower()}{reason[1:]}."
