"""The shared case table of the masked-pixel and representation loss, and the rule for its errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdfast.losses import MaeDistillOutput, mae_distill_loss

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """One row of the table: how to build the inputs of one call."""

    name: str
    batch: int = 3
    channels: int = 3
    height: int = 32
    width: int = 48
    patch_size: int = 16
    norm_pix: bool = True
    pixel_part: bool = True
    pred_dtype: torch.dtype = torch.float32
    image_dtype: torch.dtype = torch.float32
    mask: str = "some"  # some | uneven | all | none
    mask_dtype: torch.dtype = torch.bool
    masked_only: bool = False  # pred [B, M, P] with mask_ids
    index_dtype: torch.dtype = torch.int64
    features: tuple[int, ...] | None = (24,)  # student's shape without the batch
    student_dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype = torch.float32
    bank: int = 0  # rows of the teacher's bank; 0: one teacher row a sample
    reduction: str = "sum"
    mae_weight: float = 1.0
    distill_weight: float = 1.0
    layout: str = "contiguous"  # contiguous | sliced | permuted
    grad_output: float = 1.0
    requires_grad: str = "both"  # both | pred | student

    def __str__(self) -> str:
        return self.name

    @property
    def patches(self) -> int:
        return (self.height // self.patch_size) * (self.width // self.patch_size)

    @property
    def patch_values(self) -> int:
        return self.patch_size**2 * self.channels


def _low(dtype: torch.dtype) -> list[Case]:
    short = str(dtype).removeprefix("torch.")
    return [
        Case(
            f"{short} everywhere",
            pred_dtype=dtype,
            image_dtype=dtype,
            student_dtype=dtype,
            teacher_dtype=dtype,
        ),
        Case(
            f"{short} pred, float32 pixels, float32 teacher",
            pred_dtype=dtype,
            student_dtype=dtype,
            features=(7, 24),
        ),
        Case(f"float32 student, {short} bank", teacher_dtype=dtype, bank=9, features=(5, 24)),
    ]


CASES = [
    Case("ViT shape"),
    Case("one sample", batch=1),
    Case("tokens", features=(5, 40)),
    Case("patch 2", patch_size=2, height=6, width=10),
    Case("patch 4, one channel", patch_size=4, channels=1, height=28, width=28),
    Case("patch 14", patch_size=14, height=28, width=42),
    Case("patch 16, one channel", channels=1),
    Case("patch 5, five channels", patch_size=5, channels=5, height=15, width=10),
    Case("patch 1, three channels", patch_size=1, height=3, width=5),
    Case("patch 20, two channels", patch_size=20, channels=2, height=40, width=20),
    Case("odd batch and features", batch=41, patch_size=4, height=12, width=8, features=(401,)),
    Case("odd tokens", batch=5, features=(3, 401)),
    Case("one feature", features=(1,)),
    Case("raw pixels", norm_pix=False),
    Case("masks of uneven size, one sample without", mask="uneven"),
    Case("all masked", mask="all"),
    Case("none masked", mask="none"),
    Case("float mask", mask_dtype=torch.float32),
    Case("integer mask", mask_dtype=torch.int64),
    Case("uint8 mask", mask_dtype=torch.uint8),
    Case("masked predictions only", masked_only=True),
    Case(
        "masked predictions only, int32 ids",
        masked_only=True,
        index_dtype=torch.int32,
        channels=1,
        patch_size=4,
    ),
    Case("masked predictions only, none", masked_only=True, mask="none"),
    Case("uint8 pixels", image_dtype=torch.uint8),
    Case(
        "uint8 raw pixels, patch 14",
        image_dtype=torch.uint8,
        norm_pix=False,
        patch_size=14,
        height=28,
        width=28,
    ),
    Case("uint8 pixels, one channel, masked only", image_dtype=torch.uint8, channels=1, masked_only=True),
    Case("uint8 pixels, permuted", image_dtype=torch.uint8, layout="permuted"),
    Case("pixels only", features=None),
    Case("representation only", pixel_part=False),
    Case("representation only, tokens, bank", pixel_part=False, features=(7, 33), bank=11),
    Case("bank", bank=20),
    Case("bank, int32 rows", bank=20, index_dtype=torch.int32, features=(3, 40)),
    Case("int8 bank", bank=20, teacher_dtype=torch.int8, features=(3, 40)),
    Case("int8 teacher, one token", teacher_dtype=torch.int8),
    Case("mean over features", reduction="mean", features=(5, 40)),
    Case("weights", mae_weight=0.25, distill_weight=3.5),
    Case("zero weights", mae_weight=0.0, distill_weight=0.0),
    Case("grad_output 2.5", grad_output=2.5),
    Case("grad_output -0.125, masked only", grad_output=-0.125, masked_only=True),
    Case("only pred requires grad", requires_grad="pred"),
    Case("only student requires grad", requires_grad="student"),
    Case("sliced", layout="sliced", features=(5, 40)),
    Case("sliced, masked only, bank", layout="sliced", masked_only=True, bank=8),
    Case("permuted", layout="permuted", features=(5, 40)),
    Case("empty batch", batch=0),
    Case("empty batch, tokens, bank", batch=0, features=(2, 8), bank=4),
    Case("no tokens", features=(0, 8)),
    Case("float64 everywhere", pred_dtype=torch.float64, image_dtype=torch.float64, student_dtype=torch.float64),
    Case("float64 pred, float32 pixels", pred_dtype=torch.float64, patch_size=14, height=28, width=14),
    *_low(torch.bfloat16),
    *_low(torch.float16),
    Case(
        "bfloat16 pred, uint8 pixels, masked only",
        pred_dtype=torch.bfloat16,
        image_dtype=torch.uint8,
        masked_only=True,
    ),
    replace(
        _low(torch.bfloat16)[0],
        name="bfloat16, patch 14, sliced",
        patch_size=14,
        height=28,
        width=28,
        layout="sliced",
    ),
]


def build(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """The keyword arguments of one call, the same for every backend."""
    rng = torch.Generator().manual_seed(seed)
    arguments: dict[str, Any] = {
        "mae_weight": case.mae_weight,
        "distill_weight": case.distill_weight,
        "distill_reduction": case.reduction,
    }
    if case.pixel_part:
        arguments |= _pixel_part(case, rng, device)
    if case.features is not None:
        arguments |= _representation_part(case, rng, device)
    return arguments


def _pixel_part(case: Case, rng: torch.Generator, device: str) -> dict[str, Any]:
    shape = (case.batch, case.channels, case.height, case.width)
    made: dict[str, Any] = {"patch_size": case.patch_size, "norm_pix": case.norm_pix}
    if case.image_dtype == torch.uint8:
        images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
        made |= {"mean": MEAN[: case.channels], "std": STD[: case.channels]}
    else:
        images = (torch.randn(shape, generator=rng) * 1.5 + 0.4).to(case.image_dtype)
    made["images"] = lay_out(images.to(device), case.layout)
    ratio = {"some": 0.75, "uneven": 0.5, "all": 1.0, "none": 0.0}[case.mask]
    noise = torch.rand((case.batch, case.patches), generator=rng)
    if case.mask == "uneven":
        mask = noise < ratio
        mask[:1] = False
    else:
        mask = noise.argsort(dim=1) < round(ratio * case.patches)
    count = case.patches
    if case.masked_only:
        count = round(ratio * case.patches)
        ids = noise.argsort(dim=1)[:, :count].to(case.index_dtype)
        made["mask_ids"] = lay_out(ids.to(device), case.layout)
    else:
        made["mask"] = lay_out(mask.to(case.mask_dtype).to(device), case.layout)
    pred = torch.randn((case.batch, count, case.patch_values), generator=rng).to(case.pred_dtype)
    made["pred"] = lay_out(pred.to(device), case.layout).requires_grad_(case.requires_grad in ("both", "pred"))
    return made


def _representation_part(case: Case, rng: torch.Generator, device: str) -> dict[str, Any]:
    assert case.features is not None
    made: dict[str, Any] = {}
    student = torch.randn((case.batch, *case.features), generator=rng).to(case.student_dtype)
    made["student"] = lay_out(student.to(device), case.layout)
    made["student"].requires_grad_(case.requires_grad in ("both", "student"))
    rows = case.bank or case.batch
    if case.teacher_dtype == torch.int8:
        teacher = torch.randint(-127, 128, (rows, *case.features), generator=rng, dtype=torch.int8)
        made["teacher_scale"] = (torch.rand(teacher.shape[:-1], generator=rng) * 0.02 + 0.01).to(device)
    else:
        teacher = torch.randn((rows, *case.features), generator=rng).to(case.teacher_dtype)
    made["teacher"] = lay_out(teacher.to(device), case.layout)
    if case.bank:
        made["rows"] = torch.randint(0, rows, (case.batch,), generator=rng).to(case.index_dtype).to(device)
    return made


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides: a slice of a larger tensor, or a transposed copy."""
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "permuted":  # last dimension strided; for images: channels last
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    wide = torch.full((tensor.shape[0], tensor.shape[1] + 2, *tensor.shape[2:]), 77, dtype=tensor.dtype)
    wide = wide.to(tensor.device)
    wide[:, 1:-1] = tensor
    return wide[:, 1:-1]


@dataclass(frozen=True)
class Result:
    """The parts and the gradients of one call."""

    output: MaeDistillOutput
    grads: dict[str, Tensor]


def evaluate(case: Case, arguments: dict[str, Any], backend: str, compiled: bool = False) -> Result:
    """Forward and backward with the case's grad_output."""
    function = torch.compile(mae_distill_loss, fullgraph=True) if compiled else mae_distill_loss
    output = function(**arguments, backend=backend)
    wanted = [name for name in ("pred", "student") if name in arguments and arguments[name].requires_grad]
    grads: dict[str, Tensor] = {}
    if wanted:
        seed = torch.full_like(output.loss, case.grad_output)
        made = torch.autograd.grad(output.loss, [arguments[name] for name in wanted], seed)
        grads = dict(zip(wanted, made, strict=True))
    return Result(output, grads)


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same values, every floating tensor exactly widened to float64: the truth's inputs."""
    wide = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point() and name != "mask":
            wide[name] = value.detach().double().requires_grad_(value.requires_grad)
        else:
            wide[name] = value
    if all(wide[n].dtype != torch.float64 for n in ("pred", "student") if n in wide):
        raise AssertionError("no floating input to widen")
    return wide


def assert_within_twice_eager(case: Case, fast: Result, eager: Result, truth: Result) -> None:
    """Largest error of every output at most twice eager's own, with one rounding unit of room."""
    pairs = {
        f"out.{name}": (getattr(fast.output, name), getattr(eager.output, name), getattr(truth.output, name))
        for name in ("loss", "mae", "distill")
    }
    assert fast.grads.keys() == eager.grads.keys() == truth.grads.keys()
    for name in truth.grads:
        pairs[f"grad {name}"] = (fast.grads[name], eager.grads[name], truth.grads[name])
    for name, (ours, plain, exact) in pairs.items():
        assert ours.dtype == plain.dtype and ours.shape == plain.shape, f"{case}: {name} has another kind"
        assert torch.isfinite(ours).all(), f"{case}: {name} is not finite"
        if exact.numel() == 0:
            continue
        error = (ours.double() - exact.double()).abs().max().item()
        eagers = (plain.double() - exact.double()).abs().max().item()
        unit = torch.finfo(ours.dtype).eps / 2 * exact.double().abs().max().item()
        # In float64 the truth is itself eager's, so eager's own error is unknown: sixteen rounding units instead.
        allowed = 16 * unit if ours.dtype == torch.float64 else 2 * max(eagers, unit)
        assert error <= allowed, f"{case}: {name} is off by {error:.3g}, eager by {eagers:.3g}"
