"""Typed configuration: preset, then file, then dotted overrides; printable, and exportable as a JSON schema."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from sdfast.data.config import DataConfig
from sdfast.errors import UserError, said, shortened
from sdfast.plain_yaml import load_yaml
from sdfast.regular import read_regular

BUNDLED_PRESETS = {"bundled": "demo", "bundled-text": "text-demo"}  # by model


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Beta = Annotated[float, Field(ge=0, lt=1)]
ModalityName = Literal["images", "texts"]
_FILE_BYTES = 1 << 18
_KEY_PARTS = 16
_STEPS = 10**9  # more than are ever done; so that a slip is a sentence, and not a run without an end
_ROWS = 1 << 24  # in a batch
_BATCH_SIZE = "images or texts per optimiser step, over all devices and micro-batches"


# What a key decides is written at the key, as `json_schema_extra`; fingerprints and refusals are derived from it.
#   of          the modality that it is for; given with a model of the other one it is refused
#   when        it acts only where another key has this value (or one of several)
#   decides     False: it acts through another key, or through which stages there are
#   also        a further kind of stage whose result it decides
#   left_out    at its default it is no part of a fingerprint, because it came later than the first runs; or the
#               modality whose first runs did not have it
_COUNTED: JsonDict = {"decides": False}
_LATER: JsonDict = {"left_out": True}


class OptimisationConfig(_Section):
    """What every stage has: how long, how many at a time, and AdamW with a linear schedule."""

    steps: int = Field(20_000, ge=1, le=_STEPS, description="optimiser steps")
    epochs: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="passes over the training rows, which decide the steps; `steps` does when not given",
        json_schema_extra=_COUNTED,
    )
    batch_size: int = Field(64, ge=1, le=_ROWS, description=_BATCH_SIZE)
    lr: float = Field(1.5e-4, ge=0, description="peak learning rate, absolute (never scaled by the batch size)")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW betas")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the rate rises linearly")
    clip: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")


MASK_RATIOS: dict[ModalityName, float] = {"images": 0.75, "texts": 0.15}  # where none is given


class PretrainConfig(OptimisationConfig):
    """Further pre-training by masked auto-encoding or masked words; `distill` masks and augments in the same way."""

    mask_ratio: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of masked patches, or probability of a word to be masked; when not given a ViTMAE's own"
        " (mask_ratio of its config.json), else 0.75 for images, 0.15 for texts",
        json_schema_extra={"also": "distill"},
    )
    mask: Literal["fixed", "bernoulli"] = Field(
        "fixed",
        description="images: the same number in every one (MAE), or each patch independently (section 3.1)",
        json_schema_extra={"of": "images", "also": "distill"},
    )
    mask_only: bool = Field(
        False,
        description="texts: every masked word becomes the mask token, instead of 80 % (10 % random, 10 % kept)",
        json_schema_extra={"of": "texts", "also": "distill"},
    )
    mean: Literal["token", "sequence"] = Field(
        "token",
        description="texts: mean over a batch's masked words, or over each text's and then over texts (eq. 2)",
        json_schema_extra={"of": "texts", "also": "distill"},
    )
    head_steps: int | None = Field(
        None,
        ge=0,
        le=_STEPS,
        description="texts: steps that train a newly made language-model head alone, before pretrain; when not given"
        " 1,000, or pretrain.steps where that is less",
        json_schema_extra={"of": "texts", **_COUNTED},
    )
    augment: Literal["none", "flip", "crop"] = Field(
        "none",
        description="training transform: none as in the paper, horizontal flips, or MAE's random resized crop and"
        " flips; for distill these need teacher.mode=live or teacher.views",
        json_schema_extra={"of": "images", "also": "distill", **_LATER},
    )
    norm_pix: bool | None = Field(
        None,
        description="images: reconstruct pixels normalised per patch; when not given a ViTMAE's own (norm_pix_loss of"
        " its config.json), else true",
        json_schema_extra={"of": "images", "also": "distill"},
    )

    @property
    def patch_ratio(self) -> float:
        """Share of masked patches."""
        return MASK_RATIOS["images"] if self.mask_ratio is None else self.mask_ratio

    @property
    def normalised_pixels(self) -> bool:
        """Whether the pixels that are reconstructed are normalised per patch."""
        return self.norm_pix is not False

    @property
    def word_ratio(self) -> float:
        """Probability of a word to be masked."""
        return MASK_RATIOS["texts"] if self.mask_ratio is None else self.mask_ratio


class PredictionsConfig(_Section):
    """Prediction matching: pixels or words for the same masked image or text, teacher's and student's."""

    patches: Literal["all", "masked"] = Field("all", description="those that are compared; of texts the words")
    reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="of squared differences: over an image's patches and values, or their mean; of divergences: over a"
        " text's words, or their mean",
    )


class DistillConfig(OptimisationConfig):
    """Self-distillation: starts again from the initial weights and matches the teacher on the clean input."""

    tokens: Literal["cls", "patch", "all"] = Field(
        "cls",
        description="tokens that are matched: the released code's CLS, the patches (of images), or all",
        json_schema_extra={"when": "distill.match=features"},
    )
    layer: Annotated[int, Field(ge=1, strict=True)] | Literal["last"] = Field(
        "last",
        description="where they are taken: after all blocks and the last LayerNorm, or right after so many blocks",
        json_schema_extra={"when": "distill.match=features", "left_out": "images"},
    )
    rounds: int = Field(
        1,
        ge=0,
        le=1000,
        description="rounds T'; each restarts from the initial weights (Algorithm 1)",
        json_schema_extra=_COUNTED,
    )
    weight: float = Field(1.0, ge=0, description="weight of what is matched: the representation loss, see match")
    mae_weight: float = Field(1.0, ge=0, description="weight of the masked auto-encoding (texts: masked words) loss")
    match: Literal["features", "predictions", "weights-l2", "weights-mars"] = Field(
        "features",
        description="what of the teacher is matched: its representation, or for the ablations of the paper's Table 3"
        " its predicted pixels or words, or its encoder's weights (squared l2, or each layer's largest l1 norm of a"
        " row)",
        json_schema_extra=_LATER,
    )
    predictions: PredictionsConfig = Field(
        PredictionsConfig(),
        description="settings of match=predictions",
        json_schema_extra={"when": "distill.match=predictions"},
    )

    @model_validator(mode="after")
    def _something_is_minimised(self) -> DistillConfig:
        if not self.weight and not self.mae_weight:
            raise ValueError("one of distill.weight and distill.mae_weight must be above 0")
        if self.match.startswith("weights") and not self.mae_weight:
            raise ValueError(f"match={self.match} alone only moves to the teacher; mae_weight must be above 0")
        return self


class RecAdamConfig(_Section):
    """RecAdam: the task's loss grows in while a pull to the start fades out."""

    anneal: Literal["sigmoid", "linear", "constant"] = Field(
        "sigmoid", description="how the share of the task's loss grows; constant leaves no pull"
    )
    k: float = Field(0.1, ge=0, description="steepness of the sigmoid, per step")
    t0: int = Field(1000, ge=0, description="step of the sigmoid's middle, or of the linear growth's end")
    w: float = Field(1.0, gt=0, description="the share at the end")
    gamma: float = Field(5000.0, ge=0, description="strength of the pull; finetune.lr times it shall be below 1")


class MarsConfig(_Section):
    """MARS: after each step, rows of weights are shrunk to within a radius of the start (largest l1 norm of a row)."""

    radius: float = Field(8.0, gt=0, description="of the encoder's linear layers and patch embedding, about the start")
    head_radius: float = Field(20.0, gt=0, description="of the head, about 0; of texts of both its layers")


class R3FConfig(_Section):
    """R3F and R4F: the output shall not depend on noise on the embeddings of patches or words."""

    weight: float = Field(1.0, ge=0, description="of the two divergences; 0 spares the second pass")
    eps: float = Field(1e-5, ge=0, description="size of the noise")
    noise: Literal["normal", "uniform"] = Field("normal", description="with deviation eps, or on [-eps, eps]")


class SupConConfig(_Section):
    """Supervised contrastive training: views of one class are drawn together, against all others of the batch."""

    temperature: float = Field(0.07, gt=0, description="of the softmax over the batch")
    projection: int = Field(
        128, ge=1, le=1 << 16, description="outputs of the projection that is compared, and dropped at the end"
    )


class FinetuneConfig(OptimisationConfig):
    """Supervised fine-tuning of encoder and head."""

    steps: int = Field(10_000, ge=1, le=_STEPS, description="optimiser steps")
    batch_size: int = Field(32, ge=1, le=_ROWS, description=_BATCH_SIZE)
    lr: float = Field(1e-4, ge=0, description="peak learning rate, absolute")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW betas")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with a rising rate (500 of 10,000)")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 does not clip")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="dropout after embeddings, attention projections and MLPs; for texts also of attention weights",
    )
    flip: float = Field(
        0.5, ge=0, le=1, description="images: probability of a horizontal flip", json_schema_extra={"of": "images"}
    )
    start: Literal["distill", "pretrain", "init"] = Field(
        "distill",
        description="weights to start from: self-distilled, further pre-trained, or the model as given",
        json_schema_extra=_COUNTED,
    )
    regularizer: Literal["none", "recadam", "mars", "r3f", "r4f"] = Field(
        "none",
        description="a baseline of the paper's Table 1; r4f is r3f with a spectral norm on the head",
        json_schema_extra=_LATER,
    )
    recadam: RecAdamConfig = Field(
        RecAdamConfig(),
        description="settings of regularizer=recadam",
        json_schema_extra={"when": "finetune.regularizer=recadam"},
    )
    mars: MarsConfig = Field(
        MarsConfig(),
        description="settings of regularizer=mars",
        json_schema_extra={"when": "finetune.regularizer=mars"},
    )
    r3f: R3FConfig = Field(
        R3FConfig(),
        description="settings of regularizer=r3f and r4f",
        json_schema_extra={"when": "finetune.regularizer=r3f|r4f"},
    )
    objective: Literal["cross_entropy", "supcon"] = Field(
        "cross_entropy",
        description="what trains the encoder: the classifier's loss, or the supervised contrastive loss of two views of"
        " each image (flipped) or text (dropout), beside which the classifier is trained on what the encoder gives",
        json_schema_extra=_LATER,
    )
    supcon: SupConConfig = Field(
        SupConConfig(),
        description="settings of objective=supcon",
        json_schema_extra={"when": "finetune.objective=supcon"},
    )
    best_dev: bool = Field(
        False,
        description="keep the weights that did best on the val (dev) split, by the paper's metric for the data set, or"
        " else accuracy (images) or macro-F1 (texts); otherwise the last ones, as the paper",
        json_schema_extra=_LATER,
    )
    evaluations: int = Field(
        10,
        ge=1,
        description="with best_dev, how often that is looked at, evenly; the last time after the last step",
        json_schema_extra={"when": "finetune.best_dev=true"},
    )

    @model_validator(mode="after")
    def _has_an_output_to_smooth(self) -> FinetuneConfig:
        if self.objective == "supcon" and self.regularizer in ("r3f", "r4f"):
            raise ValueError(f"regularizer={self.regularizer} acts on objective=cross_entropy alone")
        return self


class TeacherConfig(_Section):
    """Where the StopGrad targets of self-distillation come from."""

    mode: Literal["bank", "live"] = Field(
        "bank", description="its features are computed once and kept on the disk, or it runs beside the student"
    )
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        "float32", description="what the bank keeps them in; int8 has a scale per token"
    )
    residency: Literal["auto", "device", "host", "stream"] = Field(
        "auto",
        description="where the bank is while distill trains: in the device's memory (auto: when half of what is free"
        " holds it), else in pinned host memory (likewise), else read from the disk; on a CPU host is device",
    )
    views: int = Field(
        0,
        ge=0,
        le=1000,
        description="with pretrain.augment: K views of each image, taken in turn by epoch, whose features the bank"
        " keeps; 0 draws anew in every epoch, for which only teacher.mode=live will do",
        json_schema_extra={"of": "images"},
    )


class EngineConfig(_Section):
    """How the training runs; nothing here changes what is minimised."""

    precision: Literal["auto", "fp32", "tf32", "bf16", "bf16-weights", "fp16"] = Field(
        "auto",
        description="bf16 autocast where the device has it (fp32 on a CPU), or one of them; fp16 autocast scales the"
        " loss; bf16-weights, under ZeRO, keeps weights and gradients in bf16 with fp32 masters",
    )
    fp32_products: Literal["auto", "ieee", "bf16x6"] = Field(
        "auto",
        description="how a CPU multiplies float32 matrices: bf16x6 is as exact, and faster where the processor has AMX;"
        " auto takes it there",
    )
    packed: bool = Field(True, description="the masked and the clean view go through the encoder in one pass")
    cls_tail: bool = Field(
        True, description="where only CLS is used, the encoder's last block computes nothing for other tokens"
    )
    masked_tail: bool = Field(
        True, description="the decoder's last block and pixel head compute nothing for visible patches"
    )
    attention: Literal["auto", "reference", "sdpa", "native", "varlen", "xformers"] = Field(
        "auto", description="what computes attention; auto takes the best that is there for the device and shape"
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="torch.compile the transformer's parts; auto does on a GPU, in stages of 500 steps or more"
    )
    activation_checkpointing: bool = Field(
        False, description="keep only the input of each transformer block and compute its inside again when needed"
    )
    cuda_graph: bool = Field(True, description="on a GPU, run the step as one CUDA graph where its shapes are fixed")
    accumulate: int = Field(1, ge=1, le=_ROWS, description="micro-batches per optimiser step")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; torch's own choice when not given")
    checkpoint_seconds: float = Field(300.0, ge=0, description="time between checkpoints")
    checkpoint_steps: int | None = Field(None, ge=1, description="steps between checkpoints, besides the time")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept while a stage runs")
    log_every: int = Field(10, ge=1, description="steps between log lines; the loss is read from the device then")
    tensorboard: bool = Field(False, description="also write TensorBoard events")
    timeout_seconds: float = Field(
        600.0, gt=0, description="of several processes, how long one may keep the others waiting before the job ends"
    )


class ZeroConfig(_Section):
    """DeepSpeed ZeRO: what is spread over the processes instead of being held by each."""

    stage: Literal[0, 1, 2, 3] = Field(
        0, description="1: optimiser states; 2: gradients too; 3: parameters too; 0: nothing (--zero)"
    )
    offload: Literal["none", "cpu", "nvme"] = Field(
        "none", description="where optimiser states (and with stage 3 parameters) lie: in the host's memory, on a disk"
    )
    nvme_path: str | None = Field(None, min_length=1, description="folder on the disk, for zero.offload=nvme")
    config: str | None = Field(None, min_length=1, description="JSON file of further DeepSpeed options")

    @model_validator(mode="after")
    def _fits(self) -> ZeroConfig:
        if self.offload != "none" and not self.stage:
            raise ValueError(f"zero.offload={self.offload} needs --zero 1, 2 or 3")
        if self.offload == "nvme" and self.stage != 3:
            raise ValueError("zero.offload=nvme needs --zero 3")
        if (self.offload == "nvme") != (self.nvme_path is not None):
            raise ValueError("zero.offload=nvme and zero.nvme_path=FOLDER go together")
        return self


class Config(_Section):
    """A whole run."""

    model: str | None = Field(
        None, min_length=1, description="hub id or folder of the pre-trained model; bundled when not given"
    )
    out: str | None = Field(None, min_length=1, description="run directory")
    seed: int = Field(0, ge=0, description="seed of order, masks, flips, dropout and heads")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run")
    data: DataConfig = DataConfig()
    pretrain: PretrainConfig = PretrainConfig()
    distill: DistillConfig = DistillConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    teacher: TeacherConfig = TeacherConfig()
    engine: EngineConfig = EngineConfig()
    zero: ZeroConfig = ZeroConfig()
    deepspeed: dict[str, Any] = Field({}, description="any option of DeepSpeed, as deepspeed.<key>=<value>")

    @field_validator("deepspeed")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        level: list[Any] = [value]
        for _ in range(_KEY_PARTS):
            for each in level:
                if isinstance(each, dict) and not all(isinstance(key, str) for key in each):
                    raise ValueError("its keys must be words")
                if not isinstance(each, dict | list | str | int | float | None) or each in (math.inf, -math.inf):
                    raise ValueError("its values must be words, numbers, true, false, lists and further keys")
            level = [part for each in level for part in _parts(each)]
            if not level:
                return value
        raise ValueError("it is nested too deeply")

    @property
    def model_spec(self) -> str:
        """The model as it was asked for."""
        return self.model or "bundled"

    @property
    def data_spec(self) -> str:
        """The data as they were asked for."""
        return self.data.source or "bundled"

    def resolved(self, modality: ModalityName, rows: Mapping[str, int] | None = None) -> Config:
        """With a value for each key that depends on what is trained on.

        Args:
            modality: decides `pretrain.mask_ratio` and `pretrain.norm_pix`.
            rows: of each stage, training rows; those with `epochs` decide its steps.
        """
        pretrain = self.pretrain
        if pretrain.mask_ratio is None:
            pretrain = pretrain.model_copy(update={"mask_ratio": MASK_RATIOS[modality]})
        if modality == "images":
            pretrain = pretrain.model_copy(update={"norm_pix": pretrain.normalised_pixels})
        config = self.model_copy(update={"pretrain": pretrain})
        for stage, count in (rows or {}).items():
            section: OptimisationConfig = getattr(config, stage)
            if section.epochs is not None:
                steps = section.epochs * -(-count // section.batch_size)
                section = section.model_copy(update={"steps": steps})
                config = config.model_copy(update={stage: section})
        return config

    def changed(self, overrides: Iterable[str]) -> Config:
        """With `key=value` overrides.

        Raises:
            UserError: a key or value that does not exist or fit.
        """
        values = self.model_dump(mode="json")
        for text in overrides:
            values = _merged(values, _parse_override(text))
        return _validated(values)

    def flat(self) -> dict[str, Any]:
        """All values by their dotted keys, as JSON values."""
        return dict(leaves(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """The whole configuration as YAML, ready for `--config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def deciding_keys(
    config: Config, kind: str, modality: ModalityName, section: OptimisationConfig | None = None
) -> dict[str, Any]:
    """The settings that decide the result of a kind of stage, by dotted keys, as JSON values.

    Args:
        config: of the run.
        kind: `head`, `pretrain`, `distill` or `finetune`.
        modality: of the model.
        section: how the stage is optimised, where that is not the section of its name.
    """
    own = "pretrain" if kind == "head" else kind
    sections = {own: section or getattr(config, own)} | ({"pretrain": config.pretrain} if own != "pretrain" else {})
    found = {}
    for name, values in sections.items():
        dumped = values.model_dump(mode="json")
        for key, field in type(values).model_fields.items():
            said = _said(field)
            if (
                (name == own or said.get("also") == kind)
                and said.get("decides", True)
                and said.get("of", modality) == modality
                and _acts(config, said.get("when"))
                and not (said.get("left_out") in (True, modality) and dumped[key] == field.default)
            ):
                found[f"{name}.{key}"] = dumped[key]
    return found


def _said(field: FieldInfo) -> dict[str, Any]:
    """What is written at a key; see above `OptimisationConfig`."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _acts(config: Config, when: str | None) -> bool:
    if when is None:
        return True
    key, _, values = when.partition("=")
    section, name = key.split(".")
    return str(getattr(getattr(config, section), name)).lower() in values.split("|")


def refuse_other_modality(config: Config, modality: ModalityName) -> None:
    """Stop at settings that say nothing for a kind of data.

    Raises:
        UserError: one of them is not at its default.
    """
    for name in type(config).model_fields:
        section = getattr(config, name)
        for key, field in type(section).model_fields.items() if isinstance(section, BaseModel) else ():
            value = getattr(section, key)
            if _said(field).get("of", modality) == modality or value == field.default:
                continue
            if key == "norm_pix" and value:  # as the config.yaml of an older run of texts has it
                continue
            raise UserError(
                f"{name}.{key}={value} says nothing for {config.model_spec}, which is a model of {modality}; leave it"
                " away."
            )


def with_own_settings(config: Config, own: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The configuration with a model's own settings where no key says otherwise.

    Args:
        config: of the run.
        own: see `Modality.own_settings`.

    Returns:
        The configuration, and a sentence for each setting that is not the usual one or not the model's.
    """
    usual = PretrainConfig().model_copy(update={"mask_ratio": MASK_RATIOS["images"], "norm_pix": True})
    taken, notes = {}, []
    for key, value in own.items():
        given = getattr(config.pretrain, key)
        if given is None:
            taken[key] = value
            if value != getattr(usual, key):
                notes.append(f"pretrain.{key}={_yaml(value)}, as it was pre-trained; give the key for another value.")
        elif given != value:
            notes.append(f"it was pre-trained with {key}={_yaml(value)}; pretrain.{key}={_yaml(given)}, as given.")
    pretrain = config.pretrain.model_copy(update=taken)
    return config.model_copy(update={"pretrain": pretrain}), notes


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, by dotted keys."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def presets() -> dict[str, str]:
    """Names of the presets and the first comment line of each."""
    found = {}
    for entry in sorted(resources.files("sdfast.presets").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = entry.read_text().splitlines()[0].lstrip("# ")
    return found


def resolve(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Merge preset, file, `key=value` overrides and options (strongest last) into a checked configuration.

    Args:
        preset: a name from `presets()`; without one, `demo` or `text-demo` for a bundled model.
        file: a YAML file of (some of) the keys.
        overrides: strings `dotted.key=value`; values are read as YAML.
        options: nested mapping, e.g. from command line options.

    Raises:
        UserError: unknown preset, key or value; the message names it and the nearest valid one.
    """
    layers: list[dict[str, Any]] = [_read_file(Path(file))] if file is not None else []
    layers += [_parse_override(text) for text in overrides]
    layers += [dict(options)] if options else []
    given: dict[str, Any] = {}
    for layer in layers:
        given = _merged(given, layer)
    if preset is None:
        model = given.get("model") or "bundled"
        preset = BUNDLED_PRESETS.get(model) if isinstance(model, str) else None
    base = {} if preset is None else _read_preset(preset)
    if preset in BUNDLED_PRESETS.values() and _section(given, "data").get("source") not in (None, "bundled"):
        base.pop("data")  # its limit is meant for the bundled data
    try:
        return _validated(_merged(base, given))
    except UserError as error:
        if file is not None and str(error) == _complaint(_merged(base, layers[0])):
            raise UserError(f"{file}: {error}") from None
        raise


def _complaint(values: dict[str, Any]) -> str | None:
    """What is wrong with a configuration."""
    try:
        _validated(values)
    except UserError as error:
        return str(error)
    return None


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _read_preset(name: str) -> dict[str, Any]:
    if name not in presets():
        raise UserError(f"there is no preset '{name}'; {nearest(name, list(presets()))}")
    return yaml.safe_load(resources.files("sdfast.presets").joinpath(f"{name}.yaml").read_text()) or {}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        value = load_yaml(read_regular(path, _FILE_BYTES).decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {said(error)}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold keys and values, such as `seed: 1`.")
    return value


def _parse_override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip() or key.count(".") > _KEY_PARTS:
        raise UserError(f"'{shortened(text)}' is not an override; write key=value, such as pretrain.steps=1000.")
    try:
        parsed: Any = value if value.startswith("#") else load_yaml(value)  # '#rrggbb' is no comment here
    except ValueError as error:
        raise UserError(f"the value of '{shortened(text)}' cannot be read; quote it.") from error
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _merged(base: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in layer.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    if "steps" in layer and "epochs" not in layer:
        result.pop("epochs", None)  # of a weaker layer, which the steps replace
    return result


def valid_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """All dotted keys of the configuration."""
    keys = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += valid_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def nearest(word: str, choices: list[str], otherwise: str | None = None) -> str:
    """The end of an error about a word that is none of the choices; `otherwise` is what it says when none is near."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"{otherwise or 'choose one of ' + ', '.join(choices)}."


def _validated(values: dict[str, Any]) -> Config:
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_misfit(error)) from None
    for key, value in config.flat().items():
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{key} has a NUL character in it, which no name of a file or column can have.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{key} does not fit: it is a larger number than any count or seed.")
    return config


def _misfit(error: ValidationError) -> str:
    """The sentence about the first value that does not fit, or key that is none."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    keys = valid_keys()
    known = [depth for depth in range(len(location), 0, -1) if ".".join(location[:depth]) in keys]
    key = ".".join(location[: known[0]] if known else location)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
        last = [name for name in keys if name.rsplit(".", 1)[-1] == location[-1]]
        fix = f"did you mean '{(close or last)[0]}'?" if close or last else "`sdfast config show` lists all keys."
        return f"there is no configuration key '{shortened(key)}'; {fix}"
    value = first.get("input")
    shown = f"={shortened(value)}" if isinstance(value, (str, int, float, bool)) else ""
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key}{shown} does not fit: {reason[0].lower()}{reason[1:]}."
