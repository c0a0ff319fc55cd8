"""The model card: what lies in a model's folder, how it was made, and which part of it to load for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdfast import __version__
from sdfast.config import HEADS, ModalityName
from sdfast.context import Context
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, ProblemType
from sdfast.durable import load_json, write_bytes
from sdfast.modalities.provenance import base_of, data_of, name_of_data, plain, published_data
from sdfast.rundir import slug

_MADE = {
    "head": "its {head} newly made and trained, the encoder frozen",
    "pretrain": "further pre-trained",
    "distill": "further pre-trained by self-distillation",
    "finetune": "fine-tuned as a classifier",
    "knn": "with the features of labelled rows, of which the nearest vote (`neighbours.safetensors`, `sdfast eval`)",
}
_TAGS = {
    ("images", False): "image-feature-extraction",
    ("images", True): "image-classification",
    ("texts", False): "fill-mask",
    ("texts", True): "text-classification",
}
_IMAGE_ENCODER = """\
Features come from `encoder/`, a plain ViT (`ViTModel`). Do not take them from this folder itself: `AutoModel` makes a
`ViTMAEModel` of it, which masks patches at random, also in evaluation mode.

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("FOLDER/encoder")
model = AutoModel.from_pretrained("FOLDER/encoder")
tokens = model(**processor(images=image, return_tensors="pt")).last_hidden_state  # CLS first, then the patches
```

Further masked pre-training: `AutoModelForPreTraining.from_pretrained("FOLDER")`, encoder and decoder, or
`sdfast train --model FOLDER`. To fine-tune a classifier: `sdfast train --stage finetune --model FOLDER`, or
`AutoModelForImageClassification.from_pretrained("FOLDER/encoder", num_labels=...)`, whose head is new.
"""
_OWN_ENCODER = """\
Features come from `encoder/`, a `{name}`. This folder itself has the decoder of the masked auto-encoder beside that
(`decoder.*`), which transformers passes over and says so.

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("FOLDER/encoder")
model = AutoModel.from_pretrained("FOLDER/encoder")
tokens = model(**processor(images=image, return_tensors="pt")).last_hidden_state  # the patches come last
```

What stands for the image is {image}.

Further masked pre-training: `sdfast train --model FOLDER`. To fine-tune a classifier:
`sdfast train --stage finetune --model FOLDER`.
"""
_LAYER_BESIDE = """\
transformers has no classifier of this kind: the folder holds its encoder, a `{name}`, and beside it a linear layer,
`classifier.weight` and `classifier.bias`, of the normed CLS token. (transformers says that it passes over both.)

```python
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("FOLDER")
encoder, tensors = AutoModel.from_pretrained("FOLDER"), load_file("FOLDER/model.safetensors")
features = encoder(**processor(images=image, return_tensors="pt")).pooler_output
logits = features @ tensors["classifier.weight"].T + tensors["classifier.bias"]
labels = encoder.config.id2label
```
"""
_IMAGE_CLASSIFIER = """\
```python
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")
```

Features: the `last_hidden_state` of `AutoModel.from_pretrained("FOLDER")`, CLS first; its `pooler_output` is that of a
layer which was not trained.
"""
_OWN_CLASSIFIER = """\
```python
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")
```

Features: the `last_hidden_state` of `{features}`.
"""
_TOWER = 'AutoModelForImageClassification.from_pretrained("FOLDER").vision_model'  # AutoModel adds new weights of texts
_IMAGE = {  # what stands for it in what transformers' class gives; the first token in others
    "CLIPVisionModel": "`pooler_output`, the CLS token after the last norm",
    "SiglipVisionModel": "the mean of all tokens, which are patches",
    "IJepaModel": "the mean of all tokens, which are patches",
    "BeitModel": "`pooler_output`",
}
_TEXT_ENCODER = """\
```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModel.from_pretrained("FOLDER")
tokens = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).last_hidden_state
```

The first token stands for the text; `pooler_output` is that of a layer which was not trained. Masked words:
`AutoModelForMaskedLM.from_pretrained("FOLDER")`; further pre-training: that, or `sdfast train --model FOLDER`. To
fine-tune a classifier: `sdfast train --stage finetune --model FOLDER`, or
`AutoModelForSequenceClassification.from_pretrained("FOLDER", num_labels=...)`, whose head is new.
"""
_TEXT_CLASSIFIER = """\
```python
from transformers import pipeline

classify = pipeline("text-classification", model="FOLDER", truncation=True)
```

`truncation=True` cuts long documents where training did; without it transformers cuts none, whatever a tokenizer says,
and fails at those that are longer than the model's positions.
"""
_HOW = {
    ("images", False): _IMAGE_ENCODER,
    ("images", True): _IMAGE_CLASSIFIER,
    ("texts", False): _TEXT_ENCODER,
    ("texts", True): _TEXT_CLASSIFIER,
}


_ANSWERS = {  # beside how a classifier is loaded, of labels that are not one class a row
    SEVERAL: """\
A row may have several classes, or none: each class has a probability of its own, the sigmoid of its logit
(`problem_type` in `config.json` says so to transformers). `classify(..., top_k=None)` gives all of them. Where
`config.json` has `sdfast_threshold`, that is the probability from which on a class was taken to apply.
""",
    REGRESSION: """\
The outputs are numbers in the units of the data ({names}), not probabilities: `classify(..., function_to_apply="none",
top_k=None)` gives them as `score`.
""",
}


USE = "## How to use it"  # what is known at a stage's end comes before that
_MEASURED = (
    " What was measured was measured on rows of the data above; those from elsewhere, or of another time, may be"
    " answered worse. What the base model had learned, with its biases, may still be in it. Nobody has checked it for"
    " decisions about people."
)
_LIMITS: dict[ProblemType | None, str] = {
    None: "It was trained on the data above without their labels, to be fine-tuned or to give features. How well those"
    " serve another purpose or other data was not measured. What the base model had learned, with its biases, may still"
    " be in it.",
    SINGLE: "A row that fits no class is given one nevertheless, without a warning.",
    SEVERAL: "A class that it was not trained on is never named.",
    REGRESSION: "It gives numbers for rows of any kind, also far from what it was trained on, without a warning.",
}


def _how(modality: ModalityName, classifies: bool, folder: Path) -> str:
    """How the model in a folder is used with transformers, of whose class it is."""
    config = load_json(folder / "config.json")
    if modality == "texts" or config["model_type"] in ("vit", "vit_mae"):
        return _HOW[modality, classifies]
    name = config["architectures"][0]
    if classifies and name.endswith("ForImageClassification"):
        features = _TOWER if "vision_config" in config else 'AutoModel.from_pretrained("FOLDER")'
        return _OWN_CLASSIFIER.format(features=features)
    image = _IMAGE.get(name, "the first token")
    return (_LAYER_BESIDE if classifies else _OWN_ENCODER).format(name=name, image=image)


def write_card(context: Context, folder: Path, stage: str, steps: int, further: str = "") -> None:
    """Write `README.md` into the folder of a stage's model; it names no path of this machine.

    Args:
        context: of the run.
        folder: of the model.
        stage: that made it.
        steps: of the optimiser in that stage.
        further: what else a user of the model has to know, a paragraph.
    """
    from huggingface_hub import ModelCardData

    config, pack, modality = context.config, context.pack, context.modality.name
    classifies = stage == "finetune"
    problem: ProblemType = pack.problem if classifies else SINGLE
    made = "fine-tuned for regression" if problem == REGRESSION else _MADE[stage].format(head=HEADS[modality])
    base = base_of(config)
    more = [f"`{slug(each)}`" for each in config.data.unlabelled]
    joined = f" and, without labels, those of {' and '.join(more)}" if more else ""
    if classifies and more:
        joined = f" (what it started from may have seen those of {' and '.join(more)} too, without labels)"
    licence: Any = base.licence
    header = ModelCardData(
        library_name="transformers",
        pipeline_tag=_TAGS[modality, classifies],
        tags=["sdfast"],
        base_model=base.hub_id,
        datasets=published_data(config),
        **licence,
    )
    answers = _ANSWERS.get(problem, "").format(names=", ".join(plain(name) for name in pack.class_names or ()))
    limits = _LIMITS[problem] + _MEASURED if classifies else _LIMITS[None]
    text = "\n".join(
        [
            *("---", header.to_yaml().strip(), "---", ""),
            f"# {slug(config.model_spec)}, {made}",
            "",
            f"Made by sdfast {__version__} from {base.called} on the {modality} of `{name_of_data(context)}`{joined}:"
            f" {made}, {steps:,} steps (stage `{stage}`). `FOLDER` is where this file lies.",
            "",
            USE,
            "",
            _how(modality, classifies, folder),
            *([answers] if answers else []),
            *([further] if further else []),
            *("## Data", "", *data_of(context)),
            *("## Limits", "", limits, ""),
            *("## Licence", "", f"{base.said} sdfast adds no terms.", ""),
        ]
    )
    write_bytes(folder / "README.md", text.encode())
