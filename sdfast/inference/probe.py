"""How much of the classes is in the features of each stage: nearest neighbours and a linear classifier on them.

The encoder stays as it is. What is taught are the rows that fine-tuning is taught, and what is scored are the rows it
is evaluated on. What the raw input says without a model stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdfast import __version__
from sdfast.config import Config
from sdfast.context import Modality, rows_of
from sdfast.data.problem import SINGLE, ProblemType
from sdfast.durable import write_json
from sdfast.errors import UserError
from sdfast.evaluation.classification import evaluation_split, labelled_rows, labels_of
from sdfast.evaluation.scoring import SCORING
from sdfast.evaluation.votes import answers_of
from sdfast.inference.encoders import StageEncoder, finished_stages, stage_encoder
from sdfast.inference.linear import linear_probe
from sdfast.inference.raw import named, raw_metrics, sample_of
from sdfast.log import log
from sdfast.models.embedder import FeatureTokens
from sdfast.models.neighbours import Neighbours
from sdfast.teacher.bank import open_bank
from sdfast.teacher.storage import decode, widen

if TYPE_CHECKING:
    import pandas as pd

FILE = "probe.json"
RAW = "raw"
_ROWS = 1024  # of the test rows, whose neighbours are looked for at a time


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        stages: by stage and by `knn` and `linear`: the metrics of `sdfast.evaluation.scoring`. The first, `raw`, is of
            no model: `linear` on the raw input (`sdfast.inference.raw`).
        rows: `train` and `test`.
    """

    stages: dict[str, dict[str, dict[str, float]]]
    rows: dict[str, int]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each stage and probe, a column for each metric."""
        import pandas as pd

        found = [
            {"stage": stage, "probe": probe, **metrics}
            for stage, probes in self.stages.items()
            for probe, metrics in probes.items()
        ]
        return pd.DataFrame(found)


def probe_run(
    out: Path, config: Config, device: torch.device, tokens: FeatureTokens = "cls", read_only: bool = False
) -> Probe:
    """Probe the features of all stages of a run that have ended, and the raw input, and write `probe.json`.

    The teacher's bank gives the features of train, where it holds those of a stage.

    Args:
        out: the run directory.
        config: of the run.
        device: where to compute.
        tokens: `cls` or `mean`.
        read_only: the run directory cannot be written, and the file is not.

    Raises:
        UserError: the run has no pack or one without labels, or no model can be read.
    """
    if tokens not in ("cls", "mean"):
        raise UserError(f"--tokens {tokens} is not possible here; use cls or mean.")
    stages = finished_stages(out)
    newest = stage_encoder(out, config, stages[-1], read_only)
    pack = newest.modality.open_pack(out / "pack")
    train, (_, test) = pack.split("train"), evaluation_split(pack)
    if train.labels is None or test.labels is None or not len(labelled_rows(test)):
        raise UserError(f"{config.data_spec} has no labels to probe features by; {newest.modality.how_to_label}.")
    rows = {"train": rows_of(train, config, "finetune"), "test": labelled_rows(test)}
    labels = {
        "train": torch.from_numpy(labels_of(train))[rows["train"]],
        "test": torch.from_numpy(labels_of(test))[rows["test"]],
    }
    found: dict[str, dict[str, dict[str, float]]] = _raw(newest, pack, config)
    for stage in stages:
        try:
            encoder = newest if stage == newest.stage else stage_encoder(out, config, stage, read_only)
        except UserError as error:
            if stage != "init":
                raise
            log.warning("probe: without the stage init: %s", error)
            continue
        features = _features(encoder, pack, {"train": train, "test": test}, rows, config, device, tokens, out)
        found[stage] = _scores(features, labels, pack.problem, len(pack.class_names), config, device)
        log.info("probe: %s", _said(stage, found[stage], pack.problem, encoder.modality))
    counts = {name: len(chosen) for name, chosen in rows.items()}
    if not read_only:
        write_json(out / FILE, {"tokens": tokens, "rows": counts, "stages": found, "sdfast": __version__})
        log.info("probe: %s", out / FILE)
    return Probe(found, counts)


def _raw(encoder: StageEncoder, pack: Any, config: Config) -> dict[str, dict[str, dict[str, float]]]:
    """The stage that is none: a linear classifier on the raw input; empty where there is nothing to compare."""
    modality, sample = encoder.modality, sample_of(pack, config)
    what = named(pack.problem, modality)
    try:
        found = {RAW: {"linear": raw_metrics(sample, modality, config, encoder.model.companions)}}
    except UserError as error:
        log.info("probe: without %s: %s", what, error)
        return {}
    limits = f" ({', '.join(sample.limits)})" if sample.limits else ""
    log.info("probe: %s: %s%s", _said(RAW, found[RAW], pack.problem, modality), what, limits)
    return found


def _features(
    encoder: StageEncoder,
    pack: Any,
    splits: Mapping[str, Any],
    rows: Mapping[str, Tensor],
    config: Config,
    device: torch.device,
    tokens: FeatureTokens,
    out: Path,
) -> dict[str, Tensor]:
    """[n, D] float32 of the rows of each split; of long documents and large pictures the mean of their parts."""
    modality, model = encoder.modality, encoder.model
    module = modality.features(model.module, tokens, pack).to(device)

    def answers(seen: Any, chosen: Tensor) -> Tensor:
        return modality.predict(module, model.companions, seen, chosen, modality.reader(seen, device))

    found = {}
    for name, split in splits.items():
        voting = modality.voting(pack, split, config)
        known = None
        if name == "train" and tokens == "cls" and voting is None and encoder.stage not in ("init", "finetune"):
            known = _of_bank(out, encoder, pack, config, device, split.digests[rows[name].numpy()])
        if known is None:
            log.info("probe: %s: features of %d %s of %s", encoder.stage, len(rows[name]), modality.name, name)
            known = answers_of(split, rows[name], voting, answers, "output")
        found[name] = known
    return found


def _of_bank(
    out: Path, encoder: StageEncoder, pack: Any, config: Config, device: torch.device, digests: Any
) -> Tensor | None:
    """[n, D]: the features of rows of these digests that the teacher's bank holds; None where it does not have all."""
    if config.distill.layer != "last" or config.distill.tokens != "cls":
        return None
    try:
        loaded = encoder.modality.reload(encoder.model.folder)
        recipe = encoder.modality.recipe(config, device, encoder.modality.fitted(loaded, pack, config), pack)
        bank = open_bank(out / "teacher", recipe.identity)
        rows = bank.rows_of(digests)
        if recipe.augment is not None or bank.layout.dtype == "int8" or np.any(rows < 0):
            return None
        features = widen(*decode(bank.load_streams(), bank.layout))
    except UserError:  # of another stage, other rows, or none
        return None
    log.info("probe: %s: the teacher's bank has the features of %d rows of train", encoder.stage, len(digests))
    return features[torch.from_numpy(rows)].float()


def _scores(
    features: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    problem: ProblemType,
    classes: int,
    config: Config,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """The metrics of each probe on the test rows."""
    scoring, train, test = SCORING[problem], features["train"].to(device), features["test"].to(device)
    found = {}
    if problem == SINGLE:
        given = config.finetune.knn
        voters = Neighbours(train, labels["train"].to(device), classes, given.k, given.temperature)
        outputs = torch.cat([voters(some) for some in test.split(_ROWS)]).cpu()
        found["knn"] = _metrics(scoring, outputs, labels["test"], classes)
    found["linear"] = _metrics(
        scoring, linear_probe(train, labels["train"], test, problem, classes), labels["test"], classes
    )
    return found


def _metrics(scoring: Any, outputs: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    return scoring.reported(scoring.metrics(outputs, labels), classes)


def shown_metrics(problem_metrics: Mapping[str, float]) -> list[str]:
    """The metrics that a table shows of a probe's."""
    wanted = ("accuracy", "macro_f1", "mean_average_precision", "r2", "rmse")
    return [name for name in wanted if name in problem_metrics][:2]


def _said(stage: str, probes: Mapping[str, Mapping[str, float]], problem: ProblemType, modality: Modality) -> str:
    name = SCORING[problem].dev_metric(None, modality.name)
    return f"{stage}: " + ", ".join(f"{probe} {name} {metrics[name]:.4f}" for probe, metrics in probes.items())
