"""What the models of a study fill in where something is hidden: made once, kept in `report/`, shown from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdfast.config import Config
from sdfast.errors import UserError
from sdfast.locks import locked
from sdfast.log import log
from sdfast.report.evidence import keep, masked
from sdfast.report.evidence.make import why
from sdfast.report.evidence.panels import shown
from sdfast.report.evidence.quiet import untouched
from sdfast.report.evidence.show_masked import masked_panel
from sdfast.report.evidence.stages import subjects
from sdfast.report.panel import Panel
from sdfast.rundir import Result, read_result
from sdfast.studies.declared import COST
from sdfast.studies.store import Shared, Store
from sdfast.studies.stored import Data
from sdfast.studies.units import unit_of

_DIGITS = 12  # of a fingerprint, in a file's name


@dataclass(frozen=True)
class Example:
    """The models of one run of one arm: what its first seed, fold or chain was fine-tuned from.

    Attributes:
        data: of the study.
        arm: of its record; it begins with a further pre-trained model.
    """

    data: Data
    arm: Mapping[str, Any]

    @property
    def run(self) -> Mapping[str, Any]:
        """The fine-tuning, as the record has it."""
        run: Mapping[str, Any] = self.arm["runs"][0]
        return run

    @property
    def item(self) -> str:
        """What is kept of it: named by the fingerprint of the run, which everything before it decides too."""
        return f"{masked.ITEM}-{self.run['fingerprint'][:_DIGITS]}"

    @property
    def seed(self) -> int:
        """The seed of its pre-training."""
        return int(self.arm["config"]["seed"])

    def __str__(self) -> str:
        unit = unit_of(self.run)
        return f"{self.arm['title']} ({f'{unit}, ' if unit else ''}seed {self.seed})"

    def results(self) -> list[Result]:
        """Those of its stages before the fine-tuning, each after what it needs.

        Raises:
            UserError: a stage is not there any more.
        """
        found, unit = [], unit_of(self.run)
        for stage in self.data.values["stages"]:
            if self.arm["title"] not in stage["arms"] or unit_of(stage) != unit:
                continue
            folder = self.data.folder(stage)
            stored = None if folder is None else read_result(folder)
            if folder is None or stored is None:
                raise UserError(f"the {stage['stage']} of {self.arm['title']} is not there any more")
            if stored.inputs.get("seed", self.seed) == self.seed:
                found.append(stored.result(folder / "model"))
        return found

    def make(self, shared: Shared, device: str | None) -> None:
        """Keep what its models fill in."""
        results, config = self.results(), Config.model_validate(self.arm["config"])
        if device is not None:
            config = config.changed([f"device={device}"])
        with Store(self.data.out, shared, as_kept=True).opened(config) as context, untouched(context.device):
            masked.make(context, self.data.out, subjects(context, self.data.out, results), self.item)


def example_in(data: Data) -> Example | None:
    """The first arm that distils, or else the first that pre-trains; None where none does."""
    if data.record["study"] == COST.name:
        return None
    arms = [arm for arm in data.arms if arm["start"] != "init" and arm.get("config")]
    first = min(arms, key=lambda arm: arm["start"] != "distill", default=None)
    return None if first is None else Example(data, first)


def make_evidence(out: Path, record: Mapping[str, Any], shared: Shared, device: str | None = None) -> None:
    """Keep what is missing of what a study's report shows of models; what cannot be made is a warning.

    It is made once for a run of given settings: who asks again finds it, and nothing is opened.

    Args:
        out: the study's directory, which this process holds.
        record: of the study, as its JSON file has it.
        shared: what is open already.
        device: where to compute, instead of where the study did.
    """
    for each in _missing(out, record):
        try:
            each.make(shared, device)
        except Exception as error:
            log.warning("The report does not show what the models of %s fill in: %s.", each, why(error))


def add_evidence(out: Path, record: Mapping[str, Any], device: str | None = None) -> None:
    """The same for a study that nobody holds; one in which another process works is left as it is."""
    try:
        if _missing(out, record):
            with locked(out):
                make_evidence(out, record, Shared(), device)
    except Exception as error:
        log.warning("The report shows of models what is there already: %s.", why(error))


def evidence_panel(data: Data, prefix: str, after: str) -> Panel | None:
    """The panel, from what is kept alone; None where nothing is.

    Args:
        data: of the study.
        prefix: of its anchor.
        after: its title.
    """
    example = example_in(data)
    value = None if example is None else keep.read(data.out, example.item)
    if example is None or value is None:
        return None
    panel = shown(value, masked_panel, keep.path(data.out, example.item))
    if panel is None:
        return None
    lead = f"The models are those of {example}. {panel.lead}"
    return replace(panel, key=f"{prefix}{panel.key}", title=f"{panel.title}{after}", lead=lead)


def _missing(out: Path, record: Mapping[str, Any]) -> list[Example]:
    """The examples whose evidence is not kept: at most one of each data set."""
    found = (example_in(Data(out, record, values)) for values in record["data"])
    return [each for each in found if each is not None and keep.read(out, each.item) is None]
