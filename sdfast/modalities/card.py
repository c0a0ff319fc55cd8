"""The model card: what lies in a model's folder, how it was made, and which part of it to load for what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdfast.bundled import MODELS
from sdfast.config import Config, ModalityName
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, ProblemType
from sdfast.durable import load_json, write_bytes
from sdfast.models.hub import is_hub_id
from sdfast.rundir import slug

_MADE = {
    "head": "its language-model head newly made and trained, the encoder frozen",
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

Features: the `last_hidden_state` of `AutoModel.from_pretrained("FOLDER")`.
"""
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


def _how(modality: ModalityName, classifies: bool, folder: Path) -> str:
    """How the model in a folder is used with transformers, of whose class it is."""
    config = load_json(folder / "config.json")
    if modality == "texts" or config["model_type"] in ("vit", "vit_mae"):
        return _HOW[modality, classifies]
    name = config["architectures"][0]
    if classifies and name.endswith("ForImageClassification"):
        return _OWN_CLASSIFIER
    return (_LAYER_BESIDE if classifies else _OWN_ENCODER).format(name=name)


def write_card(
    config: Config,
    modality: ModalityName,
    folder: Path,
    stage: str,
    steps: int,
    further: str = "",
    problem: ProblemType = SINGLE,
    names: Sequence[str] = (),
) -> None:
    """Write `README.md` into the folder of a stage's model; it names no path of this machine.

    Args:
        config: of the run.
        modality: of its model.
        folder: of the model.
        stage: that made it.
        steps: of the optimiser in that stage.
        further: what else a user of the model has to know, a paragraph.
        problem: what the labels are, of a fine-tuned model.
        names: of its classes or numbers.
    """
    spec, kind = config.model_spec, (modality, stage == "finetune")
    made = "fine-tuned for regression" if problem == REGRESSION else _MADE[stage]
    ours = MODELS.get(spec)
    published = ours is None and is_hub_id(spec) and not Path(spec).exists()
    base = f"`{spec if published else slug(spec)}`" if ours is None else f"the small {ours} that comes with sdfast"
    more = [f"`{slug(each)}`" for each in config.data.unlabelled]
    joined = f" and, without labels, those of {' and '.join(more)}" if more else ""
    if stage == "finetune" and more:
        joined = f" (what it started from may have seen those of {' and '.join(more)} too, without labels)"
    header = ["library_name: transformers", f"pipeline_tag: {_TAGS[kind]}", "tags: [sdfast]"]
    header += [f"base_model: {spec}"] if published else []
    text = "\n".join(
        [
            *("---", *header, "---", ""),
            f"# {slug(spec)}, {made}",
            "",
            f"Made by sdfast from {base} on the {modality} of `{slug(config.data_spec)}`{joined}: {made},"
            f" {steps:,} steps (stage `{stage}`). `FOLDER` is where this file lies.",
            "",
            _how(modality, stage == "finetune", folder),
            *([_ANSWERS[problem].format(names=", ".join(names))] if problem in _ANSWERS else []),
            *([further] if further else ()),
            "The licence of the model that it was made from holds for these weights too; sdfast adds no terms.",
            "",
        ]
    )
    write_bytes(folder / "README.md", text.encode())
