"""What a step leaves out changes nothing: a hundred steps with any shortcut and attention backend equal the plain ones.

The plain step has no shortcut and the reference attention. The key's bias is left out of the comparisons in float32:
softmax ignores it, so that its gradient is rounding noise, which Adam divides by its own size.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_stage import IMAGES, MEAN, SHAPE, STD, initialise, losses_of, objective_of, teacher_encoder
from torch import Tensor

from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.modalities.images.masking import patch_mask
from sdfast.modalities.images.model import MaskedAutoencoder, View, ViTEncoder, patches_of, select_tokens
from sdfast.modalities.images.reader import Normalise
from sdfast.models.blocks import Block, use_attention
from sdfast.models.compiled import use_compiled
from sdfast.objectives.base import ALL_SHORTCUTS, Shortcuts
from sdfast.ops.linear.fp32_matmul import Float32Products, float32_products, why_not_bf16x6
from sdfast.ops.registry import why_not
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank

STEPS, BATCH = 100, 12
NO_SHORTCUTS = Shortcuts(packed=False, cls_tail=False, masked_tail=False)


@dataclass(frozen=True)
class Scenario:
    """A stage to train, and the shortcuts that it can take."""

    name: str
    stage: str
    shortcuts: tuple[str, ...]
    tokens: str = "cls"
    mask: str = "fixed"
    mae_weight: float = 1.0
    accumulate: int = 1
    bank: bool = False
    in_turn: bool = False  # also with each shortcut left out in turn

    def __str__(self) -> str:
        return self.name


ALL = ("packed", "cls_tail", "masked_tail")
SCENARIOS = [
    Scenario("pretrain", "pretrain", ("masked_tail",)),
    Scenario("distill", "distill", ALL, in_turn=True),
    Scenario("patch tokens", "distill", ("packed", "masked_tail"), tokens="patch", bank=True, in_turn=True),
    Scenario("all tokens", "distill", ("packed", "masked_tail"), tokens="all", bank=True),
    Scenario("bernoulli masks", "distill", ("packed", "cls_tail"), mask="bernoulli", bank=True, in_turn=True),
    Scenario("no masked part", "distill", ("cls_tail",), mae_weight=0.0),
    Scenario("accumulate 3, bank", "distill", ALL, accumulate=3, bank=True),
    Scenario("finetune", "finetune", ("cls_tail",)),
]
Trajectory = tuple[list[dict[str, float]], dict[str, Tensor]]


@functools.cache
def trajectory(
    scenario: Scenario,
    shortcuts: Shortcuts = ALL_SHORTCUTS,
    dtype: torch.dtype = torch.float64,
    attention: str = "auto",
    compiled: bool = False,
    steps: int = STEPS,
    products: Float32Products = "ieee",
) -> Trajectory:
    """The losses of every step, and the trained weights."""
    torch.manual_seed(0)
    config: PretrainConfig | FinetuneConfig
    if scenario.stage == "finetune":
        config = FinetuneConfig(steps=steps, batch_size=BATCH, lr=1e-3)
        objective = objective_of("finetune", dtype, dropout=0.0, shortcuts=shortcuts)
    else:
        config = PretrainConfig(steps=steps, batch_size=BATCH, lr=1e-3, mask=scenario.mask)  # type: ignore[arg-type]
        changes = {"teacher": bank_of(scenario, dtype)} if scenario.bank else {}
        if scenario.stage == "distill":
            changes |= {"tokens": scenario.tokens, "mae_weight": scenario.mae_weight}
        objective = objective_of(scenario.stage, dtype, config, shortcuts=shortcuts, **changes)
    use_attention(objective.module, attention)
    if compiled:
        use_compiled(objective.module)
    engine = EngineConfig(accumulate=scenario.accumulate, log_every=steps)
    order = BatchOrder(torch.arange(len(IMAGES)), BATCH, seed=9)
    with tempfile.TemporaryDirectory() as directory:
        data, folder = TrainingData(order, lambda rows: IMAGES[rows]), StageFolder(Path(directory), {})
        trainer = Trainer("test", objective, config, engine, data, folder)
        with float32_products(products):
            losses = losses_of(trainer)
    return losses, {name: value.clone() for name, value in objective.module.state_dict().items()}


def test_the_steps_move_the_weights_far_beyond_the_bounds() -> None:
    trained = trajectory(SCENARIOS[1], NO_SHORTCUTS, attention="reference")[1]
    start = objective_of("distill", torch.float64).module.state_dict()
    fixed = {"encoder.position_embeddings", "decoder.position_embeddings"}
    for name, value in trained.items():
        moved = (value - start[name]).abs().max()
        assert (moved == 0) if name in fixed else (moved > 1e-3), name


def bank_of(scenario: Scenario, dtype: torch.dtype) -> ResidentBank:
    """What the live teacher would say of every image."""
    teacher = LiveTeacher(teacher_encoder(), scenario.tokens).to(dtype)  # type: ignore[arg-type]
    features = teacher(Normalise(MEAN, STD).to(dtype)(IMAGES))
    return ResidentBank(features, None, torch.arange(len(IMAGES))[None])


def ways(scenario: Scenario) -> list[Shortcuts]:
    """Every shortcut taken, and each left out in turn."""
    left_out = [replace(ALL_SHORTCUTS, **{name: False}) for name in scenario.shortcuts if scenario.in_turn]
    return [ALL_SHORTCUTS, *left_out]


def distance(a: Trajectory, b: Trajectory) -> tuple[float, float]:
    """The largest difference of a loss, relative to the larger of it and 1, and of a weight."""
    losses = max(
        abs(ours[name] - value) / max(1.0, abs(value))
        for ours, plain in zip(a[0], b[0], strict=True)
        for name, value in plain.items()
    )
    assert a[1].keys() == b[1].keys() and all(one.keys() == two.keys() for one, two in zip(a[0], b[0], strict=True))
    weights = max(
        (without_key_bias(name, a[1][name]) - without_key_bias(name, b[1][name])).abs().max() for name in a[1]
    )
    return losses, weights.item()


def without_key_bias(name: str, value: Tensor) -> Tensor:
    value = value.double()
    if name.endswith("attn.qkv.bias"):
        query, _, rest = value.chunk(3)
        return torch.cat((query, rest))
    return value


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_hundred_steps_in_float64(scenario: Scenario) -> None:
    plain = trajectory(scenario, NO_SHORTCUTS, attention="reference")
    assert len(plain[0]) == STEPS
    for shortcuts in ways(scenario):
        losses, weights = distance(trajectory(scenario, shortcuts), plain)
        assert losses <= 1e-9 and weights <= 1e-9, f"{scenario} {shortcuts}: loss {losses:.3g}, weight {weights:.3g}"


def test_the_shortcuts_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves out what it says, so that the comparisons above compare two different ways."""
    calls: list[str] = []
    encode, first, some = ViTEncoder.encode, Block.first_query, Block.some_queries

    def noted(name: str, function: object) -> object:
        return lambda *arguments: (calls.append(name.format(len(arguments) - 1)), function(*arguments))[1]  # type: ignore

    monkeypatch.setattr(ViTEncoder, "encode", noted("encode {}", encode))
    monkeypatch.setattr(Block, "first_query", noted("first", first))
    monkeypatch.setattr(Block, "some_queries", noted("some", some))
    batch = BatchOrder(torch.arange(len(IMAGES)), BATCH, seed=9).batch(0)
    names = [field.name for field in fields(Shortcuts)]
    assert set(names) == set(ALL)
    seen = {}
    for name in ("", *names):
        shortcuts = replace(NO_SHORTCUTS, **{name: True}) if name else NO_SHORTCUTS
        objective = objective_of("distill", shortcuts=shortcuts)
        calls.clear()
        objective.loss(IMAGES[batch.rows], batch, objective.draw(batch), slice(0, BATCH))
        seen[name] = sorted(calls)
    live = ["encode 1", "first"]  # the teacher's
    assert seen == {
        "": sorted(["encode 1", "encode 1", *live]),
        "packed": sorted([*live, "encode 2"]),
        "cls_tail": sorted(["encode 1", "encode 1", *live, "first"]),
        "masked_tail": sorted(["encode 1", "encode 1", *live, "some"]),
    }


IN_FLOAT32 = [SCENARIOS[0], SCENARIOS[1], SCENARIOS[4], SCENARIOS[7]]


@pytest.mark.parametrize(
    ("scenario", "attention"),
    [(SCENARIOS[1], "reference"), *((scenario, name) for scenario in IN_FLOAT32 for name in ("sdpa", "native"))],
    ids=str,
)
def test_a_hundred_steps_in_float32(scenario: Scenario, attention: str) -> None:
    """No farther from the truth in float64 than twice the plain float32 steps."""
    reason = why_not("attention", attention, "cpu", torch.float32, 16)
    if reason is not None:
        pytest.skip(reason)
    compare_in_float32(scenario, trajectory(scenario, dtype=torch.float32, attention=attention))


@pytest.mark.parametrize("scenario", IN_FLOAT32, ids=str)
def test_a_hundred_steps_with_bf16x6_products(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := why_not_bf16x6()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr("sdfast.ops.linear.layer._SMALLEST_WEIGHTS", 0)
    compare_in_float32(scenario, trajectory(scenario, dtype=torch.float32, products="bf16x6"))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "native"])
@pytest.mark.parametrize("scenario", IN_FLOAT32, ids=str)
def test_a_hundred_compiled_steps(scenario: Scenario, attention: str) -> None:
    torch._dynamo.reset()
    compare_in_float32(scenario, trajectory(scenario, dtype=torch.float32, attention=attention, compiled=True))


def compare_in_float32(scenario: Scenario, ours: Trajectory) -> None:
    plain = trajectory(scenario, NO_SHORTCUTS, torch.float32, "reference")
    truth = trajectory(scenario, NO_SHORTCUTS, attention="reference")
    errors, eagers = distance(ours, truth), distance(plain, truth)
    for what, error, eager in zip(("loss", "weight"), errors, eagers, strict=True):
        assert error <= 2 * max(eager, 1e-6), f"{scenario}: {what} is off by {error:.3g}, plain by {eager:.3g}"


# ---- the parts -------------------------------------------------------------------------------------------------


@pytest.fixture
def module() -> MaskedAutoencoder:
    made = MaskedAutoencoder(SHAPE).double()
    initialise(made, 4)
    return made


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def test_patches_are_those_of_a_convolution() -> None:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 12, 20, dtype=torch.float64, generator=rng)
    patches = patches_of(pixels, (4, 4))
    assert torch.equal(patches, F.unfold(pixels, 4, stride=4).transpose(1, 2))
    assert torch.equal(patches_of(pixels, (6, 5)), F.unfold(pixels, (6, 5), stride=(6, 5)).transpose(1, 2))
    layer = torch.nn.Conv2d(3, 7, 4, stride=4).double()
    wanted = layer(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(F.linear(patches, layer.weight.flatten(1), layer.bias), wanted)


@pytest.mark.parametrize("kind", ["fixed", "bernoulli"])
def test_the_encoder_of_visible_patches_is_the_plain_computation(
    kind: str, module: MaskedAutoencoder, pixels: Tensor
) -> None:
    """One image at a time, block by block, with nothing but the patches that it shows."""
    encoder = module.encoder
    drawn = patch_mask(1, 0, torch.arange(3), SHAPE.patches, 0.6, kind)  # type: ignore[arg-type]
    encoded = encoder(pixels, drawn.visible_ids, drawn.visible_valid)
    for image in range(3):
        ids = drawn.visible_ids[image]
        if drawn.visible_valid is not None:
            ids = ids[drawn.visible_valid[image]]
        x = encoder.patch_embed(pixels[image : image + 1]).flatten(2).transpose(1, 2)[0]
        x = (x + encoder.position_embeddings[0, 1:])[ids]
        x = torch.cat((encoder.cls_token[0] + encoder.position_embeddings[0, :1], x))
        for block in encoder.blocks:
            x = plain_block(block, x)
        torch.testing.assert_close(encoded[image, : len(x)], encoder.norm(x), rtol=1e-10, atol=1e-12)


def plain_block(block: Block, x: Tensor) -> Tensor:
    """[N, D], one sequence."""
    heads = block.attn.heads
    q, k, v = (each.unflatten(1, (heads, -1)).transpose(0, 1) for each in block.attn.qkv(block.norm1(x)).chunk(3, 1))
    attended = ((q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5).softmax(-1) @ v
    x = x + F.linear(attended.transpose(0, 1).flatten(1), block.attn.proj.weight, block.attn.proj.bias)
    return x + block.fc2(F.gelu(block.fc1(block.norm2(x))))


def test_views_together_are_views_apart(module: MaskedAutoencoder, pixels: Tensor) -> None:
    encoder = module.encoder
    drawn = patch_mask(1, 0, torch.arange(3), SHAPE.patches, 0.6, "bernoulli")
    whole, some = encoder.embed(pixels), encoder.embed(pixels, drawn.visible_ids)
    assert drawn.visible_valid is not None
    valid = F.pad(drawn.visible_valid, (1, 0), value=True)
    apart = [encoder.encode(View(whole))[0], encoder.encode(View(some, valid))[0]]
    together = encoder.encode(View(some, valid), View(whole, cls_only=True), View(whole))
    torch.testing.assert_close(together[0][valid], apart[1][valid])
    torch.testing.assert_close(together[1], apart[0][:, 0])
    torch.testing.assert_close(together[2], apart[0])
    assert together[1].shape == (3, 32)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_one_query_without_keys_and_values(qkv_bias: bool) -> None:
    """`first_query` never makes them; gradients of all weights agree too, the key's bias among them (zero)."""
    block = Block(SHAPE.encoder, 1e-6, qkv_bias).double()
    initialise(block, 1)
    x = torch.randn(3, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fast = block.first_query(x)
    plain = torch.stack([plain_block(block, each)[0] for each in x])
    some = block.some_queries(x, torch.zeros(3, 1, dtype=torch.int64))
    for ours in (fast, some):
        torch.testing.assert_close(ours, plain)
        grads = torch.autograd.grad(ours.square().sum(), list(block.parameters()))
        wanted = torch.autograd.grad(plain.square().sum(), list(block.parameters()), retain_graph=True)
        for mine, theirs in zip(grads, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_the_decoder_of_masked_patches_only(blocks: int, module: MaskedAutoencoder, pixels: Tensor) -> None:
    """Also with no block, whose head alone leaves patches out."""
    decoder = module.decoder
    decoder.blocks = torch.nn.ModuleList(list(decoder.blocks) * blocks)
    drawn = patch_mask(1, 0, torch.arange(3), SHAPE.patches, 0.6)
    assert drawn.masked_ids is not None
    encoded = module.encoder(pixels, drawn.visible_ids)
    every = decoder(encoded, drawn.visible_ids)
    some = decoder(encoded, drawn.visible_ids, masked_ids=drawn.masked_ids)
    wanted = torch.stack([row[ids] for row, ids in zip(every, drawn.masked_ids, strict=True)])
    torch.testing.assert_close(some, wanted, rtol=1e-10, atol=1e-12)


def test_selected_tokens_are_what_the_objective_matches(module: MaskedAutoencoder, pixels: Tensor) -> None:
    encoded = module.encoder(pixels)
    cls_only = module.encoder.encode(module.encoder.view(module.encoder.embed(pixels), cls_only=True))[0]
    torch.testing.assert_close(cls_only, select_tokens(encoded, "cls"))


def test_masked_and_visible_patches_are_all_patches() -> None:
    for ratio in (0.1, 0.5, 0.75, 0.99):
        drawn = patch_mask(2, 1, torch.arange(40), 49, ratio)
        assert drawn.masked_ids is not None and drawn.visible_valid is None
        both = torch.cat((drawn.visible_ids, drawn.masked_ids), dim=1)
        assert torch.equal(both.sort(dim=1).values, torch.arange(49).expand(40, 49))
        assert drawn.mask.gather(1, drawn.masked_ids).all() and not drawn.mask.gather(1, drawn.visible_ids).any()
        part = drawn[3:7]
        assert part.masked_ids is not None and torch.equal(part.masked_ids, drawn.masked_ids[3:7])
    assert patch_mask(2, 1, torch.arange(40), 49, 0.5, "bernoulli").masked_ids is None
