"""Files of weights alone, as facebookresearch/mae and its kin save them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from conftest import scramble
from safetensors.torch import load_file, save_file
from test_against_transformers import mae_loss
from test_bad_folders import sentence
from torch import Tensor, nn

from sdfast.convert import convert_model
from sdfast.modalities.choose import modality_of
from sdfast.modalities.images.checkpoint import load_mae
from sdfast.models.found import Told
from sdfast.models.initialise import sincos_positions

timm = pytest.importorskip("timm")
from timm.models.vision_transformer import Block  # noqa: E402

TIGHT = {"rtol": 0.0, "atol": 1e-10}
GRID, PATCH, WIDTH, NARROW = (7, 7), 4, 32, 24
ARGUMENTS = {"model": "mae_vit_base_patch16", "input_size": 28, "num_heads": 4, "decoder_num_heads": 3}
ARGUMENTS |= {"norm_pix_loss": True, "mask_ratio": 0.6, "lr": None, "device": "cuda"}


def norm(width: int, **more: Any) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, **more)


class FacebookMAE(nn.Module):
    """A masked auto-encoder of timm's blocks, its tensors named as in facebookresearch/mae."""

    def __init__(self, grid: tuple[int, int] = GRID, channels: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, WIDTH, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(sincos_positions(grid, WIDTH), requires_grad=False)
        self.blocks = nn.ModuleList(Block(WIDTH, 4, 2.0, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(WIDTH)
        self.decoder_embed = nn.Linear(WIDTH, NARROW)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, NARROW))
        self.decoder_pos_embed = nn.Parameter(sincos_positions(grid, NARROW), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(NARROW, 3, 2.0, qkv_bias=True, norm_layer=norm) for _ in range(2))
        self.decoder_norm = norm(NARROW)
        self.decoder_pred = nn.Linear(NARROW, PATCH**2 * channels)

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        patches = patches.gather(1, visible[..., None].expand(-1, -1, WIDTH))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        x = torch.cat((first, patches), 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, encoded: Tensor, visible: Tensor) -> Tensor:
        x = self.decoder_embed(encoded)
        full = self.mask_token.repeat(len(x), self.pos_embed.shape[1] - 1, 1)
        full = full.scatter(1, visible[..., None].expand(-1, -1, NARROW), x[:, 1:])
        x = torch.cat((x[:, :1], full), 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


Save = Callable[..., Path]


@pytest.fixture
def theirs() -> FacebookMAE:
    return scrambled_mae()


def scrambled_mae(*sizes: Any) -> FacebookMAE:
    model = scramble(FacebookMAE(*sizes))
    assert isinstance(model, FacebookMAE)
    return model


def saved(path: Path, tensors: Any, **arguments: Any) -> Path:
    """As misc.save_model of facebookresearch/mae writes it, with the state of an optimiser and of a scaler."""
    state = {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}
    beside = {"optimizer": state, "epoch": 3, "scaler": {"scale": 65536.0}, "args": Namespace(**arguments)}
    torch.save({"model": tensors, **beside}, path)
    return path


def encoder_of(theirs: FacebookMAE) -> dict[str, Tensor]:
    return {name: each for name, each in theirs.state_dict().items() if not name.startswith(("decoder", "mask_token"))}


@pytest.mark.parametrize(
    ("grid", "channels"),
    [
        pytest.param((7, 7), 3, id="square"),
        pytest.param((5, 7), 3, id="not-square"),
        pytest.param((7, 7), 5, id="bands"),
    ],
)
def test_tokens_prediction_and_loss_equal_those_of_its_own_layout(
    tmp_path: Path, grid: tuple[int, int], channels: int
) -> None:
    theirs = scrambled_mae(grid, channels)
    size = [side * PATCH for side in grid]
    path = saved(tmp_path / "mae.pth", theirs.state_dict(), **{**ARGUMENTS, "input_size": size})
    images = torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    noise = torch.rand(3, grid[0] * grid[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    visible = noise.argsort(dim=1)[:, :9]
    mask = torch.ones_like(noise).scatter(1, visible, 0.0)

    loaded = load_mae(str(path))
    ours, theirs = loaded.module.double().eval(), theirs.double()
    tokens, expected = ours.encoder(images, visible), theirs.encode(images, visible)
    torch.testing.assert_close(tokens, expected, **TIGHT)
    prediction = ours.decoder(tokens, visible)
    torch.testing.assert_close(prediction, theirs.decode(expected, visible), **TIGHT)
    loss = mae_loss(theirs.decode(expected, visible), images, mask, PATCH)
    torch.testing.assert_close(mae_loss(prediction, images, mask, PATCH), loss, **TIGHT)
    assert loaded.shape.image_size == tuple(size) and loaded.shape.norm_eps == 1e-6
    assert loaded.trained_with == {"norm_pix": True, "mask_ratio": 0.6}
    assert len(loaded.processor.mean) == channels
    assert not any("no decoder" in note or "heads" in note for note in loaded.notes)
    assert "not used: epoch, optimizer, scaler of mae.pth." in loaded.notes


def test_a_folder_that_holds_the_file_alone_is_that_file(tmp_path: Path, theirs: FacebookMAE) -> None:
    path = saved(tmp_path / "checkpoint-799.pth", theirs.state_dict(), **ARGUMENTS)
    (tmp_path / "log.txt").write_text("{}")
    digest = load_mae(str(path)).digest
    assert load_mae(str(tmp_path)).digest == digest
    assert modality_of(tmp_path).name == modality_of(path).name == "images"
    saved(tmp_path / "checkpoint-400.pth", theirs.state_dict(), **ARGUMENTS)
    text = sentence(tmp_path)
    assert "no config.json" in text and "checkpoint-400.pth" in text and "checkpoint-799.pth" in text


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt"])
def test_other_files_of_the_same_tensors(tmp_path: Path, theirs: FacebookMAE, suffix: str) -> None:
    digest = load_mae(str(saved(tmp_path / "mae.pth", theirs.state_dict(), **ARGUMENTS))).digest
    path = tmp_path / f"mae.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(theirs.state_dict(), path)
    loaded = load_mae(str(path), told=Told(heads=4, decoder_heads=3))
    assert loaded.digest == digest
    assert loaded.trained_with == {}  # nothing says how it was trained


def test_heads_are_told_or_usual_or_asked_for(tmp_path: Path, theirs: FacebookMAE) -> None:
    path = saved(tmp_path / "mae.pth", theirs.state_dict(), model="mae_vit_mini")
    text = sentence(path)
    assert "how many heads its attention of 32 features has" in text and "sdfast convert" in text and "--heads" in text
    text = sentence(path, lambda spec: load_mae(spec, told=Told(heads=4)))
    assert "decoder's attention of 24 features" in text and "--decoder-heads" in text
    assert "5 heads do not divide" in sentence(path, lambda spec: load_mae(spec, told=Told(heads=5, decoder_heads=3)))
    usual = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=0).state_dict()
    torch.save(usual, path)
    loaded = load_mae(str(path))
    assert loaded.shape.encoder.heads == 3
    assert any("3 were taken, usual for 192 features" in note for note in loaded.notes)


@pytest.mark.parametrize("word", ["tiny", "small", "base", "large", "huge", "giant"])
def test_usual_heads_are_those_of_timm(word: str) -> None:
    from sdfast.modalities.images.families.facebook import _HEADS

    with torch.device("meta"):
        model = timm.create_model(f"vit_{word}_patch{14 if word in ('huge', 'giant') else 16}_224", depth=1)
    assert _HEADS[model.embed_dim] == model.blocks[0].attn.num_heads


def test_an_encoder_that_was_fine_tuned(tmp_path: Path, theirs: FacebookMAE, pixels: Tensor) -> None:
    """Its head is left out, also the whole numbers of a linear probe's; a new decoder is made, as for any encoder."""
    tensors = encoder_of(theirs)
    tensors |= {"head.0.num_batches_tracked": torch.tensor(3), "head.1.weight": torch.zeros(5, WIDTH)}
    loaded = load_mae(str(saved(tmp_path / "tuned.pth", tensors, **ARGUMENTS)))
    images = pixels[:2]
    every = torch.arange(49).expand(2, -1)
    expected = theirs.double().encode(images, every)
    torch.testing.assert_close(loaded.module.double().encoder(images), expected, **TIGHT)
    assert loaded.trained_with == {}
    assert any("no decoder" in note for note in loaded.notes) and any("head.0" in note for note in loaded.notes)
    averaged = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in tensors.items()
    }
    again = load_mae(str(saved(tmp_path / "tuned.pth", averaged, **ARGUMENTS)))
    assert again.digest == load_mae(str(saved(tmp_path / "tuned.pth", tensors, **ARGUMENTS))).digest
    assert any("fc_norm" in note for note in again.notes)


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


WRAPPED = {
    "DataParallel": lambda t: {"model": prefixed(t, "module.")},
    "compiled": lambda t: {"state_dict": prefixed(t, "_orig_mod.module.")},
    "Lightning": lambda t: {"state_dict": prefixed(t, "model.backbone."), "hyper_parameters": {}},
    "a head beside": lambda t: {"model": prefixed(t, "backbone.") | {"classifier.weight": torch.zeros(2, 2)}},
    "DINO": lambda t: {
        "student": prefixed(t, "module.backbone."),
        "teacher": prefixed(t, "backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)},
        "epoch": 3,
    },
    "DINO in one table": lambda t: {
        **prefixed({name: tensor + 1 for name, tensor in t.items()}, "student.backbone."),
        **prefixed(t, "teacher.backbone."),
    },
    "I-JEPA": lambda t: {"encoder": prefixed(t, "module."), "target_encoder": prefixed(t, "module."), "opt": {}},
    "chunks": lambda t: {
        "teacher": prefixed({name.replace("blocks.", "blocks.0.", 1): each for name, each in t.items()}, "backbone.")
    },
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_model_inside_of_what_was_saved(tmp_path: Path, theirs: FacebookMAE, how: str) -> None:
    tensors, path = encoder_of(theirs), tmp_path / "saved.pth"
    told = Told(heads=4)
    torch.save(tensors, path)
    digest = load_mae(str(path), told=told).digest
    torch.save(WRAPPED[how](tensors), path)
    loaded = load_mae(str(path), told=told)
    assert loaded.digest == digest
    assert any(
        "taken off" in note or "is what the checkpoint calls" in note or "not used" in note for note in loaded.notes
    )


def test_two_models_in_one_file_are_not_chosen_between(tmp_path: Path, theirs: FacebookMAE) -> None:
    tensors = encoder_of(theirs)
    torch.save(prefixed(tensors, "left.") | prefixed(tensors, "right."), tmp_path / "two.pth")
    assert "holds several models (left., right.)" in sentence(tmp_path / "two.pth")


def test_layer_scale_of_dinov2_is_folded(tmp_path: Path, pixels: Tensor) -> None:
    sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": 4, "img_size": 28, "patch_size": 4, "num_classes": 0}
    theirs = timm.create_model("vit_base_patch16_224", init_values=0.5, **sizes).eval()
    tensors = {**theirs.state_dict(), "mask_token": torch.zeros(1, WIDTH)}
    torch.save(tensors, tmp_path / "dinov2.pth")
    features = load_mae(str(tmp_path / "dinov2.pth"), told=Told(heads=4)).module.double().encoder(pixels)
    torch.testing.assert_close(features, theirs.double().forward_features(pixels), **TIGHT)


def change(**tensors: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda all_: {**all_, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda all_: {name: tensor for name, tensor in all_.items() if name not in names}


ONE = torch.zeros(1)
REFUSED = [
    (change(channel_embed=torch.zeros(1, 3, 8)), ("'channel_embed'", "groups of channels", "SatMAE")),
    (change(pos_embed=torch.zeros(1, 50, WIDTH - 8)), ("positions of 24 features", "temporal")),
    (change(patch_embed__proj__weight=torch.zeros(WIDTH, 3, 2, 4, 4)), ("patch_embed.proj.weight", "4 dimensions")),
    (change(register_tokens=torch.zeros(4, WIDTH)), ("register_tokens", "3 dimensions")),
    (change(reg_token=torch.zeros(1, 4, WIDTH)), ("'reg_token'", "register tokens", "timm")),
    (change(rope_embed__periods=ONE), ("DINOv3", "transformers")),
    (change(dist_token=ONE), ("distillation token",)),
    (change(blocks__0__mlp__w12__weight=ONE), ("no tensor 'blocks.0.mlp.w3.weight'",)),
    (change(blocks__0__attn__q_norm__weight=ONE), ("q_norm", "another attention")),
    (change(blocks__0__adapter__weight=ONE), ("'blocks.0.adapter.weight'", "does not have")),
    (change(strange=ONE), ("'strange'", "does not have")),
    (change(pos_embed=torch.zeros(1, 48, WIDTH)), ("47 patches", "no square", "data.image_size")),
    (without("pos_embed"), ("no tensor 'pos_embed'",)),
    (without("cls_token"), ("no tensor 'cls_token'",)),
    (without("decoder_blocks.1.mlp.fc1.bias"), ("no tensor 'decoder_blocks.1.mlp.fc1.bias'",)),
    (without("decoder_embed.weight"), ("no tensor 'decoder_embed.weight'",)),
    (change(blocks__999999__norm1__weight=ONE), ("1,000,002 blocks",)),
    (change(**{f"blocks__{'9' * 5000}__norm1__weight": ONE}), ("does not have",)),
    (change(norm__weight=torch.zeros(3)), ("'norm.weight'", "[3], but the rest of the file makes it [32]")),
    (change(patch_embed__proj__weight=torch.zeros(WIDTH, 3, 4, 2)), ("4 x 2", "square patches")),
]


@pytest.mark.parametrize(("wrong", "parts"), REFUSED)
def test_what_is_no_plain_model_says_what_it_is(
    tmp_path: Path, theirs: FacebookMAE, wrong: Callable[..., Any], parts: tuple[str, ...]
) -> None:
    text = sentence(saved(tmp_path / "mae.pth", wrong(theirs.state_dict()), **ARGUMENTS))
    for part in (*parts, "mae.pth"):
        assert part in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bert.embeddings.word_embeddings.weight", "a language model's"),
        ("model.embed_tokens.weight", "a language model's"),
        ("vit.embeddings.cls_token", "a model of transformers"),
        ("conv1.weight", "a convolutional network's"),
        ("visual.conv1.weight", "a CLIP's"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", "a Swin's"),
        ("unheard.of", "such as 'unheard.of'"),
    ],
)
def test_files_of_other_models_say_what_they_hold(tmp_path: Path, name: str, words: str) -> None:
    torch.save({name: torch.zeros(4, 4)}, tmp_path / "weights.pth")
    for load in (load_mae, lambda spec: modality_of(Path(spec))):
        text = sentence(tmp_path / "weights.pth", load)
        assert words in text and name in text and "config.json" in text


def test_values_beside_the_weights_that_need_no_code(tmp_path: Path, theirs: FacebookMAE) -> None:
    """Paths, numbers and arrays of numpy: as scripts keep them, and in place of which something of ours is made."""
    beside = {"output_dir": Path("out"), "best": np.float64(0.5), "count": np.int64(3), "rows": np.arange(3)}
    beside |= {"mask_ratio": np.float32(0.5), "flag": np.bool_(True), "other": PureWindowsPath("c:/data")}
    loaded = load_mae(str(saved(tmp_path / "mae.pth", theirs.state_dict(), **{**ARGUMENTS, **beside})))
    assert loaded.trained_with == {"norm_pix": True, "mask_ratio": 0.5}


def test_what_would_run_code_is_named(tmp_path: Path, theirs: FacebookMAE) -> None:
    path = saved(tmp_path / "mae.pth", theirs.state_dict(), **ARGUMENTS, augment=nn.Identity())
    text = sentence(path)
    assert "torch.nn.modules.linear.Identity" in text and "may run code" in text
    path = saved(
        tmp_path / "mae.pth", theirs.state_dict(), **ARGUMENTS, augment=np.array([nn.Identity()], dtype=object)
    )
    assert "torch.nn.modules.linear.Identity" in sentence(path)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_program_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pt")
    assert "TorchScript" in sentence(tmp_path / "program.pt")


def test_half_precision_is_widened_exactly_and_said(tmp_path: Path, theirs: FacebookMAE) -> None:
    halves = {name: tensor.half() for name, tensor in theirs.state_dict().items()}
    loaded = load_mae(str(saved(tmp_path / "mae.pth", halves, **ARGUMENTS)))
    assert torch.equal(loaded.module.encoder.blocks[0].attn.qkv.weight, halves["blocks.0.attn.qkv.weight"].float())
    assert any("float16" in note and "loses nothing" in note for note in loaded.notes)


def test_what_a_configuration_says_is_not_told(tmp_path: Path, hugging_face: Any) -> None:
    _, path = hugging_face("ViTMAEForPreTraining")
    assert "--heads is for a file of weights alone" in sentence(path, lambda spec: load_mae(spec, told=Told(heads=4)))


DINOV2 = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "patch_size": 4}
DINOV2_NAMES = (
    ("encoder.layer.", "blocks."),
    ("layernorm.", "norm."),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.register_tokens", "register_tokens"),
    ("embeddings.mask_token", "mask_token"),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.weights_in", "mlp.w12"),
    ("mlp.weights_out", "mlp.w3"),
)


def as_facebook(folder: Path) -> dict[str, Tensor]:
    """The tensors of a DINOv2 of transformers under the names of facebookresearch/dinov2."""
    found: dict[str, Tensor] = {}
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "attention.attention.query" in name:
            parts = [tensors[name.replace("query", part)] for part in ("query", "key", "value")]
            name, tensor = name.replace("attention.attention.query", "attn.qkv"), torch.cat(parts)
        for theirs, ours in DINOV2_NAMES:
            name = name.replace(theirs, ours)
        if "attention.attention" not in name:
            found[name] = tensor
    return found


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_is_the_model_that_transformers_has(tmp_path: Path, gated: bool, registers: int) -> None:
    transformers, folder = pytest.importorskip("transformers"), tmp_path / "folder"
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    more = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(use_swiglu_ffn=gated, image_size=28, **DINOV2, **more)
    scramble(getattr(transformers, f"{kind}Model")(config)).save_pretrained(folder)
    path = saved(tmp_path / "dinov2.pth", as_facebook(folder), num_heads=4)
    loaded, theirs = load_mae(str(path)), load_mae(str(folder))
    assert loaded.digest == theirs.digest
    assert loaded.shape.registers == registers and loaded.shape.encoder.style.gated == gated
    convert_model(str(path), tmp_path / "converted")
    assert load_mae(str(tmp_path / "converted")).digest == loaded.digest


def test_an_encoder_without_cls_is_an_i_jepa(tmp_path: Path, pixels: Tensor) -> None:
    tensors = encoder_of(scrambled_mae())
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    del tensors["cls_token"]
    path = tmp_path / "IN1K-vit.pth.tar"
    torch.save({"target_encoder": prefixed(tensors, "module."), "encoder": {}, "predictor": {}, "epoch": 3}, path)
    loaded = load_mae(str(path), told=Told(heads=4))
    assert loaded.shape.kind == "ijepa" and not loaded.shape.cls
    assert any("there is no CLS token" in note for note in loaded.notes)
    convert_model(str(path), tmp_path / "converted", Told(heads=4))
    assert load_mae(str(tmp_path / "converted")).digest == loaded.digest
    sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "img_size": 28, "patch_size": 4}
    theirs = timm.create_model(
        "vit_base_patch16_224", class_token=False, global_pool="avg", fc_norm=False, num_classes=0, **sizes
    )
    theirs.load_state_dict(tensors)
    expected = theirs.double().eval().forward_features(pixels)
    torch.testing.assert_close(loaded.module.double().encoder(pixels), expected, **TIGHT)
