"""What a model card says of what a model was made of: its base and that one's licence, and the data."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sdfast import bundled
from sdfast.config import Config
from sdfast.context import Context
from sdfast.data.problem import REGRESSION, has_label
from sdfast.models.hub import is_hub_id
from sdfast.regular import read_regular
from sdfast.rundir import slug

_LARGEST = 1 << 20  # bytes of a card that is read
_NAMED = 30  # classes
_LICENCE = ("license", "license_name", "license_link")
_OURS = {"license": "apache-2.0"}  # that of the bundled models, as of the whole package


@dataclass(frozen=True)
class Base:
    """The model that a run starts from.

    Attributes:
        called: in a sentence.
        hub_id: on the hub, for `base_model`: its own, or what its card says that it was made from; None if unknown.
        licence: what its card says, by the hub's keys; empty where it says nothing.
    """

    called: str
    hub_id: str | None = None
    licence: Mapping[str, str] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The sentence on its licence."""
        if not self.licence:
            return "The licence of the base model is not stated in its folder; it holds for these weights too."
        name = self.licence.get("license_name") or self.licence.get("license")
        link = self.licence.get("license_link")
        return f"The licence of the base model, {name}{f' ({link})' if link else ''}, holds for these weights too."


def base_of(config: Config) -> Base:
    """The base model of a run; nothing is fetched, and what is not said anywhere stays unsaid."""
    spec = config.model_spec
    if (ours := bundled.MODELS.get(spec)) is not None:
        return Base(f"the small {ours} that comes with sdfast", None, _OURS)
    published = is_hub_id(spec) and not Path(spec).exists()
    card = front_matter(_folder(spec, published) / "README.md")
    licence = {key: str(card[key]) for key in _LICENCE if isinstance(card.get(key), str)}
    theirs = card.get("base_model")
    hub_id = spec if published else theirs if isinstance(theirs, str) and is_hub_id(theirs) else None
    return Base(f"`{spec if published else slug(spec)}`", hub_id, licence)


def _folder(spec: str, published: bool) -> Path:
    """Where a model's files are on this machine."""
    if published:
        with contextlib.suppress(Exception):  # the hub's client raises many kinds; then its card is not here
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(spec, local_files_only=True))
    path = Path(spec).expanduser()
    return path.parent if path.is_file() else path


def front_matter(card: Path) -> dict[str, Any]:
    """The metadata of a card; empty where there is none that can be read."""
    try:
        text = read_regular(card, _LARGEST).decode("utf-8")
        found = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def name_of_data(context: Context) -> str:
    """What the data of a run are called: the end of their path or hub id."""
    return slug(context.modality.source(context.config))


def data_of(context: Context) -> list[str]:
    """Lines on the data: how many rows each split has, and the classes. No path of this machine is named."""
    config, pack, rows_are = context.config, context.pack, context.modality.name
    lines = [f"`{name_of_data(context)}`:", ""]
    for name, split in pack.splits.items():
        count, labels = len(split), split.labels
        labelled = 0 if labels is None else int(has_label(labels).sum())
        with_labels = "" if labelled == count else f", {labelled:,} of them with a label" if labelled else ", no labels"
        lines.append(f"- {name}: {count:,} {rows_are}{with_labels}")
    limit = config.data.limit
    if limit is not None and limit < len(pack.splits.get("train", ())):
        lines.append(f"- of train {limit:,} were used (`data.limit`)")
    if names := pack.class_names:
        what = "numbers" if pack.problem == REGRESSION else "classes"
        lines.append(f"- {len(names):,} {what}: {listed(names)}")
    return [*lines, ""]


def listed(names: Sequence[str]) -> str:
    """Some names as code, the first of many."""
    shown = ", ".join(f"`{plain(name)}`" for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED:,} more" if len(names) > _NAMED else shown


def plain(name: str) -> str:
    """A name of the data in one line of Markdown, as code or in a table."""
    return re.sub(r"[\s`|]+", " ", str(name)).strip() or "?"


def published_data(config: Config) -> str | None:
    """The data's id on the hub, where they are from there."""
    spec = config.data_spec
    return spec if "/" in spec and is_hub_id(spec) and not Path(spec).expanduser().exists() else None


def own_settings(config: Config, modality: Any) -> dict[str, Any]:
    """What was set otherwise than sdfast does by itself, by key; no path, and nothing that decides no result."""
    usual = Config().resolved(modality).flat()
    found = {}
    for key, value in config.flat().items():
        section = key.partition(".")[0]
        if section not in ("seed", "data", "pretrain", "distill", "finetune", "teacher") and key != "engine.precision":
            continue
        if key in ("data.source", "data.unlabelled") or value == usual.get(key):
            continue
        found[key] = slug(value) if isinstance(value, str) and "/" in value else value
    return found
