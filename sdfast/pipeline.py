"""A run: model and data in one directory, and its stages as methods."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from sdfast import durable, occupant
from sdfast.config import Config, resolve
from sdfast.context import Context, Modality
from sdfast.data.shard_names import is_there
from sdfast.engine.deepspeed_options import options_in
from sdfast.engine.followers import Follower
from sdfast.engine.machine import cpu_settings
from sdfast.errors import SdfastError, UserError, nearest
from sdfast.export import export_stage
from sdfast.launch import code
from sdfast.log import log
from sdfast.modalities.choose import modality_of
from sdfast.models.embedder import FeatureTokens
from sdfast.models.hub import find_model_folder
from sdfast.opening import device_of, model_path, opened_data, opened_model, ranks_of
from sdfast.ranks import Ranks
from sdfast.replay.causes import Finding
from sdfast.replay.run import replay_run
from sdfast.report.live import LiveReport, wanted
from sdfast.report.run import results_of, write_report
from sdfast.rundir import Result, slug
from sdfast.sharing.target import target_of
from sdfast.stages.bring import Maker
from sdfast.stages.evaluate import Evaluation, evaluate_run
from sdfast.stages.graph import Start, distillation, finetuning, pretraining
from sdfast.stages.run_directory import RunDirectory
from sdfast.teacher.bank import Bank
from sdfast.trackers.choose import check_trackers, trackers_of

if TYPE_CHECKING:
    from sdfast.inference.embed import Embeddings
    from sdfast.inference.predict import Predictions
    from sdfast.inference.probe import Probe

_STAGES = ("pretrain", "distill", "finetune", "all")


class Pipeline:
    """Adapt a pre-trained masked auto-encoder or masked language model to a data set.

    Stages are targets, as in make: a stage runs those it needs first, is not run again when it is done and nothing
    that decides its result has changed (by content), and resumes when it was interrupted.

    Attributes:
        config: what was asked for; once model and data are open with the values that depend on them.
        out: the run directory.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        data: str | Path | None = None,
        out: str | Path | None = None,
        *,
        name: str | None = None,
        unlabelled: str | Path | Sequence[str | Path] = (),
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
            model: hub id, folder or file of weights (see `load_mae` and `load_mlm`); the bundled model of images when
                not given.
            data: what to adapt to (see `sdfast.data.sources.open_source`); bundled images or texts when not given.
            out: run directory; `runs/<name>` when not given, and without a name `runs/<model>-<data>`.
            name: what the run is called, in reports and lists; it decides nothing (the key `name`).
            unlabelled: further sources whose rows join those of `pretrain`, `distill` and the bank without a label (the
                key `data.unlabelled`).
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
        named = {"model": model, "out": out, "name": name, "device": device}
        options: dict[str, Any] = {key: str(value) for key, value in named.items() if value is not None}
        if data is not None:
            sections = {**sections, "data": {**sections.get("data", {}), "source": str(data)}}
        if unlabelled:
            specs = [unlabelled] if isinstance(unlabelled, str | Path) else unlabelled
            data_section = {**sections.get("data", {}), "unlabelled": [str(each) for each in specs]}
            sections = {**sections, "data": data_section}
        if zero is not None:
            sections = {**sections, "zero": {"stage": zero}}
        self.config: Config = resolve(preset=preset, file=config, overrides=overrides, options={**sections, **options})
        self.resume, self.replace = resume == "auto", replace
        default = "-".join(dict.fromkeys((slug(self.config.model_spec), slug(self.config.data_spec))))
        self.out = Path(self.config.out) if self.config.out else Path("runs") / (self.config.name or default)
        self.place = RunDirectory(self.out)
        self._opened = False
        self._kept_model: Path | None = None  # of a stage, where the model that was given is gone

    @property
    def results(self) -> list[Result]:
        """What this object has trained or found done, in that order."""
        return list(self._maker.results.values()) if "_maker" in self.__dict__ else []

    # What the stages work on, made when first needed.

    @cached_property
    def device(self) -> torch.device:
        """Where to run."""
        return device_of(self.config)

    @cached_property
    def ranks(self) -> Ranks:
        """The processes that work on this run; see `ranks_of`."""
        return ranks_of(self.config, self.device, self._told)

    def _told(self) -> dict[str, Any]:
        """What this process was told to do, and what does it: the same in all of a job."""
        told = {**self.config.flat(), "device": self.device.type, **code()}
        told["--resume"], told["--replace"] = "auto" if self.resume else "never", self.replace
        told["zero.config"] = options_in(self.config.zero.config)  # it may lie elsewhere on each machine
        told.pop("zero.nvme_path")  # as may the disk
        return told

    @cached_property
    def modality(self) -> Modality:
        """Whether the model is of images or of texts, and what that decides."""
        return modality_of(self.ranks.rank0_then_others(self._find_model))

    def _find_model(self) -> Path:
        try:
            return find_model_folder(self._model_path)
        except UserError as error:
            self._kept_model = occupant.kept_model(self.out, self.config)
            if self._kept_model is None:
                raise
            self._is_gone(error)
            return self._kept_model

    def _is_gone(self, error: UserError) -> None:
        self.place.gone = self.place.gone or error
        log.warning("%s What is finished can be shown, and nothing be trained.", error)

    @property
    def _model_path(self) -> str:
        return model_path(self.config) if self._kept_model is None else str(self._kept_model)

    @cached_property
    def initial(self) -> Any:
        """The model as given: theta_init and phi_init, a `PretrainedMAE` or `PretrainedMLM`."""
        modality = self.modality

        def load(config: Config) -> Any:
            # the others then find on the disk what the first downloaded
            loaded = self.ranks.rank0_then_others(lambda: modality.load(self._model_path, config))
            return loaded if self._kept_model is None else occupant.as_given(self.out, config, loaded)

        loaded, self.config = opened_model(self.config, modality, self.ranks, load)
        return loaded

    @cached_property
    def pack(self) -> Any:
        """The data, decoded or tokenised: an `ImagePack` or `TextPack`; the configuration is resolved for it."""
        initial = self.initial  # what the pack is made for, loaded in all processes
        modality, directory = self.modality, self.out / "pack"

        def prepare(config: Config) -> Any:
            spec = modality.source(config)
            if not self.ranks.is_first:
                return modality.open_pack(directory)
            if config.data.chunk is None and occupant.was_cut(self.out, config):
                config = config.model_copy(update={"data": config.data.model_copy(update={"chunk": False})})
            try:
                return modality.prepare_pack(spec, directory, config, initial, self._model_path)
            except UserError as error:
                there = all(map(is_there, (spec, *config.data.unlabelled)))
                if there or not occupant.kept_data(self.out, config):
                    raise
                self._is_gone(error)
                return modality.open_pack(directory)

        pack, self.config = opened_data(
            self.config, modality, lambda config: self.ranks.rank0_then_others(lambda: prepare(config))
        )
        return pack

    @cached_property
    def context(self) -> Context:
        """What the stages work with."""
        pack = self.pack
        model = self.modality.fitted(self.initial, pack, self.config)
        return Context(self.config, self.modality, self.device, self.ranks, model, pack, self.followers)

    @cached_property
    def followers(self) -> tuple[Follower, ...]:
        """Who is told in process 0 how training goes."""
        trackers = trackers_of(self.config, self.out) if self.ranks.is_first else ()
        return trackers if self._report is None else (*trackers, self._report)

    @cached_property
    def _report(self) -> LiveReport | None:
        """Writes the run's report in process 0, where one is wanted."""
        if not (self.ranks.is_first and wanted(self.config.engine.report)):
            return None
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return LiveReport(self.out, name, self.ranks.world)

    @cached_property
    def _maker(self) -> Maker:
        return Maker(self.context, self.place, self.resume, self._made)

    def _made(self, folder: Path, result: Result) -> None:
        """A stage was trained: the report shows it, and what its model makes of the data."""
        if self._report is None:
            return
        self._report.made()
        from sdfast.report.evidence import make_evidence

        pictures = make_evidence(self.context, self.out, results_of(self.out))
        for each in self.followers:
            each.pictures(folder.relative_to(self.out).as_posix(), result.steps, pictures)
        self._report.made()

    # The stages.

    def run(self, stage: Literal["pretrain", "distill", "finetune", "all"] = "all") -> Result:
        """Bring a stage up to date, with what it needs; `all` is `finetune`."""
        if stage not in _STAGES:
            raise UserError(f"--stage {stage} is not known; {nearest(stage, list(_STAGES))}")
        self.ranks.check_same(lambda: {"--stage": stage})
        return {"pretrain": self.pretrain, "distill": self.distill}.get(stage, self.finetune)()

    def pretrain(self) -> Result:
        """Further pre-training: theta_init -> theta_0, the teacher."""
        with self.session():
            return self._maker.make(pretraining(self.context))

    def distill(self) -> Result:
        """Self-distillation: each round starts again from theta_init and matches the previous model."""
        with self.session():
            return self._maker.make(distillation(self.context))

    def finetune(self, start: Start | None = None, seed: int | None = None, name: str = "finetune") -> Result:
        """Train the classifier and evaluate it.

        Args:
            start: weights to start from; the configuration's `finetune.start` when not given. `init` is plain
                fine-tuning, `pretrain` is further pre-training and then fine-tuning.
            seed: seed of this fine-tuning alone; the run's when not given.
            name: folder in the run directory.
        """
        with self.session():
            return self._maker.make(finetuning(self.context, start, seed, name))

    def build_bank(self, rebuild: bool = False) -> Bank:
        """The bank of the last round's teacher, built when it is not there; what it needs is trained first.

        Args:
            rebuild: replace the bank that is there.

        Raises:
            UserError: the bank there is of something else or damaged, and `rebuild` is off.
        """
        with self.session():
            context, rounds = self.context, self.config.distill.rounds
            self.modality.check_distill(context.config, context.model.shape)
            self.modality.check_bank(context.config, context.model.shape)
            teacher = self._maker.make(distillation(context, max(rounds - 1, 0)))
            model = self.modality.reload(teacher.model)
            recipe = self.modality.recipe(context.config, context.device, model, context.pack)
            bank = self.place.bank(recipe, rebuild, new_teacher=rounds > 1)
            bank.check()
            return bank

    def evaluate(self, data: str | Path | None = None, to: str | Path | None = None) -> dict[str, float]:
        """Classify with the fine-tuned model and write the predictions, as `evaluation` does.

        Returns:
            `accuracy`, `majority_class_accuracy`, `macro_f1`, `micro_f1`, `test_loss`, and where macro-F1 is over fewer
            classes than the model has `macro_f1_classes`; of several classes a row, or of numbers, what
            `sdfast.evaluation.scoring` has.
        """
        return self.evaluation(data, to).metrics

    def evaluation(self, data: str | Path | None = None, to: str | Path | None = None) -> Evaluation:
        """Classify with the fine-tuned model; predictions go to `predictions.csv` in the run directory.

        Args:
            data: another labelled source, whose predictions go to `predictions-<its name>.csv`; the run's own test
                split when not given.
            to: file for the predictions instead.

        Returns:
            Its metrics, and precision, recall and F1 of each class with the confusion matrix; of several classes a row
            average precision instead of the matrix, and of numbers the scores of each.
        """
        source, target = (None if given is None else str(given) for given in (data, to))
        with self._alone("eval"):
            path = None if target is None else Path(target)
            found = evaluate_run(self.out, self.config, self.device, source, path, self.place.read_only)
            if source is None and not self.place.read_only and self._report is not None:
                write_report(self.out)  # which has the predictions now
            return found

    def report(self, umap: bool = False) -> Path:
        """Write `report.html` in the run directory anew, as is done while a run goes.

        Where the model or the data are gone, without what would have to be computed with them.

        Args:
            umap: also map the features with UMAP, which needs the extra `umap` and takes a minute.

        Returns:
            Its path.

        Raises:
            UserError: nothing was trained there, or nothing may be written.
        """
        with self.session(training=False):
            if self.place.read_only:
                raise UserError(f"{self.out} cannot be written, so there is no place for its report.")
            self._look(umap)
            path = write_report(self.out)
        if path is None:
            raise UserError(f"{self.out} has no report: nothing was trained there, or the log says why.")
        return path

    def replay(self, stage: str | None = None) -> tuple[dict[str, Any], Finding]:
        """Run the step again whose loss was not finite; nothing of the run changes but `fault/` of the stage.

        Args:
            stage: its folder; that of the newest fault when not given.

        Returns:
            What was kept of the fault, and what was found.

        Raises:
            UserError: no fault is kept, or the run has changed since.
        """
        with self._alone("replay"):
            return replay_run(self.context, self.place, stage)

    def predict(
        self,
        data: str | Path,
        to: str | Path | None = None,
        *,
        top: int = 3,
        probabilities: bool | None = None,
    ) -> Predictions:
        """Classify the rows of a source, with labels or without, with the fine-tuned model.

        Args:
            data: the source.
            to: file for the predictions, `.csv` or `.parquet`; both in `predict/` of the run directory when not given.
            top: how many of the likeliest classes are named.
            probabilities: whether a csv file has the probability of each class; of at most 20 when not given.

        Raises:
            UserError, Interrupted: see `predict_run`.
        """
        from sdfast.inference.predict import predict_run

        target = None if to is None else Path(to)
        with self._alone("predict"):
            read_only = self.place.read_only
            return predict_run(self.out, self.config, self.device, str(data), target, top, probabilities, read_only)

    def embed(
        self,
        data: str | Path,
        stage: str | None = None,
        tokens: FeatureTokens = "cls",
        to: str | Path | None = None,
        *,
        form: Literal["npy", "parquet"] = "npy",
        dtype: Literal["float32", "float16"] = "float32",
    ) -> Embeddings:
        """Write the features of the rows of a source, with labels or without.

        Args:
            data: the source.
            stage: whose encoder: `init`, `pretrain`, `distill` or `finetune`; the last before `finetune` that is done
                when not given.
            tokens: `cls`, `mean` of the patches or words, or of images `patch`.
            to: folder to make; one in `embed/` of the run directory when not given.
            form: `npy`, with the rows' names beside it, or `parquet`.
            dtype: that they are stored in.

        Raises:
            UserError, Interrupted: see `embed_run`.
        """
        from sdfast.inference.embed import embed_run

        target, source = None if to is None else Path(to), str(data)
        with self._alone("embed"):
            read_only = self.place.read_only
            return embed_run(self.out, self.config, self.device, source, stage, tokens, target, form, dtype, read_only)

    def probe(self, tokens: FeatureTokens = "cls") -> Probe:
        """Score simple classifiers on the frozen features of each stage, and on the raw input; see `probe_run`."""
        from sdfast.inference.probe import probe_run

        with self._alone("probe"):
            return probe_run(self.out, self.config, self.device, tokens, self.place.read_only)

    @contextlib.contextmanager
    def _alone(self, command: str) -> Iterator[None]:
        """Hold the run directory, in the one process that there may be, for what trains nothing."""
        if self.ranks.world > 1:
            raise UserError(f"sdfast {command} works in one process; run it without the launcher.")
        with self.session(training=False):
            yield

    def _look(self, umap: bool) -> None:
        """Make what a report shows of the models of stages that are done."""
        from sdfast.report.evidence import make_evidence

        try:
            pack = self.modality.open_pack(self.out / "pack")
            model = self.modality.fitted(self.initial, pack, self.config)
        except SdfastError as error:
            log.warning("The report has no pictures but those that are there: %s", error)
            return
        context = Context(self.config, self.modality, self.device, self.ranks, model, pack)
        make_evidence(context, self.out, results_of(self.out), umap)

    def export(self, stage: str, to: str | Path) -> int:
        """Write a stage's model, finished or as far as it has come: as a folder, ONNX, or a program of torch.export.

        Args:
            stage: folder of the stage, such as `pretrain`, `distill`, `distill/round-1`, `finetune`.
            to: folder to make, a file that ends in .onnx or .pt2, or the word `onnx` or `torch.export` for one in
                `export/` of the run directory.

        Returns:
            The optimiser steps that the model has seen.

        Raises:
            UserError, RunError: see `export_stage` and `write_graph`.
        """

        def context() -> Context:
            shape_only = replace(self.initial, module=nn.Module())  # its weights make room for those of the stage
            pack = self.modality.open_pack(self.out / "pack")
            model = self.modality.fitted(shape_only, pack, self.config)
            return Context(self.config, self.modality, self.device, self.ranks, model, pack)

        target = target_of(to, self.out, stage)
        if target.form == "folder":
            return export_stage(self.out, context, stage, target.path)
        from sdfast.sharing.graph import write_graph

        return write_graph(self.out, context, stage, target)

    def push(
        self,
        repo_id: str,
        stage: str = "finetune",
        *,
        private: bool | None = None,
        revision: str | None = None,
        replace: bool = False,
    ) -> str:
        """Upload a finished stage's model with its card to the Hugging Face hub.

        Args:
            repo_id: `user/name`; made where it is not there.
            stage: folder of the stage.
            private: whether a new repository is private; the hub's default when None, which is public.
            revision: branch; the main one when None.
            replace: take the place of files that are there, which stay in the repository's history.

        Returns:
            The address of the commit.

        Raises:
            UserError, RunError: see `pack_up` and `send` in `sdfast.sharing.hub`.
        """
        from sdfast.sharing.hub import pack_up, send

        return send(pack_up(self.out, stage, repo_id), private, revision, replace)

    @contextlib.contextmanager
    def session(self, training: bool = True) -> Iterator[None]:
        """Hold the run directory and its log while something is done in it; nested calls share it.

        Args:
            training: whether a stage is to be trained: model and data are opened, and the configuration is written.

        Raises:
            UserError: another process holds the directory, or it is another run's.
        """
        if self.place.held:
            yield
            return
        with contextlib.ExitStack() as stack:
            self.ranks.first(lambda: self._hold(stack, training))
            self.place.held = True
            try:
                stack.enter_context(cpu_settings(self.config.engine, self.device))
                if training and not self._opened:
                    self._open_inputs()
                    self._opened = True
                yield
            finally:
                self.place.held = False
                for each in self.__dict__.get("followers", ()):  # where they were made
                    each.finish()

    def _hold(self, stack: contextlib.ExitStack, training: bool) -> None:
        self._check_directory()
        stack.enter_context(self.place.hold(training))

    def _open_inputs(self) -> None:
        self.ranks.first(lambda: check_trackers(self.config.engine.trackers))
        log.info("run directory: %s", self.out)
        default = Config().flat()
        changed = {key: value for key, value in self.config.flat().items() if value != default.get(key)}
        log.debug(
            "keys that differ from the defaults: %s", " ".join(f"{key}={value}" for key, value in changed.items())
        )
        if self.config.model is None:
            log.info("no model given: using the bundled small ViT-MAE")
        if self.config.data_spec == "bundled":
            log.info("no data given: using the bundled %s", self.modality.bundled_data[1])
        digest = self.initial.digest  # loaded in all processes
        self.ranks.first(lambda: occupant.make_room(self.out, self.config, self.modality, digest, self.replace))
        count, limit = len(self.context.train), self.config.data.limit
        if limit is not None and limit < count:
            log.info("data: training on %d of %d %s (data.limit)", limit, count, self.modality.name)
        if self.ranks.is_first:
            durable.write_bytes(self.out / "config.yaml", self.config.to_yaml().encode())

    def _check_directory(self) -> None:
        """A default --out is named after the run, or the ends of two paths, which another pair may share."""
        path = self.out / "config.yaml"
        if self.config.out is not None or not path.is_file():
            return
        other = resolve(file=path)
        theirs = (other.model_spec, other.data_spec)
        if theirs != (self.config.model_spec, self.config.data_spec) and not self.replace:
            raise UserError(f"{self.out} holds a run of {theirs[0]} on {theirs[1]}; give this one its own --out.")
