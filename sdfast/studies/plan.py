"""From a declared study to the stages it needs, each once, and what of them is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sdfast.config import Config
from sdfast.context import Context, rows_of
from sdfast.data.paper_sets import PaperSet
from sdfast.data.problem import class_counts
from sdfast.durable import sha256_array, sha256_json
from sdfast.errors import UserError, of_the_system
from sdfast.evaluation.classification import labels_of
from sdfast.evaluation.scoring import SCORING
from sdfast.rundir import Result, slug
from sdfast.stages.checks import check_labels, check_stage
from sdfast.stages.graph import Stage, Start, finetuning
from sdfast.stages.inputs import inputs_of
from sdfast.studies.declared import Arm, Study, configured, expand, length_note, rate_note, study_named
from sdfast.studies.earlier import Earlier
from sdfast.studies.raw import RawScore
from sdfast.studies.store import Shared, Store
from sdfast.studies.units import Chain, Fold, Unit, UnitKind

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
        unit: the fold or chain that it is of.
    """

    key: str
    task: Task
    needs: list[Node]
    wanted_by: list[str] = field(default_factory=list)
    result: Result | None = None
    failure: str | None = None
    unit: Unit | None = None

    @property
    def shared_by(self) -> str:
        """The first arm that wants it, and how many more do."""
        arms = list(dict.fromkeys(self.wanted_by))
        return arms[0] if len(arms) == 1 else f"{arms[0]} and {len(arms) - 1} more"

    @property
    def of_unit(self) -> str:
        """After whose it is: the fold that is tested, or the chain; empty without."""
        return "" if self.unit is None else f", {self.unit}"

    def named(self, arms: str) -> str:
        """What it is called in sentences: its kind, whose it is, the fold or chain, and the seed of a fine-tuning."""
        seed = f", seed {self.task.seed}" if self.task.stage == "finetune" else ""
        return f"{self.task.stage} ({arms}{self.of_unit}{seed})"


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of one arm.

    Attributes:
        arm: which.
        seed: of fine-tuning.
        config: its configuration, in full.
        stages: that it needs, the fine-tuning itself last.
        unit: the fold that is tested, or the chain; None where runs differ in their seeds alone.
    """

    arm: Arm
    seed: int
    config: Config
    stages: tuple[Node, ...]
    unit: Unit | None = None

    @property
    def place(self) -> tuple[int, ...]:
        """Where it stands beside the runs of other arms, with which it is paired: at its unit, else at the seed."""
        return (self.seed,) if self.unit is None else self.unit

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
        epoch: steps of `pretrain` in a pass over its rows; None where nobody has counted.
        kind: what one value of an arm is of.
        sampled: whether limits leave training rows out, so that each chain has others.
        raw: what a linear classifier on the raw input scores on the samples of rows, where the study says it.
        digests: SHA-256 of what all arms begin with: `model`, its weights (where parts of it are new, as the first seed
            draws them), and `train` and `test`, all images or texts of these splits (of the first fold).
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
    epoch: int | None = None
    kind: UnitKind = "seed"
    sampled: bool = False
    raw: list[RawScore] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    def points(self) -> set[int]:
        """Where its arms are on the study's axis."""
        return {int(arm.x) for arm in self.arms if arm.x is not None}


@dataclass
class Plan:
    """A study's stages on all of its data sets, each once.

    Attributes:
        study: what is declared.
        seeds: of the fine-tunings (`paper`), or of whole chains (`full`); with `chains`, of the first one's
            fine-tunings.
        protocol: see `seeds`.
        points: of the axis, instead of its own where there are any.
        folds: into how many the rows are divided, each of which is tested; None for the data's one test split.
        repeats: of the division, with other split seeds.
        chains: how many, each with its own seed, its own sample of the rows where a limit is set, and fine-tunings of
            its own, of which the mean counts; None where a seed counts. They are of the protocol `full`.
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
    chains: int | None = None
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
        units = self._units(config)
        with store.opened(self._at(config, units[0])) as context:
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
            all_of_them = config.changed(["data.limit=null", "data.labelled_limit=null"])
            sampled = used < rows or labelled < len(rows_of(context.train_of("finetune"), all_of_them, "finetune"))
            if study.axis is not None and study.axis.kind == "labels":
                rows = len(rows_of(context.train, config.changed(["data.labelled_limit=null"]), "finetune"))
            classes = len(context.pack.class_names)
            tested = len(context.test)
            digests = {"model": context.model.digest}
            digests |= {"train": sha256_array(context.train.digests), "test": sha256_array(context.test.digests)}
            epoch = -(-len(context.train_rows("pretrain")) // config.pretrain.batch_size)
            # the same new head for all arms, however long they are pre-trained
            if steps := context.modality.head_steps(config, context.model):
                config = config.changed([f"pretrain.head_steps={steps}"])
        arms, notes = expand(study, config, rows, self.points)
        notes += [*rate_note(config, arms), *length_note(study, config, epoch)]
        if paper is not None and (why := other_sizes(paper, used, labelled, tested, classes)):
            notes.append(why)
            paper = None
        target = Target(
            *(title, out, config.data_spec, modality, metric, paper, arms, rows),
            notes=notes,
            folds=self.folds,
            epoch=epoch,
            kind=self.kind,
            digests=digests,
        )
        for arm in arms:
            try:
                target.cells += _wanted(
                    self._cell(configured(config, arm), arm, seed, store, unit)
                    for unit in units
                    for seed in self._seeds(unit)
                )
            except UserError as error:
                if of_the_system(error):
                    raise
                target.unavailable[arm.title] = str(error)
        if not target.cells:
            raise UserError(next(iter(target.unavailable.values())))
        for table in self.earlier:
            alike = (table.protocol, table.kind, table.folds) == (self.protocol, self.kind, self.folds)
            if alike and config.data_spec in table.runs:
                self._add_earlier(target, config, table, store)
        target.sampled = sampled or (study.of_sizes and min(target.points()) < rows)
        target.notes += self._unseen_classes(target, config, store)
        return target

    @property
    def kind(self) -> UnitKind:
        """What one value of an arm is of."""
        return "fold" if self.folds else "chain" if self.chains else "seed"

    def _units(self, config: Config) -> list[Unit | None]:
        """Those in which each arm is trained; None alone where runs differ in their seeds."""
        chains = [Chain(number) for number in range(self.chains or 0)]
        first = config.data.split_seed
        folds = [Fold(first + more, fold) for more in range(self.repeats) for fold in range(self.folds or 0)]
        return [*chains, *folds] or [None]

    def _seeds(self, unit: Unit | None) -> list[int]:
        """The seeds of the fine-tunings in a unit; no two chains have one in common."""
        before = unit.number * len(self.seeds) if isinstance(unit, Chain) else 0
        return [before + seed for seed in self.seeds]

    def _at(self, config: Config, unit: Unit | None) -> Config:
        """The configuration that tests a fold, or that of a chain, from that of the first."""
        data, keys = config.data, dict[str, int | None]()
        if isinstance(unit, Fold):
            keys = {"data.folds": self.folds, "data.fold": unit.number, "data.split_seed": unit.split_seed}
        elif unit is not None:
            keys = {"seed": config.seed + unit.number}
            if data.limit is not None or data.labelled_limit is not None:
                keys["data.limit_seed"] = data.limit_seed + unit.number
        return config.changed([f"{key}={value}" for key, value in keys.items()]) if keys else config

    def _unseen_classes(self, target: Target, config: Config, store: Store) -> list[str]:
        """Sentences about classes that no arm, or none of a size, can learn."""
        units = list(dict.fromkeys(cell.unit for cell in target.cells))
        if not target.folds and not target.sampled:
            units = units[:1]  # the others have the same rows
        sizes = sorted(target.points()) if self.study.of_sizes else [None]
        said: dict[str, list[Unit | None]] = {}
        for unit in units:
            with store.opened(self._at(config, unit)) as context:
                for size in sizes:
                    of_size = config if size is None else config.changed([self.study.size(size)])
                    for sentence in _unseen(context, self._at(of_size, unit), size):
                        said.setdefault(sentence, []).append(unit)
        found = []
        for sentence, of in said.items():
            found += [sentence] if len(of) == len(units) else [f"{str(unit).capitalize()}: {sentence}" for unit in of]
        return found

    def _add_earlier(self, target: Target, config: Config, table: Earlier, store: Store) -> None:
        """Add cells that an earlier table shows; of the whole study, also where a command chose some arms."""
        study = study_named(self.study.name)
        points = [] if study.axis is None else sorted(table.points[target.spec] | target.points())
        there, more = {(cell.arm.title, cell.seed, cell.unit) for cell in target.cells}, []
        try:
            study = replace(study, arms=(*study.arms, *study.more))
            arms = {arm.title: arm for arm in expand(study, config, target.rows, points)[0]}
            for title, seed, fingerprint, unit in sorted(table.runs[target.spec]):
                if (arm := arms.get(title)) is None:
                    return
                if isinstance(unit, Chain) and seed not in self._seeds(unit):
                    return  # of other fine-tunings in each chain, or of another first seed
                cell = self._cell(configured(config, arm), arm, seed, store, unit)
                result = cell.stages[-1].result
                if result is None or result.fingerprint != fingerprint:
                    return
                if (title, seed, unit) not in there:
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

    def _cell(self, config: Config, arm: Arm, seed: int, store: Store, unit: Unit | None) -> Cell:
        """Goes through the stages of a cell without training any."""
        config = self._at(config, unit)
        if self.protocol == "full" and not isinstance(unit, Chain):
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
                    done = store.directory(stage, inputs).finished(inputs)
                    self.nodes[key] = Node(key, task, [*stages], unit=unit, result=done)
                known = self.nodes[key].result
                weights[stage] = f"the weights of {key}" if known is None else known.weights
                stages.append(self.nodes[key])
        return Cell(arm, seed, context.config, tuple(stages), unit)


def _unseen(context: Context, config: Config, size: int | None) -> list[str]:
    """A sentence about classes that have none of the training rows of a configuration, where there are any."""
    train, names = context.train, context.pack.class_names
    labels = labels_of(train)[rows_of(train, config, "finetune").numpy()]
    unseen = int((class_counts(labels, len(names)) == 0).sum())
    where = "" if size is None else f"At n = {size} "
    return [f"{where}{unseen} of {len(names)} classes have no training row."] if unseen else []


def _wanted(cells: Iterable[Cell]) -> list[Cell]:
    """All cells, which their stages then know of; none of them where one is refused."""
    found = list(cells)
    for cell in found:
        for node in cell.stages:
            node.wanted_by.append(cell.arm.title)
    return found


def other_sizes(paper: PaperSet, used: int, labelled: int, tested: int, classes: int) -> str | None:
    """Why the paper's numbers do not stand beside those of other sizes; None where the sizes are the paper's.

    Args:
        paper: its data set.
        used: training rows within the limit.
        labelled: those of them that fine-tuning sees.
        tested: test rows.
        classes: how many.
    """
    rows = paper.rows["train"]
    if (used, labelled, tested, classes) == (rows, rows, paper.rows["test"], paper.classes):
        return None
    some = "" if labelled == used else f" ({labelled} of them for fine-tuning)"
    corrected = f" ({paper.misprint})" if paper.misprint else ""
    return (
        f"The paper's numbers are not shown: it trained on {rows} rows and was tested on {paper.rows['test']}, in"
        f" {paper.classes} classes{corrected}, and these are {used}{some} and {tested} in {classes} classes."
    )
