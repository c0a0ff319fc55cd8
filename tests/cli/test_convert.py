"""`sdfast convert`: what it writes loads in transformers, gives the same, and is the same model to a run."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sdfast.cli.main import run
from sdfast.modalities.images.checkpoint import fresh_mae, load_mae, save_mae
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.modalities.texts.checkpoint import Companions, fresh_mlm, load_mlm, save_mlm
from sdfast.modalities.texts.model import Dropouts, TextShape
from sdfast.models.blocks import TransformerShape

SHAPE = ViTShape(
    image_size=(20, 20),
    patch_size=4,
    channels=3,
    encoder=TransformerShape(width=32, depth=2, heads=4, mlp_width=64),
    decoder=TransformerShape(width=24, depth=1, heads=3, mlp_width=48),
    norm_eps=1e-6,
)
PREFIXES = {"encoder": "", "decoder": "decoder_"}
NAMES = {"patch_embed": "patch_embed.proj", "position_embeddings": "pos_embed"}


def facebook(module: nn.Module) -> dict[str, torch.Tensor]:
    """Our tensors under the names of facebookresearch/mae, whose projections are fused as well."""
    found = {}
    for name, tensor in module.state_dict().items():
        side, _, rest = name.partition(".")
        rest = rest.replace(".fc", ".mlp.fc")
        for ours, theirs in NAMES.items():
            rest = rest.replace(ours, theirs)
        found["mask_token" if rest == "mask_token" else PREFIXES[side] + rest] = tensor
    return found


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    """A checkpoint of a training script."""
    module = fresh_mae(SHAPE, seed=3)
    arguments = Namespace(input_size=20, norm_pix_loss=False, mask_ratio=0.6, num_heads=4, decoder_num_heads=3)
    path = tmp_path / "mae.pth"
    torch.save({"model": facebook(module), "args": arguments, "epoch": 7}, path)
    return path


def converted(capsys: Any, *arguments: Any) -> str:
    assert run(["convert", *map(str, arguments)]) == 0
    return capsys.readouterr().out.strip()


def refused(capsys: Any, *arguments: Any) -> str:
    assert run(["convert", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip()


def test_a_masked_auto_encoder_loads_in_transformers(pth: Path, tmp_path: Path, capsys: Any) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "out"
    text = converted(capsys, pth, out)
    assert text.startswith(f"{out}: a masked auto-encoder, ") and "20x20 px" in text
    theirs = transformers.ViTMAEForPreTraining.from_pretrained(out).double().eval()
    assert (theirs.config.mask_ratio, theirs.config.norm_pix_loss) == (0.6, False)
    loaded = load_mae(str(pth))
    ours = loaded.module.double()
    images = torch.randn(2, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(2, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    visible = noise.argsort(dim=1)[:, :10]
    prediction = ours.decoder(ours.encoder(images, visible), visible)
    torch.testing.assert_close(prediction, theirs(images, noise=noise).logits, rtol=0, atol=1e-9)
    encoder = transformers.AutoModel.from_pretrained(out / "encoder").double().eval()
    torch.testing.assert_close(ours.encoder(images), encoder(images).last_hidden_state, rtol=0, atol=1e-9)


def test_a_run_of_the_folder_is_one_of_the_file(pth: Path, tmp_path: Path, capsys: Any) -> None:
    """The same digest, settings and preprocessing: nothing is said in the folder that the file does not say."""
    for kept in ("whole", "encoder"):
        table = torch.load(pth, weights_only=False)
        if kept == "encoder":
            names = ("decoder", "mask_token")
            table["model"] = {name: each for name, each in table["model"].items() if not name.startswith(names)}
            torch.save(table, pth)
        text = converted(capsys, pth, tmp_path / kept)
        assert ("an encoder of images" in text) == (kept == "encoder")
        direct, again = load_mae(str(pth), seed=5), load_mae(str(tmp_path / kept), seed=5)
        assert again.digest == direct.digest
        assert again.trained_with == direct.trained_with
        assert again.processor == direct.processor
        assert any("no decoder" in note for note in again.notes) == (kept == "encoder")


def test_what_the_file_does_not_say_is_given(pth: Path, tmp_path: Path, capsys: Any) -> None:
    table = torch.load(pth, weights_only=False)["model"]
    torch.save(table, pth)
    assert "--heads N" in refused(capsys, pth, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    options = ["--heads", 4, "--decoder-heads", 3, "--mean", "0.1,0.2,0.3", "--std", "0.5", "--no-norm-pix"]
    converted(capsys, pth, tmp_path / "out", *options)
    loaded = load_mae(str(tmp_path / "out"))
    assert loaded.shape == SHAPE
    assert (loaded.processor.mean, loaded.processor.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert loaded.trained_with["norm_pix"] is False
    converted(capsys, pth, tmp_path / "usual", *options[:4])
    assert load_mae(str(tmp_path / "usual")).trained_with["norm_pix"] is True  # what training of the file does


def test_other_sizes_and_channels(pth: Path, tmp_path: Path, capsys: Any) -> None:
    converted(capsys, pth, tmp_path / "out", "--image-size", "12x16", "--channels", 5)
    loaded = load_mae(str(tmp_path / "out"))
    assert (loaded.shape.image_size, loaded.shape.channels) == ((12, 16), 5)
    assert loaded.digest == load_mae(str(pth), image_size=(12, 16), channels=5).digest
    assert (loaded.processor.height, loaded.processor.width, len(loaded.processor.mean)) == (12, 16, 5)


def test_a_model_of_texts_keeps_its_tokenizer(tmp_path: Path, capsys: Any) -> None:
    shape = TextShape("bert", 60, 40, 2, 0, TransformerShape(32, 2, 4, 48))
    companions = Companions({"model_type": "bert", "further": 1}, {"vocab.txt": b"[PAD]\n[UNK]\n"})
    save_mlm(fresh_mlm(shape, 3), tmp_path / "source", companions, Dropouts(0.1, 0.1))
    text = converted(capsys, tmp_path / "source", tmp_path / "out")
    assert ": a masked language model, " in text
    assert (tmp_path / "out/vocab.txt").read_bytes() == b"[PAD]\n[UNK]\n"
    assert json.loads((tmp_path / "out/config.json").read_text())["further"] == 1
    direct = load_mlm(str(tmp_path / "source"))
    assert load_mlm(str(tmp_path / "out")).digest == direct.digest
    assert "--heads is of models of images" in refused(capsys, tmp_path / "source", tmp_path / "no", "--heads", 4)


def test_an_encoder_of_texts_gets_no_head(tmp_path: Path, capsys: Any) -> None:
    """Else a run of the folder would take a random head for a trained one."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=40, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "source")
    assert ": an encoder of texts, " in converted(capsys, tmp_path / "source", tmp_path / "out")
    loaded = load_mlm(str(tmp_path / "out"), seed=7)
    assert loaded.fresh_head and loaded.digest == load_mlm(str(tmp_path / "source"), seed=7).digest
    ids = torch.arange(5, 25)[None]
    theirs = [transformers.AutoModel.from_pretrained(tmp_path / each).eval() for each in ("source", "out")]
    first, second = (model(input_ids=ids).last_hidden_state for model in theirs)
    assert torch.equal(first, second)


def test_nothing_of_a_persons_is_written_over(pth: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    converted(capsys, pth, out)
    before = (out / "config.json").read_bytes()
    assert "is not empty" in refused(capsys, pth, out) and (out / "config.json").read_bytes() == before
    converted(capsys, pth, out, "--channels", 1, "--replace")
    assert (out / "config.json").read_bytes() != before
    (out / "thesis.tex").write_text("years")
    assert "holds 'thesis.tex'" in refused(capsys, pth, out, "--replace")
    assert (out / "thesis.tex").read_text() == "years"
    for place in (tmp_path, pth.parent):
        assert "lies in" in refused(capsys, pth, place, "--replace")
    (out / "thesis.tex").unlink()
    assert "lies in" in refused(capsys, out, out, "--replace")
    assert "is a file" in refused(capsys, pth, pth)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--mean", "0.5"], "--mean and --std go together"),
        (["--mean", "a,b", "--std", "1"], "--mean a,b: give numbers"),
        (["--mean", "0", "--std", "0"], "--std 0: give positive numbers"),
        (["--mean", "0,1", "--std", "1"], "--mean has 2 numbers"),
        (["--image-size", "12x"], "--image-size 12x: give one number"),
        (["--image-size", "13"], "not a multiple"),
        (["--heads", "0"], "--heads"),
        (["--heads", "5"], "5 heads do not divide"),
    ],
)
def test_options_that_do_not_fit(pth: Path, tmp_path: Path, capsys: Any, options: list[str], part: str) -> None:
    assert part in refused(capsys, pth, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_options_of_a_bare_file_are_not_for_folders(tmp_path: Path, capsys: Any) -> None:
    save_mae(fresh_mae(SHAPE, 3), tmp_path / "mae", ImageProcessor(20, 20, (0.5,) * 3, (0.5,) * 3))
    assert "--heads is for a file of weights alone" in refused(capsys, tmp_path / "mae", tmp_path / "o", "--heads", 4)


def test_what_was_read_and_what_not_is_said(pth: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(["convert", str(pth), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "not used: epoch of mae.pth." in said
    assert "does not say how pixels were normalised" in said and "Traceback" not in said


def test_the_configuration_of_a_file_is_shown(pth: Path, capsys: Any) -> None:
    assert run(["config", "show", "--model", str(pth)]) == 0
    shown = capsys.readouterr().out
    assert "norm_pix: false" in shown and "mask_ratio: 0.6" in shown


def test_help_reads_well(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sdfast"])
    assert run(["convert", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "OUT/encoder" in text and "--norm-pix" in text and "--no-norm-pix" in text
