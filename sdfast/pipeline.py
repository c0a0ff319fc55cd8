"""The order of the stages, what each needs, and what is already done."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sdfast import bundled, durable, occupant
from sdfast.config import Config, OptimisationConfig, nearest, resolve
from sdfast.data.column_names import NO_LABELS
from sdfast.data.paper_sets import PaperSet, paper_set
from sdfast.domains.base import Domain, MaskedStage, Reader, labels_of, with_own_settings
from sdfast.domains.choose import domain_of
from sdfast.engine.deepspeed_options import options_in
from sdfast.engine.precision import cpu_settings, resolve_precision
from sdfast.engine.teacher_bank import build_or_open
from sdfast.engine.zero import import_deepspeed
from sdfast.errors import UserError
from sdfast.evaluation import predictions
from sdfast.evaluation.classification import evaluation_split, labelled_rows
from sdfast.evaluation.dev import dev_inputs, dev_split
from sdfast.launch import code, join, place
from sdfast.locks import NotWritable, check_held, locked
from sdfast.log import attach_file, log
from sdfast.models.hub import find_model_folder
from sdfast.objectives.choose import check_whole_batch, without_effect
from sdfast.ranks import Ranks
from sdfast.regularizers.choose import check_unspread
from sdfast.rundir import Outcome, Result, StageDirectory, slug
from sdfast.stages import train_classifier, train_masked
from sdfast.teacher.bank import Bank
from sdfast.teacher.recipe import BankRecipe

Stage = Literal["pretrain", "distill", "finetune", "all"]
Start = Literal["distill", "pretrain", "init"]
_STAGES = ("pretrain", "distill", "finetune", "all")

_HOW_TO_LABEL = {
    "images": "put each class's images in a folder of its own",
    "texts": "give each a field or column `label`, or put each class's in a folder of its own",
}


class Pipeline:
    """Adapt a pre-trained masked auto-encoder or masked language model to a data set.

    Stages are targets, as in make: a stage runs those it needs first, is not run again when it is done and nothing
    that decides its result has changed (by content), and resumes when it was interrupted.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        data: str | Path | None = None,
        out: str | Path | None = None,
        *,
        zero: int | None = None,
        preset: str | None = None,
        config: str | Path | None = None,
        device: str | None = None,
        resume: Literal["auto", "never"] = "auto",
        replace: bool = False,
        overrides: Sequence[str] = (),
        **sections: Any,
    ) -> None:
        """Set up a run; nothing is read or written yet.

        Args:
            model: hub id or folder (see `load_mae` and `load_mlm`); the bundled model of images when not given.
            data: what to adapt to (see `sdfast.data.sources.open_source`); bundled images or texts when not given.
            out: run directory; `runs/<model>-<data>` when not given.
            zero: DeepSpeed ZeRO stage, 0 to 3 (the key `zero.stage`). Under torchrun, deepspeed or srun this object is
                one process of several, which all make it with the same arguments.
            preset: name of a preset.
            config: YAML file of configuration keys.
            device: `auto`, `cpu` or `cuda`.
            resume: `auto` continues an interrupted stage and keeps finished ones; `never` runs all anew.
            replace: take the place of another run (of other data, or of another model) in the run directory, which is
                refused without it; that run's stages go when the first of these has a result.
            overrides: `key=value` strings, such as `pretrain.steps=1000`.
            sections: configuration keys as keywords, such as `seed=1` or `pretrain={"steps": 1000}`.

        Raises:
            UserError: a key or value that does not exist or fit.
        """
        if zero not in (None, 0, 1, 2, 3):
            raise UserError(f"--zero {zero} is not known; use 0, 1, 2 or 3.")
        if resume not in ("auto", "never"):
            raise UserError(f"--resume {resume} is not known; use auto or never.")
        named = {"model": model, "out": out, "device": device}
        options: dict[str, Any] = {key: str(value) for key, value in named.items() if value is not None}
        if data is not None:
            sections = {**sections, "data": {**sections.get("data", {}), "source": str(data)}}
        if zero is not None:
            sections = {**sections, "zero": {"stage": zero}}
        self.config: Config = resolve(preset=preset, file=config, overrides=overrides, options={**sections, **options})
        self.resume, self.replace = resume == "auto", replace
        self.model_spec = self.config.model or "bundled"
        self.data_spec = self.config.data.source or "bundled"
        default = "-".join(dict.fromkeys((slug(self.model_spec), slug(self.data_spec))))
        self.out = Path(self.config.out) if self.config.out else Path("runs") / default
        self.read_only = False  # whether the run directory cannot be written, and is only looked at
        self._held = self._opened = False
        self._gone: UserError | None = None  # why a model or data that finished stages had are not there any more
        self._kept_model: Path | None = None
        self._pending: set[str] = set()  # folders of stages that those being brought up to date are for
        self._finished: dict[Path, Result] = {}
        self._readers: dict[int, tuple[Any, Reader]] = {}  # on a GPU each may hold its images there

    @property
    def results(self) -> list[Result]:
        """What this object has trained or found done, in that order."""
        return list(self._finished.values())

    # What the stages work on, made when first needed.

    @cached_property
    def device(self) -> torch.device:
        """Where to run."""
        wanted = self.config.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
        if wanted == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", place().local_rank) if place().world > 1 else torch.device("cuda")

    @cached_property
    def ranks(self) -> Ranks:
        """The processes that work on this run.

        Raises:
            UserError: there are several, or ZeRO is asked for, and DeepSpeed is not installed; or they were told
                different things.
        """
        alone = place().world == 1
        if not alone or self.config.zero.stage:
            import_deepspeed(self.device)
        ranks = join(self.device, alone=bool(self.config.zero.stage))
        ranks.check_same(self._told)
        return ranks

    def _told(self) -> dict[str, Any]:
        """What this process was told to do, and what does it: the same in all of a job."""
        told = {**self.config.flat(), "device": self.device.type, **code()}
        told["--resume"], told["--replace"] = "auto" if self.resume else "never", self.replace
        told["zero.config"] = options_in(self.config.zero.config)  # it may lie elsewhere on each machine
        told.pop("zero.nvme_path")  # as may the disk
        return told

    @cached_property
    def domain(self) -> Domain:
        """Whether the model is of images or of texts, and what that decides."""
        return domain_of(self.ranks.first_before_others(self._find_model), self)

    def _find_model(self) -> Path:
        try:
            return find_model_folder(self.model_path)
        except UserError as error:
            self._kept_model = occupant.kept_model(self)
            if self._kept_model is None:
                raise
            self._gone = self._gone or error
            log.warning("%s What is finished can be shown, and nothing be trained.", error)
            return self._kept_model

    @property
    def model_path(self) -> str:
        """Where the model is: a folder, or a hub id; of one that is gone, what a stage kept of it."""
        if self._kept_model is not None:
            return str(self._kept_model)
        return str(bundled.model_folder(self.model_spec)) if self.model_spec in bundled.MODELS else self.model_spec

    @cached_property
    def initial(self) -> Any:
        """The model as given: theta_init and phi_init, a `PretrainedMAE` or `PretrainedMLM`."""
        domain = self.domain
        domain.check()
        loaded = self._load(domain)
        if self._kept_model is not None:
            loaded = occupant.as_given(self, loaded)
        self.ranks.check_same(lambda: {f"the digest of --model {self.model_spec}": loaded.digest})
        log.info("model: %s, %s", self.model_spec, domain.describe(loaded))
        for note in loaded.notes:
            log.warning("model: %s", note.removeprefix("warning: "))
        self.config, notes = with_own_settings(self.config, domain.own_settings(loaded))
        for note in notes:
            log.warning("model: %s", note)
        return loaded

    @cached_property
    def pack(self) -> Any:
        """The data, decoded or tokenised: a `Pack` or `TextPack`; the configuration is resolved for it."""
        domain = self.domain
        _ = self.initial  # what the pack is made for, loaded in all processes
        pack = self._prepare(domain)
        counts = ", ".join(f"{len(split)} {name}" for name, split in pack.splits.items())
        classes = f", {len(pack.class_names)} classes" if pack.class_names else ", unlabelled"
        log.info("data: %s: %s%s", self.data_spec, counts, classes)
        stages = ["pretrain", "distill"] + ["finetune"] * (pack.split("train").labels is not None)
        rows = {stage: len(self._rows(pack.split("train"), stage)) for stage in stages}
        self.config = self.config.resolved(domain.modality, rows)
        return pack

    def _load(self, domain: Domain) -> Any:
        # the others then find on the disk what the first downloaded
        return self.ranks.first_before_others(lambda: domain.load(self.model_path))

    def _prepare(self, domain: Domain) -> Any:
        spec = str(domain.bundled_data[0]) if self.data_spec == "bundled" else self.data_spec
        directory = self.pack_directory

        def prepare() -> Any:
            if not self.ranks.is_first:
                return domain.open_pack(directory)
            try:
                return domain.prepare_pack(spec, directory)
            except UserError as error:
                if os.path.exists(os.path.expanduser(spec)) or not occupant.kept_data(self):
                    raise
                self._gone = self._gone or error
                log.warning("%s What is finished can be shown, and nothing be trained.", error)
                return domain.open_pack(directory)

        return self.ranks.first_before_others(prepare)

    # Where things lie, which a study decides for itself.

    @property
    def pack_directory(self) -> Path:
        """Of the decoded or tokenised data."""
        return self.out / "pack"

    def stage_directory(self, stage: str, name: str, inputs: dict[str, Any]) -> StageDirectory:
        """Of a stage.

        Args:
            stage: which.
            name: of its folder in a run directory.
            inputs: everything that decides its result.
        """
        return StageDirectory(self.out / name, stage)

    def bank(self, recipe: BankRecipe, rebuild: bool, new_teacher: bool) -> Bank:
        """The bank that a recipe makes; see `build_or_open`."""
        self.ranks.first(lambda: check_held(self.out))
        return build_or_open(self.out / "teacher", recipe, rebuild, new_teacher)

    # The stages.

    def run(self, stage: Stage = "all") -> Result:
        """Bring a stage up to date, with what it needs; `all` is `finetune`."""
        if stage not in _STAGES:
            raise UserError(f"--stage {stage} is not known; {nearest(stage, list(_STAGES))}")
        self.ranks.check_same(lambda: {"--stage": stage})
        return {"pretrain": self.pretrain, "distill": self.distill}.get(stage, self.finetune)()

    def pretrain(self) -> Result:
        """Further pre-training: theta_init -> theta_0, the teacher."""
        with self.session():
            inputs = self._inputs("pretrain", start=self._start_digest())
            return self._masked_stage("pretrain", "pretrain", inputs, None)

    def distill(self) -> Result:
        """Self-distillation: each round starts again from theta_init and matches the previous model."""
        with self.session():
            rounds = self.config.distill.rounds
            if rounds:
                self.domain.check_distill()
            teacher = self._distill_rounds(rounds)
            if rounds == 0:
                teacher = self._adopt_as_distilled(teacher)
            return teacher

    def build_bank(self, rebuild: bool = False) -> Bank:
        """The bank of the last round's teacher, built when it is not there; what it needs is trained first.

        Args:
            rebuild: replace the bank that is there.

        Raises:
            UserError: the bank there is of something else or damaged, and `rebuild` is off.
        """
        with self.session():
            self.domain.check_distill()
            self.domain.check_bank(self.initial.shape)
            teacher = self._distill_rounds(max(self.config.distill.rounds - 1, 0))
            recipe = self.domain.recipe(self.domain.reload(teacher.model), self.pack)
            bank = self.bank(recipe, rebuild, new_teacher=self.config.distill.rounds > 1)
            bank.check()
            return bank

    def finetune(self, start: Start | None = None, seed: int | None = None, name: str = "finetune") -> Result:
        """Train the classifier and evaluate it.

        Args:
            start: weights to start from; the configuration's `finetune.start` when not given. `init` is plain
                fine-tuning, `pretrain` is further pre-training and then fine-tuning.
            seed: seed of this fine-tuning alone; the run's when not given.
            name: folder in the run directory.
        """
        with self.session():
            self.check_labels()
            check_unspread(self.config.finetune, self.config.zero.stage)
            check_whole_batch(self.config, self.ranks.world)
            dev = dev_split(self) if self.config.finetune.best_dev else None
            start = start or self.config.finetune.start
            seed = self.config.seed if seed is None else seed
            self._pending.add(name)
            source = {"init": None, "pretrain": self.pretrain, "distill": self.distill}[start]
            from_stage = None if source is None else source()
            digest = self.initial.digest if from_stage is None else from_stage.weights
            inputs = self._inputs("finetune", start=digest, seed=seed, classes=self.pack.class_names)
            train, test = self.pack.split("train"), self.test_split
            inputs["train labels"] = durable.sha256_array(labels_of(train)[self.train_rows("finetune").numpy()])
            inputs[f"test {self.domain.modality}"] = durable.sha256_array(test.digests[labelled_rows(test).numpy()])
            inputs["test labels"] = durable.sha256_array(labels_of(test)[labelled_rows(test).numpy()])
            inputs |= {} if dev is None else dev_inputs(self, dev)
            directory = self.stage_directory("finetune", name, inputs)
            return self._brought_up_to_date(
                directory, inputs, lambda: train_classifier(self, directory.path, inputs, from_stage, seed)
            )

    def evaluate(self, data: str | Path | None = None, to: str | Path | None = None) -> dict[str, float]:
        """Classify with the fine-tuned model; predictions go to `predictions.csv` in the run directory.

        Args:
            data: another labelled source, whose predictions go to `predictions-<its name>.csv`; the run's own test
                split when not given.
            to: file for the predictions instead.

        Returns:
            `accuracy`, `majority_class_accuracy`, `macro_f1`, `micro_f1`, `test_loss`, and where macro-F1 is over fewer
            classes than the model has `macro_f1_classes`.
        """
        from sdfast.evaluation.run import evaluate_run

        if self.ranks.world > 1:
            raise UserError("sdfast eval works in one process; run it without the launcher.")
        with self.session(training=False):
            return evaluate_run(self, None if data is None else str(data), None if to is None else Path(to))

    # How a stage is trained.

    def _masked_stage(self, stage: MaskedStage, name: str, inputs: dict[str, Any], teacher: Result | None) -> Result:
        directory = self.stage_directory(stage, name, inputs)

        def train() -> Outcome:
            start = self.initial if stage == "head" else self._start()
            return train_masked(self, directory.path, stage, inputs, start, teacher)

        return self._brought_up_to_date(directory, inputs, train)

    def _start(self) -> Any:
        """What pretrain and distill start from: the model as given, a newly made head trained first."""
        if (head := self._head()) is None:
            return self.initial
        return replace(self.initial, module=self.domain.reload(head.model).module, digest=head.weights)

    def _start_digest(self) -> str:
        """Of its weights."""
        head = self._head()
        return self.initial.digest if head is None else head.weights

    def _head(self) -> Result | None:
        """The training of a newly made head; None where there is none."""
        if not self.domain.head_steps():
            return None
        return self._masked_stage("head", "head", self._inputs("head", start=self.initial.digest), None)

    def _distill_rounds(self, count: int) -> Result:
        """The model after so many rounds; the further pre-trained one after none."""
        last = self.config.distill.rounds
        names = ["distill" if number == last else f"distill/round-{number}" for number in range(1, count + 1)]
        self._pending.update(names)
        teacher, start = self.pretrain(), self._start_digest()
        for number, name in enumerate(names, 1):
            inputs = self._inputs("distill", start=start, teacher=teacher.weights, round=number)
            teacher = self._masked_stage("distill", name, inputs, teacher)
        return teacher

    # What a stage needs.

    def section(self, stage: str) -> OptimisationConfig:
        """How a stage is optimised; a new head as `pretrain`, in steps of its own."""
        if stage == "head":
            return self.config.pretrain.model_copy(update={"steps": self.domain.head_steps()})
        return getattr(self.config, stage)

    def read(self, split: Any) -> Reader:
        """The function that brings rows of a split to the device."""
        known = self._readers.get(id(split))
        if known is None or known[0] is not split:
            known = self._readers[id(split)] = (split, self.domain.reader(split))
        return known[1]

    def train_rows(self, stage: str) -> Tensor:
        """[n] int64, on the CPU: the rows within `data.limit`; for `finetune` those that have a label."""
        return self._rows(self.pack.split("train"), stage)

    def _rows(self, train: Any, stage: str) -> Tensor:
        rows = torch.from_numpy(train.limited(self.config.data.limit, self.config.data.limit_seed))
        return labelled_rows(train, rows) if stage == "finetune" else rows

    @property
    def test_split(self) -> Any:
        """What fine-tuning is evaluated on."""
        return evaluation_split(self.pack)[1]

    @property
    def paper(self) -> PaperSet | None:
        """The paper's data set that this one has the name of, or None."""
        source = self.pack.manifest["source"]
        return paper_set(source["name"], source["kind"], self.domain.modality)

    @property
    def paper_metric(self) -> str | None:
        """The metric that the paper reports for the data set; None for one that it does not have."""
        return None if self.paper is None else self.paper.metric

    def check_labels(self) -> None:
        """Whether finetune has what it needs.

        Raises:
            UserError: there are no labels, or too few.
        """
        names, unlabelled = self.pack.class_names, [n for n, s in self.pack.splits.items() if s.labels is None]
        if names is None or "train" in unlabelled:
            columns = next((said for said in self.pack.warnings if NO_LABELS in said), None)
            how = f" ({columns.removesuffix('.')})" if columns else ""
            raise UserError(
                f"{self.data_spec} has no labels{how}, and finetune needs them; {_HOW_TO_LABEL[self.domain.modality]}, "
                "or run --stage distill."
            )
        if len(names) < 2:
            raise UserError(f"{self.data_spec} has one class only ('{names[0]}'); finetune needs two.")
        if self.test_split.labels is None:
            raise UserError(
                f"the test {self.domain.modality} of {self.data_spec} have no labels, and finetune evaluates on them."
            )

    def _inputs(self, stage: str, **content: Any) -> dict[str, Any]:
        """Everything that decides a stage's result: content digests and configuration values, by name."""
        domain = self.domain
        inputs: dict[str, Any] = {"stage": stage, "seed": self.config.seed, **content}
        inputs[f"train {domain.modality}"] = durable.sha256_array(
            self.pack.split("train").digests[self.train_rows(stage).numpy()]
        )
        inputs["train rows"] = durable.sha256_array(self.train_rows(stage).numpy())  # they key masks, order and flips
        inputs |= domain.inputs(stage)
        inputs["precision"] = resolve_precision(self.config.engine.precision, self.device)
        if stage == "distill":  # in float32, live and bank give the same result
            autocast = dict.fromkeys(("bf16", "bf16-weights"), "bf16 autocast") | {"fp16": "fp16 autocast"}
            products = {**autocast, "tf32": "tf32"}  # of a live teacher; a bank's is in full float32
            live = self.config.teacher.mode == "live"
            dtype = products.get(inputs["precision"], "float32") if live else self.config.teacher.dtype
            if dtype != "float32":
                inputs["teacher.dtype"] = dtype
        own = "pretrain" if stage == "head" else stage
        for key, value in self.section(stage).model_dump(mode="json").items():
            inputs[f"{own}.{key}"] = value
        if stage == "distill":
            inputs |= {f"pretrain.{key}": getattr(self.config.pretrain, key) for key in sorted(domain.masking)}
        decided_elsewhere = {"distill.rounds", "finetune.start", "pretrain.head_steps", f"{own}.epochs"}
        for name in decided_elsewhere | domain.not_ours:
            inputs.pop(name, None)
        for name in {"recadam", "mars", "r3f"} - {self.config.finetune.regularizer.replace("r4f", "r3f")}:
            inputs.pop(f"finetune.{name}", None)  # the settings of what does not act
        for name in without_effect(self.config):
            inputs.pop(name, None)
        for name, default in domain.later.items():
            if inputs.get(name) == default:
                del inputs[name]
        return inputs

    def _brought_up_to_date(
        self, directory: StageDirectory, inputs: dict[str, Any], train: Callable[[], Outcome]
    ) -> Result:
        self.ranks.check_same(lambda: {"the stage": directory.path.name, **inputs})
        done = self._already(directory, inputs)
        if done is None:
            self.ranks.first(lambda: self._check_trainable(directory))
            done = self._finish(directory, inputs, train())
        return done

    def _check_trainable(self, directory: StageDirectory) -> None:
        """Before hours are spent: what a stage needs is there, and nothing of a person's is in its way.

        Nor in that of the stages which will run again because this one does.
        """
        if self._gone is not None:
            raise self._gone
        directory.check_replaceable()
        for name in sorted(self._pending):
            StageDirectory(self.out / name, name).check_replaceable()

    def _already(self, directory: StageDirectory, inputs: dict[str, Any]) -> Result | None:
        """The stage's result, when there is nothing to do; says which input changed when there is."""
        known = self._finished.get(directory.path)
        again = known is not None and known.fingerprint == durable.sha256_json(inputs)
        if not self.resume and not again:
            return None
        done = self.ranks.first(lambda: directory.finished(inputs))
        if done is not None:
            self._finished[directory.path] = done
            if not again:
                log.info("%s: already done (%s)", directory.path.name, directory.model)
                self.ranks.first(self._settle)
        elif (changed := directory.changed_input(inputs)) is not None:
            log.info("%s: runs again, because %s changed", directory.path.name, changed)
        return done

    def _settle(self) -> None:
        """A stage was found done: nothing here is replaced by another run."""
        if self._held:
            occupant.forget_replaced(self.out)

    def _finish(self, directory: StageDirectory, inputs: dict[str, Any], outcome: Outcome) -> Result:
        def replaced() -> None:
            if self._held:
                occupant.sweep_replaced(self.out, directory.path)
            if directory.path == self.out / "finetune":
                predictions.remove(self.out)

        self._finished[directory.path] = self.ranks.first(lambda: directory.finish(inputs, outcome, replaced))
        return self._finished[directory.path]

    def _adopt_as_distilled(self, teacher: Result) -> Result:
        """distill.rounds=0: no self-distillation, the further pre-trained model is handed on."""
        inputs = {"stage": "distill", "round": 0, "teacher": teacher.weights}
        directory = self.stage_directory("distill", "distill", inputs)
        outcome = Outcome(
            teacher.weights,
            lambda folder: shutil.copytree(teacher.model, folder, dirs_exist_ok=True),
            {"steps": 0, "seconds": 0.0, f"{self.domain.unit}_per_s": 0.0},
            teacher.metrics,
        )
        return self._brought_up_to_date(directory, inputs, lambda: outcome)

    @contextlib.contextmanager
    def session(self, training: bool = True) -> Iterator[None]:
        """Hold the run directory and its log while something is done in it; nested calls share it.

        Args:
            training: whether a stage is to be trained: model and data are opened, and the configuration is written.

        Raises:
            UserError: another process holds the directory, or it is another run's.
        """
        if self._held:
            yield
            return
        with contextlib.ExitStack() as stack:
            self.ranks.first(lambda: self._hold(stack, training))
            self._held = True
            try:
                stack.enter_context(cpu_settings(self.config.engine))
                if training and not self._opened:
                    self._open_inputs()
                    self._opened = True
                yield
            finally:
                self._held = False
                self._pending.clear()

    def _hold(self, stack: contextlib.ExitStack, training: bool) -> None:
        """Lock the run directory and open its log, until the stack is left.

        One that may not be written, as that of another person, can be looked at as it is.
        """
        self._check_directory()
        self.read_only = False
        try:
            stack.enter_context(locked(self.out))
        except NotWritable:
            if training:
                raise
            self.read_only = True
            return
        handler = attach_file(self.out / "log.txt")
        stack.callback(handler.close)
        stack.callback(log.removeHandler, handler)

    def _open_inputs(self) -> None:
        log.info("run directory: %s", self.out)
        if self.config.model is None:
            log.info("no model given: using the bundled small ViT-MAE")
        if self.data_spec == "bundled":
            log.info("no data given: using the bundled %s", self.domain.bundled_data[1])
        _ = self.initial  # loaded in all processes
        self.ranks.first(lambda: occupant.make_room(self))
        count, limit = len(self.pack.split("train")), self.config.data.limit
        if limit is not None and limit < count:
            log.info("data: training on %d of %d %s (data.limit)", limit, count, self.domain.modality)
        if self.ranks.is_first:
            durable.write_bytes(self.out / "config.yaml", self.config.to_yaml().encode())

    def _check_directory(self) -> None:
        """A default --out is named after the ends of two paths, which another pair may share."""
        path = self.out / "config.yaml"
        if self.config.out is not None or not path.is_file():
            return
        other = resolve(file=path)
        theirs = (other.model or "bundled", other.data.source or "bundled")
        if theirs != (self.model_spec, self.data_spec) and not self.replace:
            raise UserError(f"{self.out} holds a run of {theirs[0]} on {theirs[1]}; give this one its own --out.")
