"""The sections of the configuration: typed keys, each with what it decides."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from sdfast.data.modality import ModalityName
from sdfast.errors import shortened


class Section(BaseModel):
    """Keys that are checked when they are given, and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Beta = Annotated[float, Field(ge=0, lt=1)]
ClassWeight = Annotated[float, Field(ge=1e-6, le=1e6)]
LoraTarget = Literal["query", "key", "value", "proj", "fc1", "fc2"]
_STEPS = 10**9  # more than are ever done; so that a slip is a sentence, and not a run without an end
_HEAD_STEPS = 1000  # of a newly made head, where none are given
_ROWS = 1 << 24  # in a batch
_BATCH_SIZE = "images or texts per optimiser step, over all devices and micro-batches"
# What a key decides is written at the key, as `json_schema_extra`; fingerprints and refusals are derived from it.
#   of          the modality that it is for; given with a model of the other one it is refused
#   when        it acts only where another key has this value (or one of several)
#   decides     False: it acts through another key, or through which stages there are
#   also        a further kind of stage whose result it decides
#   left_out    at its default it is no part of a fingerprint, because it came later than the first runs; or the
#               modality whose first runs did not have it
#   before      what runs did before the key came, where that is not the default: it is no part of a fingerprint either
_COUNTED: JsonDict = {"decides": False}
_LATER: JsonDict = {"left_out": True}


class OptimisationConfig(Section):
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


class LoraConfig(Section):
    """LoRA: frozen weights, each with a low-rank product alpha / rank * B A added, of which A and B are trained."""

    rank: int = Field(8, ge=1, le=1 << 14, description="rows of A and columns of B")
    alpha: float = Field(8.0, gt=0, description="the product is scaled by alpha / rank")
    targets: Literal["all"] | Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = Field(
        ("query", "value"),
        description="linear layers of each block of the encoder: some of query, key, value, proj (the attention's"
        " output), fc1 and fc2 (the MLP's), or all",
    )
    norms: bool = Field(False, description="train the encoder's norms too")
    full_blocks: int = Field(
        0, ge=0, le=10_000, description="train so many of the encoder's last blocks in full instead, as ExPLoRA does"
    )

    @field_validator("targets")
    @classmethod
    def _in_order(cls, value: Literal["all"] | tuple[LoraTarget, ...]) -> Literal["all"] | tuple[LoraTarget, ...]:
        return "all" if value == "all" else tuple(name for name in get_args(LoraTarget) if name in value)

    @property
    def layers(self) -> tuple[LoraTarget, ...]:
        """The layers, one by one."""
        return get_args(LoraTarget) if self.targets == "all" else self.targets


MASK_RATIOS: dict[ModalityName, float] = {"images": 0.75, "texts": 0.15}  # where none is given
HEADS: dict[ModalityName, str] = {"images": "decoder", "texts": "language-model head"}  # what fills in what is masked


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
    whole_word: bool = Field(
        False,
        description="texts: all tokens of a word are masked together or none of them, where the tokenizer tells words",
        json_schema_extra={"of": "texts", "also": "distill", **_LATER},
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
        description="steps that train a newly made decoder (images) or language-model head (texts) alone, the encoder"
        " frozen, before pretrain; when not given 1,000, or pretrain.steps where that is less; 0 for none",
        json_schema_extra=_COUNTED,
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
    method: Literal["full", "lora"] = Field(
        "full",
        description="what is trained: everything, or of the encoder a low-rank product added to frozen weights (LoRA)",
        json_schema_extra=_LATER,
    )
    lora: LoraConfig = Field(
        LoraConfig(), description="settings of method=lora", json_schema_extra={"when": "pretrain.method=lora"}
    )

    @property
    def new_head_steps(self) -> int:
        """Steps that train a newly made decoder or language-model head alone.

        Where none are given 1,000: the decoder on a DINOv2 ViT-S (56 px, bf16, batches of 16 of the bundled images)
        brings L_MAE from 0.75 to 0.51 in 300 steps, and to 0.49 in 450.
        """
        return min(_HEAD_STEPS, self.steps) if self.head_steps is None else self.head_steps

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


class PredictionsConfig(Section):
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
    method: Literal["full", "lora"] = Field(
        "full",
        description="what of the student is trained: see pretrain.method",
        json_schema_extra=_LATER,
    )
    lora: LoraConfig = Field(
        LoraConfig(), description="settings of method=lora", json_schema_extra={"when": "distill.method=lora"}
    )

    @model_validator(mode="after")
    def _something_is_minimised(self) -> DistillConfig:
        if not self.weight and not self.mae_weight:
            raise ValueError("one of distill.weight and distill.mae_weight must be above 0")
        if self.match.startswith("weights") and self.method != "full":
            raise ValueError(f"match={self.match} compares all weights, and method={self.method} leaves them frozen")
        if self.match.startswith("weights") and not self.mae_weight:
            raise ValueError(f"match={self.match} alone only moves to the teacher; mae_weight must be above 0")
        return self


class RecAdamConfig(Section):
    """RecAdam: the task's loss grows in while a pull to the start fades out."""

    anneal: Literal["sigmoid", "linear", "constant"] = Field(
        "sigmoid", description="how the share of the task's loss grows; constant leaves no pull"
    )
    k: float = Field(0.1, ge=0, description="steepness of the sigmoid, per step")
    t0: int = Field(1000, ge=0, description="step of the sigmoid's middle, or of the linear growth's end")
    w: float = Field(1.0, gt=0, description="the share at the end")
    gamma: float = Field(5000.0, ge=0, description="strength of the pull; finetune.lr times it shall be below 1")


class MarsConfig(Section):
    """MARS: after each step, rows of weights are shrunk to within a radius of the start (largest l1 norm of a row)."""

    radius: float = Field(8.0, gt=0, description="of the encoder's linear layers and patch embedding, about the start")
    head_radius: float = Field(20.0, gt=0, description="of the head, about 0; of texts of both its layers")


class R3FConfig(Section):
    """R3F and R4F: the output shall not depend on noise on the embeddings of patches or words."""

    weight: float = Field(1.0, ge=0, description="of the two divergences; 0 spares the second pass")
    eps: float = Field(1e-5, ge=0, description="size of the noise")
    noise: Literal["normal", "uniform"] = Field("normal", description="with deviation eps, or on [-eps, eps]")


class SupConConfig(Section):
    """Supervised contrastive training: views of one class are drawn together, against all others of the batch."""

    temperature: float = Field(0.07, gt=0, description="of the softmax over the batch")
    projection: int = Field(
        128, ge=1, le=1 << 16, description="outputs of the projection that is compared, and dropped at the end"
    )


class KnnConfig(Section):
    """k nearest neighbours, as DINO evaluates: each votes for its class with exp(cosine similarity / temperature)."""

    k: int = Field(20, ge=1, le=1 << 20, description="training rows that vote; all where there are fewer")
    temperature: float = Field(0.07, gt=0, description="the smaller, the more the nearest ones count")


class ProbeConfig(Section):
    """A linear probe: the head alone is trained."""

    standardise: bool = Field(
        True,
        description="give the head each feature with mean 0 and deviation 1 over the training rows, as MAE's probing"
        " (a BatchNorm without affine); else as it is",
    )


class FinetuneConfig(OptimisationConfig):
    """Supervised fine-tuning of encoder and head."""

    steps: int = Field(10_000, ge=1, le=_STEPS, description="optimiser steps")
    batch_size: int = Field(32, ge=1, le=_ROWS, description=_BATCH_SIZE)
    lr: float = Field(1e-4, ge=0, description="peak learning rate, absolute")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW betas")
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of the steps in which the rate rises linearly: 500 of 10,000, where the paper's code takes"
        " 500 steps however many there are",
    )
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
    method: Literal["full", "lora", "linear_probe", "knn"] = Field(
        "full",
        description="what is trained: everything; of the encoder a low-rank product added to frozen weights (LoRA), and"
        " the head; the head alone, on a frozen encoder; or nothing, where the nearest training rows vote",
        json_schema_extra=_LATER,
    )
    lora: LoraConfig = Field(
        LoraConfig(), description="settings of method=lora", json_schema_extra={"when": "finetune.method=lora"}
    )
    probe: ProbeConfig = Field(
        ProbeConfig(),
        description="settings of method=linear_probe",
        json_schema_extra={"when": "finetune.method=linear_probe", "before": {"standardise": False}},
    )
    knn: KnnConfig = Field(
        KnnConfig(), description="settings of method=knn", json_schema_extra={"when": "finetune.method=knn"}
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
    class_weights: (
        Literal["none", "balanced"] | Annotated[tuple[ClassWeight, ...], Field(min_length=2)] | dict[str, ClassWeight]
    ) = Field(
        "none",
        description="of the cross-entropy, whose mean over a batch is divided by the weights of its rows, as torch's:"
        " balanced gives each class n / (classes * its rows) of the n labelled training rows, as scikit-learn's; a list"
        " has one for each class, in the order of the classes; {name: weight, ...} has those of some, and the others 1;"
        " of several classes a row: how rows count that have it",
        json_schema_extra=_LATER,
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the cross-entropy's target that is spread evenly over all classes, as torch's",
        json_schema_extra=_LATER,
    )
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform",
        description="which training rows an epoch takes: each once, or as many of each class (rows of a small class"
        " several times, of a large one some in this epoch and the others in the next)",
        json_schema_extra=_LATER,
    )
    best_dev: bool = Field(
        False,
        description="keep the weights that did best on the val (dev) split, by the paper's metric for the data set, or"
        " else accuracy (images) or macro-F1 (texts); of several classes a row by mean average precision, of numbers by"
        " R2; otherwise the last ones, as the paper",
        json_schema_extra=_LATER,
    )
    evaluations: int = Field(
        10,
        ge=1,
        description="with best_dev, how often that is looked at, evenly; the last time after the last step",
        json_schema_extra={"when": "finetune.best_dev=true"},
    )

    @property
    def standardises(self) -> bool:
        """Whether the head is given standardised features."""
        return self.method == "linear_probe" and self.probe.standardise

    @field_validator("class_weights", mode="before")
    @classmethod
    def _one_above_0_for_each_class(cls, value: object) -> object:
        if isinstance(value, dict):
            if odd := [key for key in value if isinstance(key, bool) or not isinstance(key, str | int | float)]:
                raise ValueError(f"the name of a class that reads as {odd[0]!r} has to be in quotes")
            value = {str(key): each for key, each in value.items()}
        numbers = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        plain = all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers)
        enough = len(numbers) > (0 if isinstance(value, dict) else 1)
        if value in ("none", "balanced") or (plain and enough and all(1e-6 <= each <= 1e6 for each in numbers)):
            return value
        raise ValueError(
            "give none, balanced, or a list with a number above 0 (1e-6 to 1e6) for each class, or such numbers by "
            "name, {name: 2, other: 0.5}, with a blank after each colon"
        )

    @model_validator(mode="after")
    def _has_an_output_to_smooth(self) -> FinetuneConfig:
        if self.objective == "supcon" and self.regularizer in ("r3f", "r4f"):
            raise ValueError(f"regularizer={self.regularizer} acts on objective=cross_entropy alone")
        return self

    @model_validator(mode="after")
    def _trains_what_is_asked(self) -> FinetuneConfig:
        if self.method == "lora" and self.regularizer in ("recadam", "mars"):
            raise ValueError(
                f"regularizer={self.regularizer} holds all weights near their start, where method=lora leaves them;"
                " take one of the two"
            )
        if self.method in ("linear_probe", "knn"):
            if self.regularizer != "none":
                raise ValueError(f"regularizer={self.regularizer} is for an encoder that is trained, not {self.method}")
            if self.objective != "cross_entropy":
                raise ValueError(f"objective={self.objective} trains the encoder, and method={self.method} does not")
        return self


class TeacherConfig(Section):
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


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class EngineConfig(Section):
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
    tracker: tuple[TrackerName, ...] = Field(
        (),
        description="who is told what metrics.jsonl is told: some of tensorboard, wandb, mlflow and trackio, with"
        " commas between them",
    )
    tracker_project: str = Field(
        "sdfast", min_length=1, description="project of wandb and trackio, experiment of mlflow"
    )
    tensorboard: bool = Field(False, description="also write TensorBoard events, short for engine.tracker=tensorboard")
    report: bool = Field(
        True,
        description="write report.html as the run goes, for a person to look at; SDFAST_REPORT=0 writes none at all",
    )
    timeout_seconds: float = Field(
        600.0, gt=0, description="of several processes, how long one may keep the others waiting before the job ends"
    )

    @field_validator("tracker", mode="before")
    @classmethod
    def _as_a_list(cls, value: Any) -> Any:
        """Words between commas, or a list of words."""
        words = value.split(",") if isinstance(value, str) else () if value is None else value
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            return value
        words, known = [word.strip() for word in words], get_args(TrackerName)
        for word in words:
            if word not in known:
                close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
                there = f"did you mean {close[0]}" if close else f"there are {', '.join(known[:-1])} and {known[-1]}"
                raise ValueError(f"no tracker is called '{shortened(word)}'; {there}")
        return tuple(dict.fromkeys(words))

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """All that are asked for, each once."""
        short: tuple[TrackerName, ...] = ("tensorboard",) if self.tensorboard else ()
        return tuple(dict.fromkeys((*self.tracker, *short)))


class ZeroConfig(Section):
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
