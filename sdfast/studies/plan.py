"""From a declared study to the stages it needs, each once, and what of them is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from sdfast.config import Config
from sdfast.context import Context, rows_of
from sdfast.data.paper_sets import PaperSet
from sdfast.data.problem import class_counts
from sdfast.durable import sha256_json
from sdfast.errors import UserError, of_the_system
from sdfast.evaluation.classification import labels_of
from sdfast.evaluation.scoring import SCORING
from sdfast.rundir import Result, slug
from sdfast.stages.checks import check_labels, check_stage
from sdfast.stages.graph import Stage, Start, finetuning
from sdfast.stages.inputs import inputs_of
from sdfast.studies.declared import Arm, Study, configured, expand, rate_note, study_named
from sdfast.studies.earlier import Earlier
from sdfast.studies.raw import RawScore
from sdfast.studies.store import Shared, Store

Protocol = Literal["paper", "full"]


@dataclass(frozen=True)
class Task:
    """One stage of one cell: what a worker does.

    Attributes:
        config: of the cell.
        out: directory of stages, banks and packs.
        stage: `head`, `pretrain`, `distill` (of `config.distill.rounds`) or `finetune`.
        start, seed: of `finetune`.
    """

    config: Config
    out: Path
    stage: str
    start: Start = "init"
    seed: int = 0


@dataclass(eq=False)
class Node:
    """A stage that one or more cells need; it is equal to itself alone.

    Attributes:
        key: fingerprint of its inputs, in which what is not trained yet stands for its weights.
        task: how it is made.
        needs: the stages before it.
        wanted_by: titles of the arms.
        result: once it is done.
        failure: why it is not.
    """

    key: str
    task: Task
    needs: list[Node]
    wanted_by: list[str] = field(default_factory=list)
    result: Result | None = None
    failure: str | None = None

    @property
    def shared_by(self) -> str:
        """The first arm that wants it, and how many more do."""
        arms = list(dict.fromkeys(self.wanted_by))
        return arms[0] if len(arms) == 1 else f"{arms[0]} and {len(arms) - 1} more"

    @property
    def fold(self) -> str:
        """After whose it is: the fold that is tested; empty without folds."""
        data = self.task.config.data
        return f", fold {data.fold} of split seed {data.split_seed}" if data.folds else ""

    def named(self, arms: str) -> str:
        """What it is called in sentences: its kind, whose it is, the fold, and the seed of a fine-tuning."""
        seed = f", seed {self.task.seed}" if self.task.stage == "finetune" else ""
        return f"{self.task.stage} ({arms}{self.fold}{seed})"


class Fold(NamedTuple):
    """One fold of one division: the seed of the split, and the fold's number."""

    split_seed: int
    number: int


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of one arm.

    Attributes:
        arm: which.
        seed: of fine-tuning.
        fold: that is tested, and the seed of the split; None without folds.
        config: its configuration, in full.
        stages: that it needs, the fine-tuning itself last.
    """

    arm: Arm
    seed: int
    config: Config
    stages: tuple[Node, ...]
    fold: Fold | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands beside the runs of other arms, with which it is paired: at the fold, else at the seed."""
        return (self.seed, 0) if self.fold is None else self.fold

    @property
    def result(self) -> Result:
        """What came out, once it is done."""
        found = self.stages[-1].result
        assert found is not None
        return found


@dataclass
class Target:
    """A study's cells on one data set.

    Attributes:
        title: the paper's name of the data set, or its own.
        out: directory of stages, banks and packs.
        spec: as it was asked for.
        modality: of its rows.
        metric: the key of what is reported first.
        paper: the paper's data set that it is.
        arms: at all points.
        unavailable: title of an arm -> why it cannot be trained here.
        cells: of the others.
        notes: for the table.
        rows: of training, before any limit; of a study of labelled rows those; with folds, of the first.
        folds: into how many the rows are divided, of which each is tested; None where the data have a test split.
        raw: what a linear classifier on the raw input scores on the samples of rows, where the study says it.
    """

    title: str
    out: Path
    spec: str
    modality: str
    metric: str
    paper: PaperSet | None
    arms: list[Arm]
    rows: int
    unavailable: dict[str, str] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folds: int | None = None
    raw: list[RawScore] = field(default_factory=list)

    def points(self) -> set[int]:
        """Where its arms are on the study's axis."""
        return {int(arm.x) for arm in self.arms if arm.x is not None}


@dataclass
class Plan:
    """A study's stages on all of its data sets, each once.

    Attributes:
        study: what is declared.
        seeds: of the fine-tunings (`paper`), or of whole chains (`full`).
        protocol: see `seeds`.
        points: of the axis, instead of its own where there are any.
        folds: into how many the rows are divided, each of which is tested; None for the data's one test split.
        repeats: of the division, with other split seeds.
        earlier: tables of the study; one whose runs on a data set are all done, as they would be trained now, is of the
            same settings, and they are cells too.
        shared: what is open already.
        nodes: the stages so far, by key, in an order in which they can be trained.
    """

    study: Study
    seeds: Sequence[int]
    protocol: Protocol = "paper"
    points: Sequence[int] = ()
    folds: int | None = None
    repeats: int = 1
    earlier: Sequence[Earlier] = ()
    shared: Shared = field(default_factory=Shared)
    nodes: dict[str, Node] = field(default_factory=dict)

    def target(self, config: Config, out: Path) -> Target:
        """The study's cells on the data of a configuration; their stages are added to `nodes`.

        Model and data are opened, and the pack is built. Nothing is trained.

        Args:
            config: of the run.
            out: directory of stages, banks and packs.

        Raises:
            UserError: data or model that the study is not for, or that no arm can be trained with.
        """
        study, store = self.study, Store(out, self.shared)
        first = config.data.split_seed
        divided = [Fold(first + more, fold) for more in range(self.repeats) for fold in range(self.folds or 0)]
        places: list[Fold | None] = [*divided] or [None]
        with store.opened(self._at(config, places[0])) as context:
            modality, config = context.modality.name, context.config
            if study.modality not in (None, modality):
                raise UserError(
                    f"study {study.name} is of {study.modality}, and {config.model_spec} is a model of {modality}."
                )
            check_labels(context)
            paper, rows = context.paper, len(context.train)
            metric = SCORING[context.pack.problem].dev_metric(context.paper_metric, modality)
            title = paper.title if paper else slug(config.data_spec)
            used = len(context.train.limited(config.data.limit, config.data.limit_seed))
            labelled = len(context.train_rows("finetune"))
            if study.axis is not None and study.axis.kind == "labels":
                rows = len(rows_of(context.train, config.changed(["data.labelled_limit=null"]), "finetune"))
            classes = len(context.pack.class_names)
            tested = len(context.test)
            # the same new head for all arms, however long they are pre-trained
            if steps := context.modality.head_steps(config, context.model):
                config = config.changed([f"pretrain.head_steps={steps}"])
        arms, notes = expand(study, config, rows, self.points)
        notes += rate_note(config, arms)
        whole = None if paper is None else (paper.rows["train"], paper.rows["train"], paper.rows["test"], paper.classes)
        if paper is not None and (used, labelled, tested, classes) != whole:
            some = "" if labelled == used else f" ({labelled} of them for fine-tuning)"
            here = f"{used}{some} and {tested} in {classes} classes"
            there = f"{paper.rows['train']} rows and was tested on {paper.rows['test']}, in {paper.classes} classes"
            notes.append(f"The paper's numbers are not shown: it trained on {there}, and these are {here}.")
            paper = None
        target = Target(
            title, out, config.data_spec, modality, metric, paper, arms, rows, notes=notes, folds=self.folds
        )
        for arm in arms:
            try:
                target.cells += _wanted(
                    self._cell(configured(config, arm), arm, seed, store, place)
                    for place in places
                    for seed in self.seeds
                )
            except UserError as error:
                if of_the_system(error):
                    raise
                target.unavailable[arm.title] = str(error)
        if not target.cells:
            raise UserError(next(iter(target.unavailable.values())))
        for table in self.earlier:
            if (table.protocol, table.folds) == (self.protocol, self.folds) and config.data_spec in table.runs:
                self._add_earlier(target, config, table, store)
        for place in places:
            with store.opened(self._at(config, place)) as context:
                said = _unseen_classes(context, target, study)
            where = "" if place is None else f"Fold {place.number} of split seed {place.split_seed}: "
            target.notes += [f"{where}{sentence}" for sentence in said]
        return target

    def _at(self, config: Config, place: Fold | None) -> Config:
        """The configuration that tests a fold."""
        if place is None:
            return config
        keys = {"folds": self.folds, "fold": place.number, "split_seed": place.split_seed}
        return config.changed([f"data.{key}={value}" for key, value in keys.items()])

    def _add_earlier(self, target: Target, config: Config, table: Earlier, store: Store) -> None:
        """Add cells that an earlier table shows; of the whole study, also where a command chose some arms."""
        study = study_named(self.study.name)
        points = [] if study.axis is None else sorted(table.points[target.spec] | target.points())
        there, more = {(cell.arm.title, cell.seed, cell.fold) for cell in target.cells}, []
        try:
            study = replace(study, arms=(*study.arms, *study.more))
            arms = {arm.title: arm for arm in expand(study, config, target.rows, points)[0]}
            for title, seed, fingerprint in sorted(table.runs[target.spec]):
                if (arm := arms.get(title)) is None:
                    return
                place = table.fold_of.get((title, seed, fingerprint))
                cell = self._cell(configured(config, arm), arm, seed, store, place and Fold(*place))
                result = cell.stages[-1].result
                if result is None or result.fingerprint != fingerprint:
                    return
                if (title, seed, cell.fold) not in there:
                    more.append(cell)
        except UserError as error:  # an arm that these settings do not allow
            if of_the_system(error):
                raise
            return
        cells = target.cells + _wanted(more)
        shown = {cell.arm.title for cell in cells} | set(target.unavailable)
        target.arms = [arm for arm in arms.values() if arm.title in shown]
        order = {arm.title: place for place, arm in enumerate(target.arms)}
        target.cells = sorted(cells, key=lambda cell: (order[cell.arm.title], cell.place, cell.seed))

    def _cell(self, config: Config, arm: Arm, seed: int, store: Store, fold: Fold | None) -> Cell:
        """Goes through the stages of a cell without training any."""
        config = self._at(config, fold)
        if self.protocol == "full":
            config = config.changed([f"seed={seed}"])
        with store.opened(config) as context:
            chain = finetuning(context, arm.start, seed).chain()
            for stage in reversed(chain):
                check_stage(context, stage)
            weights: dict[Stage, str] = {}
            stages: list[Node] = []
            for stage in chain:
                inputs = inputs_of(context, stage, weights)
                key = sha256_json(inputs)
                if key not in self.nodes:
                    given = context.config
                    if stage.kind == "distill":
                        given = given.changed([f"distill.rounds={stage.round}"])
                    task = Task(given, store.out, stage.kind, *(() if stage.seed is None else (arm.start, stage.seed)))
                    self.nodes[key] = Node(key, task, [*stages], result=store.directory(stage, inputs).finished(inputs))
                known = self.nodes[key].result
                weights[stage] = f"the weights of {key}" if known is None else known.weights
                stages.append(self.nodes[key])
        return Cell(arm, seed, context.config, tuple(stages), fold)


def _unseen_classes(context: Context, target: Target, study: Study) -> list[str]:
    """Sentences about classes that no arm, or none of a size, can learn."""
    train, names, sizes = context.train, context.pack.class_names, study.of_sizes
    said = []
    for limit in sorted(target.points()) if sizes else [None]:
        given = context.config if limit is None else context.config.changed([study.size(limit)])
        labels = labels_of(train)[rows_of(train, given, "finetune").numpy()]
        if unseen := int((class_counts(labels, len(names)) == 0).sum()):
            where = f"At n = {limit} " if sizes else ""
            said.append(f"{where}{unseen} of {len(names)} classes have no training row.")
    return said


def _wanted(cells: Iterable[Cell]) -> list[Cell]:
    """All cells, which their stages then know of; none of them where one is refused."""
    found = list(cells)
    for cell in found:
        for node in cell.stages:
            node.wanted_by.append(cell.arm.title)
    return found
