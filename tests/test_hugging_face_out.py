"""What a run leaves is used with transformers alone, and gives what `sdfast eval` gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import WORDS, write_text_model, write_texts

import sdfast
from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import load_mae
from sdfast.modalities.images.families import TIMM
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import load_mlm
from sdfast.models.layout import write_state

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("run")
    data = write_images(root / "images", classes=3, train=12, test=8, side=16)
    model = write_model(root / "model")
    sdfast.Pipeline(model, data, root / "out", overrides=(*FEW_STEPS, "finetune.steps=40", "finetune.lr=3e-3")).run()
    return root / "out", data


def test_the_pipeline_of_transformers_gives_the_labels_of_eval(run: tuple[Path, Path]) -> None:
    out, data = run
    sdfast.Pipeline(config=out / "config.yaml").evaluate()
    classify = transformers.pipeline("image-classification", model=str(out / "finetune" / "model"))
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert len({row["predicted"] for row in rows}) > 1
    for row in rows:
        best = classify(str(data / row["file_name"]))[0]
        assert best["label"] == row["predicted"]
        assert best["score"] == pytest.approx(float(row["probability"]), abs=1e-3)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """With documents far beyond the model's 41 positions, in training and in the test split."""
    root = tmp_path_factory.mktemp("text-run")
    data = write_texts(root / "texts")
    for split, stride in (("train", 7), ("test", 3)):
        with open(data / f"{split}.jsonl", "a") as file:
            for label in range(2):
                words = " ".join(WORDS[number * stride % 20 + 20 * label] for number in range(5555))
                file.write(f'{{"text": "{words}", "label": "class{label}"}}\n')
    model = write_text_model(root / "model")
    tokenizer = model / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text().replace('"model_max_length": 40', '"model_max_length": 100000000'))
    steps = (*FEW_STEPS, "finetune.steps=40", "finetune.lr=3e-3", "data.max_length=30")
    sdfast.Pipeline(model, data, root / "out", overrides=steps).run()
    return root / "out", data


def test_a_text_pipeline_gives_the_labels_of_eval_for_long_documents(text_run: tuple[Path, Path]) -> None:
    """Token for token as trained: at 30, not at the model's 41 positions. transformers has to be asked to cut."""
    out, data = text_run
    sdfast.Pipeline(config=out / "config.yaml").evaluate()
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    texts = [json.loads(line)["text"] for line in (data / "test.jsonl").read_text().splitlines()]
    assert len(rows) == len(texts) == 14 and max(len(text.split()) for text in texts) == 5555
    classify = transformers.pipeline("text-classification", model=str(out / "finetune/model"), truncation=True)
    assert classify.tokenizer.model_max_length == 30
    for row, text in zip(rows, texts, strict=True):
        (best,) = classify(text)
        assert best["label"] == row["predicted"]
        assert best["score"] == pytest.approx(float(row["probability"]), abs=1e-5)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_text_features_are_those_of_the_encoder(text_run: tuple[Path, Path], stage: str) -> None:
    out, data = text_run
    folder = out / stage / "model"
    tokenizer, model = (kind.from_pretrained(folder) for kind in (transformers.AutoTokenizer, transformers.AutoModel))
    text = json.loads((data / "test.jsonl").read_text().splitlines()[-1])["text"]
    inputs = tokenizer(text, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 41)  # what the model's positions allow
    ours = load_mlm(str(folder)).module.eval()
    with torch.no_grad():
        wanted = ours.encoder(TokenBatch(inputs["input_ids"][0], torch.tensor([41])))
        found = model(**inputs).last_hidden_state[0]
        assert torch.equal(model(**inputs).last_hidden_state[0], found)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_image_features_are_those_of_the_encoder(run: tuple[Path, Path], stage: str) -> None:
    """All tokens of the clean image, twice the same; `AutoModel` of the folder above gives a few at random."""
    out, data = run
    folder = out / stage / "model"
    model, info = transformers.AutoModel.from_pretrained(folder / "encoder", output_loading_info=True)
    assert type(model).__name__ == "ViTModel" and not info["missing_keys"] and not info["unexpected_keys"]
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "encoder")
    image = Image.open(next((data / "test").rglob("*.png")))
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = load_mae(str(folder)).module.eval().encoder(pixels)
        found = model(pixels).last_hidden_state
        assert torch.equal(model(pixels).last_hidden_state, found) and found.shape == (1, 17, 32)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        random = transformers.AutoModel.from_pretrained(folder)
        assert random(pixels).last_hidden_state.shape[1] < 17  # what the card and the docs warn of
    extract = transformers.pipeline("image-feature-extraction", model=str(folder / "encoder"))
    torch.testing.assert_close(torch.tensor(extract(image)), wanted, rtol=1e-4, atol=1e-4)


def test_the_encoder_in_timm(run: tuple[Path, Path]) -> None:
    """As docs/models.md says."""
    timm = pytest.importorskip("timm")
    out, _ = run
    loaded = load_mae(str(out / "distill" / "model"))
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="", **sizes)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = loaded.shape.norm_eps
    state = {name: tensor for name, tensor in loaded.module.state_dict().items() if name.startswith("encoder.")}
    model.load_state_dict(write_state(state, TIMM))
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = model.eval().forward_features(pixels)
        torch.testing.assert_close(found, loaded.module.eval().encoder(pixels), rtol=1e-4, atol=1e-5)


def test_the_card_says_what_to_load(run: tuple[Path, Path], text_run: tuple[Path, Path]) -> None:
    for out, data in (run, text_run):
        for stage in ("pretrain", "distill", "finetune"):
            card = (out / stage / "model" / "README.md").read_text()
            _, header, text = card.split("---\n", 2)
            assert yaml.safe_load(header)["library_name"] == "transformers"
            steps = json.loads((out / stage / "result.json").read_text())["steps"]
            assert f"stage `{stage}`" in text and f"{steps} steps" in text and f"`{data.name}`" in text
            assert str(out.parent) not in card and "licence" in text
    encoder, texts = ((out / "distill/model/README.md").read_text() for out, _ in (run, text_run))
    assert 'AutoModel.from_pretrained("FOLDER/encoder")' in encoder and "at random" in encoder
    assert 'AutoModel.from_pretrained("FOLDER")' in texts
    assert "truncation=True" in (text_run[0] / "finetune/model/README.md").read_text()


def test_result_and_export_have_all_files(run: tuple[Path, Path], tmp_path: Path) -> None:
    out, _ = run
    files = json.loads((out / "distill" / "result.json").read_text())["files"]
    assert {"README.md", "model.safetensors", "encoder/config.json", "encoder/model.safetensors"} < set(files)
    sdfast.Pipeline(config=out / "config.yaml").export("distill", tmp_path / "copy")
    for name in files:
        assert (tmp_path / "copy" / name).read_bytes() == (out / "distill/model" / name).read_bytes()
    damaged = out / "distill/model/encoder/model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"encoder/model\.safetensors"):
        sdfast.Pipeline(config=out / "config.yaml").export("distill", tmp_path / "damaged")
    damaged.write_bytes(whole)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_encoder_and_decoder_are_kept_and_load_in_transformers(run: tuple[Path, Path], stage: str) -> None:
    out, data = run
    folder = out / stage / "model"
    model, info = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    image = Image.open(next((data / "test").rglob("*.png")))
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(3))
    visible_ids = noise.argsort(dim=1)[:, :4]
    ours = load_mae(str(folder)).module.eval()
    with torch.no_grad():
        theirs = model.eval()(pixels, noise=noise).logits
        predicted = ours.decoder(ours.encoder(pixels, visible_ids), visible_ids)
    torch.testing.assert_close(predicted, theirs, rtol=1e-4, atol=1e-5)
