"""Preset, then file, then dotted overrides, then options: the strongest last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from sdfast.config.whole import Config, merged, parse_override, validated
from sdfast.errors import UserError, nearest, said
from sdfast.plain_yaml import load_yaml
from sdfast.regular import read_regular

BUNDLED_PRESETS = {"bundled": "demo", "bundled-text": "text-demo"}  # by model
_FILE_BYTES = 1 << 18
_OF_EVERY_RUN = {"source", "image_size", "limit", "limit_seed", "max_pixels", "max_length", "token_budget"}
_BEFORE = {"chunk": False}  # keys of `data` that a run's own config.yaml may lack, and what was done before they were


def presets() -> dict[str, str]:
    """Names of the presets and the first comment line of each."""
    found = {}
    for entry in sorted(resources.files("sdfast.presets").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = entry.read_text("utf-8").splitlines()[0].lstrip("# ")
    return found


def resolve(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Merge preset, file, `key=value` overrides and options (strongest last) into a checked configuration.

    Args:
        preset: a name from `presets()`; without one, `demo` or `text-demo` for a bundled model.
        file: a YAML file of (some of) the keys.
        overrides: strings `dotted.key=value`; values are read as YAML.
        options: nested mapping, e.g. from command line options.

    Raises:
        UserError: unknown preset, key or value; the message names it and the nearest valid one. Or there are unlabelled
            data, and none that they join.
    """
    layers: list[dict[str, Any]] = [_read_file(Path(file))] if file is not None else []
    layers += [parse_override(text) for text in overrides]
    layers += [dict(options)] if options else []
    given: dict[str, Any] = {}
    for layer in layers:
        given = merged(given, layer)
    if preset is None:
        model = given.get("model") or "bundled"
        preset = BUNDLED_PRESETS.get(model) if isinstance(model, str) else None
    base = {} if preset is None else _read_preset(preset)
    if preset in BUNDLED_PRESETS.values() and _section(given, "data").get("source") not in (None, "bundled"):
        base.pop("data")  # its limit is meant for the bundled data
    try:
        config = validated(merged(base, given))
    except UserError as error:
        if file is not None and str(error) == _complaint(merged(base, layers[0])):
            raise UserError(f"{file}: {error}") from None
        raise
    if config.data.unlabelled and config.data.source is None:
        raise UserError(
            "data.unlabelled joins the data that --data names, and none are named; where nothing has a label, pass all"
            " of it by --data."
        )
    return config


def _complaint(values: dict[str, Any]) -> str | None:
    """What is wrong with a configuration."""
    try:
        validated(values)
    except UserError as error:
        return str(error)
    return None


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _read_preset(name: str) -> dict[str, Any]:
    if name not in presets():
        raise UserError(f"there is no preset '{name}'; {nearest(name, list(presets()))}")
    return yaml.safe_load(resources.files("sdfast.presets").joinpath(f"{name}.yaml").read_text("utf-8")) or {}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        value = load_yaml(read_regular(path, _FILE_BYTES).decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {said(error)}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold keys and values, such as `seed: 1`.")
    data = _section(value, "data")
    if data.keys() >= _OF_EVERY_RUN:  # what it does not name came later
        value = {**value, "data": {**_BEFORE, **data}}
    return value
