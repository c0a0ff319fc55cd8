"""What several commands take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sdfast.cli import complete
from sdfast.errors import UserError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="configuration keys, e.g. pretrain.steps=1000",
        autocompletion=complete.overrides,
    ),
]
Model = Annotated[
    str | None, typer.Option(help="hub id, folder or file of weights, or bundled-text; bundled when not given")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="images: folder, csv, parquet, IDX; texts: jsonl, csv, txt; tar shards; hub id; bundled when not given"
    ),
]
Unlabelled = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SPEC",
        help="more data, as --data takes; pretrain and distill see it without labels; again for more sources",
    ),
]
LabelColumn = Annotated[
    str | None, typer.Option(help="column of the labels in a table, short for data.label_key; none: without labels")
]
FileColumn = Annotated[
    str | None, typer.Option(help="column of the image files (parquet: images), short for data.image_key")
]
TextColumn = Annotated[str | None, typer.Option(help="column of the texts in a table, short for data.text_key")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of configuration keys")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="named configuration: paper-vit, paper-roberta, demo, text-demo", autocompletion=complete.preset_names
    ),
]
Name = Annotated[
    str | None, typer.Option(help="what the run is called, in reports and lists; --out is runs/NAME when not given")
]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu or cuda", autocompletion=complete.words("auto", "cpu", "cuda"))
]
RunDirectory = Annotated[Path, typer.Option(help="run directory", autocompletion=complete.run_directories)]


def with_columns(
    overrides: Sequence[str] | None,
    label: str | None,
    file: str | None,
    text: str | None,
    unlabelled: Sequence[str] | None = None,
) -> list[str]:
    """The overrides, and behind them, as options are stronger, those of the columns and sources that were named."""
    named = {"label_key": label, "image_key": file, "text_key": text}
    said = [f"data.{key}={json.dumps(name, ensure_ascii=False)}" for key, name in named.items() if name is not None]
    said += [f"data.unlabelled={json.dumps(list(unlabelled), ensure_ascii=False)}"] if unlabelled else []
    return [*(overrides or ()), *said]


def data_overrides(
    command: str, overrides: Sequence[str] | None, label: str | None, file: str | None, text: str | None
) -> list[str]:
    """What a command that reads another source may be given: keys of the data section alone.

    Raises:
        UserError: it is given another key.
    """
    given = with_columns(overrides, label, file, text)
    if (other := next((each for each in given if not each.startswith("data.")), None)) is not None:
        raise UserError(f"{other}: {command} takes keys of the data section alone, for the source that --data names.")
    return given


def config_of(out: Path, otherwise: str = "give the --out of a training run") -> Path:
    """The configuration of a run directory.

    Raises:
        UserError: it is none; the sentence ends with what to do otherwise.
    """
    if not (out / "config.yaml").is_file():
        raise UserError(f"{out} is not a run directory (it holds no config.yaml); {otherwise}.")
    return out / "config.yaml"
