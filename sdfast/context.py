"""What a stage is trained with: a frozen context, and the seam between it and a kind of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from sdfast.config import Config, ModalityName, OptimisationConfig
from sdfast.data.config import DataConfig
from sdfast.data.order import BatchOrder
from sdfast.data.pack_files import OpenPack
from sdfast.data.paper_sets import PaperSet, paper_set
from sdfast.data.problem import SINGLE
from sdfast.engine.followers import Follower
from sdfast.evaluation.classification import evaluation_split, labelled_rows, labels_of
from sdfast.log import log
from sdfast.models.embedder import FeatureTokens
from sdfast.models.found import Told
from sdfast.models.layout import Naming
from sdfast.models.portable import Portable
from sdfast.objectives.classification import LabelledViews
from sdfast.objectives.masked import MaskedViews
from sdfast.ranks import Ranks
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.recipe import BankRecipe
from sdfast.teacher.targets import Teacher

Kind = Literal["head", "pretrain", "distill", "finetune"]  # of a stage
MaskedKind = Literal["head", "pretrain", "distill"]
Reader = Callable[[Tensor], Any]  # rows [B] int64 on the CPU -> what a model takes, on the device


@dataclass(frozen=True)
class Context:
    """What the stages of a run work with; nobody changes it.

    Pre-trained models (`PretrainedMAE`, `PretrainedMLM`), packs and splits are those of the modality.

    Attributes:
        config: of the run, with a value for each key that depends on model and data.
        modality: images or texts, and what that decides.
        device: where to run.
        ranks: the processes that work on the run.
        model: as given: theta_init and phi_init.
        pack: the data, decoded or tokenised.
        followers: who is told how training goes.
    """

    config: Config
    modality: Modality
    device: torch.device
    ranks: Ranks
    model: Any
    pack: Any
    followers: Sequence[Follower] = ()
    _readers: dict[int, tuple[Any, Reader]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def train(self) -> Any:
        """The split that is trained on."""
        return self.pack.split("train")

    @property
    def test(self) -> Any:
        """What fine-tuning is evaluated on."""
        return evaluation_split(self.pack)[1]

    def train_of(self, kind: Kind) -> Any:
        """What a kind of stage sees of the split that is trained on: possibly chunks of texts, or tiles of images."""
        return self.modality.training_split(self.pack, self.config, kind)

    def section(self, kind: Kind) -> OptimisationConfig:
        """How a kind of stage is optimised; a new head as `pretrain`, in steps of its own."""
        if kind == "head":
            steps = self.modality.head_steps(self.config, self.model)
            return self.config.pretrain.model_copy(update={"steps": steps, "method": "full"})
        return getattr(self.config, kind)

    def train_rows(self, kind: Kind) -> Tensor:
        """[n] int64, on the CPU: the rows of `train_of` in `data.limit`; for `finetune` those with a label, as many as
        `data.labelled_limit` allows."""
        return rows_of(self.train_of(kind), self.config, kind)

    def balanced_classes(self, kind: Kind) -> Tensor | None:
        """[n] int64: the class of each of `train_rows`, where as many of each are taken; None where they are not."""
        if kind != "finetune" or self.config.finetune.sampling != "balanced":
            return None
        return torch.from_numpy(labels_of(self.train_of(kind)))[self.train_rows(kind)]

    def read(self, split: Any) -> Reader:
        """The function that brings rows of a split to the device; made once, as on a GPU it may hold its images."""
        known = self._readers.get(id(split))
        if known is None or known[0] is not split:
            known = self._readers[id(split)] = (split, self.modality.reader(split, self.device))
        return known[1]

    @property
    def paper(self) -> PaperSet | None:
        """The paper's data set that the data have the name of, with one class a row; or None."""
        if self.pack.problem != SINGLE:
            return None
        source = self.pack.manifest["source"]
        return paper_set(source["name"], source["kind"], self.modality.name)

    @property
    def paper_metric(self) -> str | None:
        """The metric that the paper reports for the data set; None for one that it does not have."""
        return None if self.paper is None else self.paper.metric


def rows_of(train: Any, config: Config, kind: Kind) -> Tensor:
    """[n] int64, on the CPU: the rows that a kind of stage trains on of what it sees of a split."""
    data = config.data
    if kind != "finetune":
        return torch.from_numpy(train.limited(data.limit, data.limit_seed))
    limits = [limit for limit in (data.limit, data.labelled_limit) if limit is not None]
    rows = train.limited(min(limits, default=None), data.limit_seed)  # those with a label come first in any limit
    return labelled_rows(train, torch.from_numpy(rows))


@dataclass(frozen=True)
class Classifier:
    """A fine-tuned model from its folder.

    Attributes:
        module: float32, on the CPU.
        names: of its classes, by output.
        companions: what else the folder holds: an `ImageProcessor`, or `Companions`.
        folder: where it lies.
    """

    module: Any
    names: list[str]
    companions: Any
    folder: Path


@dataclass(frozen=True)
class RawInput:
    """What rows are without a model, for a linear classifier.

    Attributes:
        strength: C of its logistic regression (see `sdfast.inference.linear`).
        read: a split of the pack and rows [m] int64 of it -> [m, D] float32.
    """

    strength: float
    read: Callable[[Any, Tensor], Tensor]


class MaskedExamples(Protocol):
    """Some rows of which the same part is hidden from every model; what is given of them is JSON."""

    def shown(self) -> list[dict[str, Any]]:
        """What each row is, whole and masked."""

    def filled(self, module: Any, given: bool) -> dict[str, Any]:
        """What a masked model in evaluation mode puts in place, and its mean `error` there.

        Args:
            module: on any device.
            given: whether it is the model as given.
        """


class Modality(ABC):
    """One kind of data: images or texts. It has no state; what its methods need they are given.

    Attributes:
        name: the kind, and what its rows are called in sentences and inputs.
        unit: what a row is called beside a rate, and in `result.json`: `img_per_s`, `seq_per_s`.
        how_to_label: what a person does with data that have no labels.
        raw: what `raw_input` gives, in words.
    """

    name: ClassVar[ModalityName]
    unit: ClassVar[Literal["img", "seq"]]
    how_to_label: ClassVar[str]
    raw: ClassVar[str]

    # Model and data.

    @property
    @abstractmethod
    def bundled_data(self) -> tuple[Path, str]:
        """Folder of the data that are used when none are given, and what they are called."""

    def source(self, config: Config) -> str:
        """What the data are read from."""
        return str(self.bundled_data[0]) if config.data_spec == "bundled" else config.data_spec

    @abstractmethod
    def load(self, spec: str, config: Config) -> Any:
        """The model as given, adapted to the settings.

        Raises:
            UserError: it is none that can be taken, or does not fit the settings.
        """

    @abstractmethod
    def reload(self, folder: Path) -> Any:
        """The model that a stage left."""

    @abstractmethod
    def given(self, spec: str, told: Told, image_size: tuple[int, int] | int | None, channels: int | None) -> Any:
        """A model as given, outside of a run.

        Args:
            spec: hub id, folder, or file of weights alone.
            told: what such a file does not say.
            image_size: height and width that a model of images is adapted to; its own when None.
            channels: the same of its channels.

        Raises:
            UserError: it is none that can be taken, or something is asked for that such a model does not have.
        """

    @abstractmethod
    def write_given(self, model: Any, folder: Path) -> str:
        """Write a model as given in Hugging Face format, without what was newly made for it; what it is, in words."""

    @abstractmethod
    def describe(self, model: Any) -> str:
        """Its size, for the log."""

    @abstractmethod
    def own_settings(self, model: Any) -> Mapping[str, Any]:
        """Keys of `pretrain` and the values that the model as given was trained with: they hold where none is given."""

    @abstractmethod
    def head_steps(self, config: Config, model: Any) -> int:
        """Steps in which a newly made decoder or head is trained alone; 0 where there is none."""

    @abstractmethod
    def prepare_pack(self, spec: str, directory: Path, config: Config, model: Any, folder: str) -> Any:
        """The pack of a source for a model, built when need be.

        Args:
            spec: of the source.
            directory: of the pack.
            config: of the run.
            model: as given.
            folder: where that is: a folder, or a hub id.
        """

    def fitted(self, model: Any, pack: Any, config: Config) -> Any:
        """A model as given, with what it takes from the pack where the configuration says so; both stay as they are."""
        return model

    @abstractmethod
    def open_pack(self, directory: Path) -> Any:
        """A pack that is there."""

    def training_split(self, pack: Any, config: Config, kind: Kind) -> Any:
        """What a kind of stage sees of the train split, whose rows it trains on: the split itself, or a view of it."""
        return pack.split("train")

    def voting(self, pack: Any, split: Any, config: Config) -> Any:
        """The rows that vote for the items of a split, a view of it as of chunks for documents; None without such.

        It has `item_of`, [N] int64, ascending: which item each row is of; `labels`, of each row; `digests`; and
        `adds_content`: whether rows hold what the digests of the items are not of.
        """
        return None

    def settled(self, config: Config, pack: Any) -> Config:
        """The configuration with a value for each key of `data` that depends on the pack, and that said in the log.

        Raises:
            UserError: the pack lacks what they ask for.
        """
        return config

    @abstractmethod
    def reader(self, split: Any, device: torch.device) -> Reader:
        """The function that brings rows of a split to the device."""

    @abstractmethod
    def order(self, context: Context, kind: Kind, seed: int) -> BatchOrder:
        """The batches of a stage's rows."""

    @abstractmethod
    def inputs(self, context: Context, kind: Kind) -> dict[str, Any]:
        """What decides a stage's result beside content, settings and start, by name."""

    # What is minimised.

    @abstractmethod
    def masked_views(self, context: Context, kind: MaskedKind, seed: int) -> MaskedViews:
        """What a stage that masks sees of the rows.

        Args:
            context: of the run.
            kind: of the stage.
            seed: of augmentation.

        Raises:
            UserError: masks that leave nothing to do.
        """

    @abstractmethod
    def labelled_views(self, context: Context, seed: int) -> LabelledViews:
        """What fine-tuning sees of the rows; the seed is that of flips."""

    @abstractmethod
    def flops(self, context: Context, kind: Kind) -> float:
        """FLOPs of the training step for one row, in the mean over the rows."""

    @abstractmethod
    def worth_of_zero(self, context: Context, kind: Kind) -> str | None:
        """What the run's ZeRO stage saves, in one sentence; None where nobody knows."""

    # The teacher.

    @abstractmethod
    def check_distill(self, config: Config, shape: Any) -> None:
        """What would stop distill, before its teacher is trained.

        Raises:
            UserError: a setting that distill cannot do.
        """

    @abstractmethod
    def check_bank(self, config: Config, shape: Any) -> None:
        """The same for a bank of the features of a teacher of some shape."""

    def live_teacher(self, config: Config, device: torch.device, model: Any) -> Teacher:
        """A model as the teacher that runs beside the student."""
        return LiveTeacher(model.module.encoder, config.distill.tokens, config.distill.layer).to(device)

    @abstractmethod
    def recipe(self, config: Config, device: torch.device, model: Any, pack: Any) -> BankRecipe:
        """What a model's bank is made from."""

    @abstractmethod
    def check_deterministic(self, context: Context, recipe: Any) -> None:
        """Read some rows of a bank twice, as training will.

        Raises:
            UserError: they differ, so that features of them cannot be kept.
        """

    # What a person is shown, of rows [n] int64 on the CPU of a split or a view of it.

    @abstractmethod
    def shown(self, context: Context, split: Any, rows: Tensor) -> list[dict[str, str]]:
        """The `picture` of each row (see `sdfast.modalities.images.shown.encoded`), or the beginning of its `text`."""

    @abstractmethod
    def masked_examples(self, context: Context, split: Any, rows: Tensor, seed: int) -> MaskedExamples:
        """Rows with a part hidden, as `pretrain` hides it; which part, the seed and the rows' places decide.

        Raises:
            UserError: the model has no mask token.
        """

    @abstractmethod
    def layer_features(self, context: Context, encoder: Any, split: Any, rows: Tensor) -> tuple[Tensor, str]:
        """What stands for each row after every block of an encoder in evaluation mode, and what that is, in words.

        Returns:
            [depth, n, D] float32 on the CPU: what the blocks give, the last as `distill.layer=last` has it.
        """

    # What is written and read again.

    @abstractmethod
    def write(self, context: Context, module: Any, folder: Path, kind: Kind | Literal["knn"], steps: int) -> None:
        """Write a trained model in Hugging Face format, and a card that says which stage made it in how many steps."""

    @abstractmethod
    def naming(self, module: Any) -> Naming:
        """The names in the folder of a classifier, and of an encoder alone, that a module is written as."""

    @abstractmethod
    def classifier(self, config: Config, start: Any, classes: int, seed: int) -> Any:
        """A classifier on the encoder of a module."""

    @abstractmethod
    def predict(self, module: Any, companions: Any, split: Any, rows: Tensor, read: Reader) -> Tensor:
        """[n, classes] float32 on the CPU: logits of some rows, in evaluation mode."""

    @abstractmethod
    def companions(self, model: Any) -> Any:
        """What a classifier on a pre-trained model is saved with (`Classifier.companions`)."""

    @abstractmethod
    def portable(self, module: Any, companions: Any) -> Portable:
        """A classifier, or the encoder of a masked model, on the CPU, as one function of padded tensors."""

    @abstractmethod
    def write_classifier(self, context: Context, module: Any, folder: Path, names: list[str], steps: int) -> None:
        """Write a fine-tuned model in Hugging Face format, and its card."""

    @abstractmethod
    def read_classifier(self, folder: Path) -> Classifier:
        """Read a fine-tuned model that `write_classifier` wrote, with its companions and class names."""

    @abstractmethod
    def conversion(self, config: Config, classifier: Classifier) -> tuple[type[OpenPack[Any]], Any, DataConfig]:
        """What another source becomes rows for a classifier with: the kind of pack, how, and the `data` section."""

    def evaluation_pack(self, spec: str, directory: Path, config: Config, classifier: Classifier) -> Any:
        """The pack of another source, all of it for evaluation, made for a classifier."""
        kind, how, options = self.conversion(config, classifier)
        return kind.prepare(spec, directory, how, options, log.warning)

    @abstractmethod
    def features(self, module: Any, tokens: FeatureTokens, how: Any) -> Any:
        """A module that gives features of inputs in place of classes; its encoder is that of a classifier or model.

        Args:
            module: with an encoder.
            tokens: `cls`: what a classifier looks at; `mean`: of the patches or the words, without the first token and
                other ones that stand for none; `patch`: all patches one after the other, [N * D].
            how: what makes the rows, a `Transform` or a `Tokenizer`, or their pack.

        Raises:
            UserError: there are no such tokens.
        """

    @abstractmethod
    def raw_input(self, pack: Any, rows: Tensor, config: Config, companions: Any) -> RawInput:
        """What rows of a pack are without a model.

        Args:
            pack: of the run.
            rows: [n] int64 of its train split: those that decide what is looked at.
            config: of the run.
            companions: what lies beside the model (`Classifier.companions`).

        Raises:
            UserError: nothing in it stands for a row.
        """

    @abstractmethod
    def fits(self, pack: Any, config: Config, classifier: Classifier) -> bool:
        """Whether a pack was made for a classifier."""

    @abstractmethod
    def filled(self, state: dict[str, Tensor], config: Config, shape: Any, classes: int | None) -> nn.Module:
        """A module of these tensors: a classifier, or the masked model when `classes` is None."""
