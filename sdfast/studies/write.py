"""A study's files: `<study>.md`, `.csv`, `.json`, `.png` and `.svg`."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdfast import __version__, durable
from sdfast.config import Config
from sdfast.studies.cost import cost_markdown, cost_rows
from sdfast.studies.declared import COST, Study
from sdfast.studies.earlier import make_room, sweep
from sdfast.studies.figures import draw, draw_cost
from sdfast.studies.plan import Protocol
from sdfast.studies.progress import say
from sdfast.studies.results import Found, counts
from sdfast.studies.spans import FEWEST
from sdfast.studies.tables import markdown, record, run_rows


@dataclass(frozen=True)
class About:
    """How a study was run.

    Attributes:
        protocol: see `Options`.
        jobs: stages at a time.
        device: where: `cpu` or `cuda`.
        configs: one for each data set.
    """

    protocol: Protocol
    jobs: int
    device: str
    configs: Sequence[Config]

    def to_json(self) -> dict[str, Any]:
        """What a person needs who wants to run it again."""
        cuda = self.device == "cuda"
        return {
            "protocol": self.protocol,
            "jobs": self.jobs,
            "command": shlex.join(["sdfast", *sys.argv[1:]]),
            "versions": {"sdfast": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
            "config": [config.model_dump(mode="json") for config in self.configs],
        }


def write(study: Study, found: Sequence[Found], out: Path, about: About) -> str:
    """Write what is there, and return the Markdown; nothing when there is nothing.

    What an earlier command wrote and this does not show is kept beside it.
    """
    found = [each for each in found if each.runs]
    if not found:
        return ""
    seeds = sorted({seed for each in found for seed in each.seeds()})
    values = record(study, found, seeds=seeds, **about.to_json())
    if study is COST:
        rows = {each.target.title: cost_rows(each) for each in found}
        text, pictures, values["rows"] = cost_markdown(rows), draw_cost(rows), rows
    else:
        text, pictures = markdown(study, found, about.protocol), draw(found, _caption(found, about))
    trained = frozenset().union(*(each.trained() for each in found))
    if aside := make_room(out, study.name, trained):
        kept, name = out / f"{aside}.md", study.name
        say.warning(
            "the %s that was there is of other settings or data, which one table does not mix: see %s", name, kept
        )
    durable.write_bytes(out / f"{study.name}.md", text.encode())
    durable.write_bytes(out / f"{study.name}.csv", run_rows(found).encode())
    durable.write_json(out / f"{study.name}.json", values)
    for ending, picture in pictures.items():
        durable.write_bytes(out / f"{study.name}.{ending}", picture)
    sweep(out, study.name, trained)
    return text


def _caption(found: Sequence[Found], about: About) -> str:
    data = ", ".join(each.target.title for each in found)
    numbers = counts(found)
    if numbers == [1]:
        return f"{data}; one run of each"
    kind = "fine-tunings of one checkpoint" if about.protocol == "paper" else "whole chains"
    points = f"{data}; points: {' to '.join(map(str, numbers))} {kind} each, and their mean"
    if numbers[-1] < FEWEST:
        return points
    return f"{points} with its 95 % interval" + (f" (of {FEWEST} runs or more)" if numbers[0] < FEWEST else "")
