"""Bad input raises a ValueError or TypeError that names the argument, and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mae_distill_cases import Case, build

from sdfast.losses import mae_distill_loss
from sdfast.ops.mae_distill import loss
from sdfast.ops.mae_distill.loss import ROW
from sdfast.ops.registry import Backend

Change = dict[str, Any]
BOTH = Case("both", batch=2, patch_size=16, features=(3, 8))
IDS = Case("masked only", batch=2, masked_only=True, bank=5, features=(8,))
BYTES = Case("bytes", batch=2, image_dtype=torch.uint8, teacher_dtype=torch.int8)

BAD: list[tuple[str, Case, Callable[[Change], Change], type[Exception], str]] = [
    ("nothing", BOTH, lambda a: {"pred": None, "student": None}, ValueError, "pred.*student"),
    ("no images", BOTH, lambda a: {"images": None}, ValueError, "^images should be given"),
    ("no teacher", BOTH, lambda a: {"teacher": None}, ValueError, "^teacher should be given"),
    ("images alone", BOTH, lambda a: {"pred": None}, ValueError, "^images was given without pred"),
    ("teacher alone", BOTH, lambda a: {"student": None}, ValueError, "^teacher was given without student"),
    ("mask and ids", BOTH, lambda a: {"mask_ids": torch.zeros(2, 6).long()}, ValueError, "mask.*mask_ids"),
    ("neither", BOTH, lambda a: {"mask": None}, ValueError, "mask.*mask_ids"),
    ("pred a list", BOTH, lambda a: {"pred": [1.0]}, TypeError, "^pred should be a tensor"),
    ("pred of ints", BOTH, lambda a: {"pred": a["pred"].int()}, TypeError, "^pred should have one of the dtypes"),
    ("pred flat", BOTH, lambda a: {"pred": a["pred"].flatten(1)}, ValueError, r"^pred should have shape \[B, L, P\]"),
    ("pred short", BOTH, lambda a: {"pred": a["pred"][:, :5]}, ValueError, r"^pred should have shape \[2, 6, 768\]"),
    ("pred narrow", BOTH, lambda a: {"pred": a["pred"][..., :9]}, ValueError, r"^pred should have shape"),
    ("one image more", BOTH, lambda a: {"images": a["images"][:1]}, ValueError, "^pred should have shape"),
    ("images of ints", BOTH, lambda a: {"images": a["images"].int()}, TypeError, "^images should have one of"),
    ("images 3-D", BOTH, lambda a: {"images": a["images"][0]}, ValueError, r"^images should have shape \[B, C, H, W\]"),
    (
        "images with grad",
        BOTH,
        lambda a: {"images": a["images"].requires_grad_()},
        ValueError,
        "^images should not req",
    ),
    ("mask 3-D", BOTH, lambda a: {"mask": a["mask"][..., None]}, ValueError, r"^mask should have shape \[B, L\]"),
    ("mask short", BOTH, lambda a: {"mask": a["mask"][:, 1:]}, ValueError, r"^mask should have shape \[2, 6\]"),
    ("mask complex", BOTH, lambda a: {"mask": a["mask"].to(torch.complex64)}, TypeError, "^mask should have one of"),
    ("mask a number", BOTH, lambda a: {"mask": 0.75}, TypeError, "^mask should be a tensor"),
    ("float ids", IDS, lambda a: {"mask_ids": a["mask_ids"].float()}, TypeError, "^mask_ids should have one of"),
    ("ids short", IDS, lambda a: {"mask_ids": a["mask_ids"][:1]}, ValueError, "^mask_ids should have shape"),
    ("ids too large", IDS, lambda a: {"mask_ids": a["mask_ids"] + 6}, ValueError, r"^mask_ids should lie in \[0, 6\)"),
    ("ids negative", IDS, lambda a: {"mask_ids": a["mask_ids"] - 6}, ValueError, r"^mask_ids should lie in \[0, 6\)"),
    ("rows too large", IDS, lambda a: {"rows": torch.tensor([0, 5])}, ValueError, r"^rows should lie in \[0, 5\)"),
    ("rows negative", IDS, lambda a: {"rows": torch.tensor([0, -1])}, ValueError, r"^rows should lie in \[0, 5\)"),
    ("rows short", IDS, lambda a: {"rows": torch.tensor([0])}, ValueError, r"^rows should have shape \[2\]"),
    ("rows of floats", IDS, lambda a: {"rows": torch.zeros(2)}, TypeError, "^rows should have one of the dtypes"),
    ("rows 2-D", IDS, lambda a: {"rows": torch.zeros(2, 1).long()}, ValueError, r"^rows should have shape \[B\]"),
    ("bank without rows", IDS, lambda a: {"rows": None}, ValueError, "^teacher should have shape.*rows="),
    (
        "teacher with grad",
        BOTH,
        lambda a: {"teacher": a["teacher"].requires_grad_()},
        ValueError,
        "^teacher should not",
    ),
    ("teacher narrow", BOTH, lambda a: {"teacher": a["teacher"][..., :4]}, ValueError, "^teacher should have shape"),
    ("teacher of ints", BOTH, lambda a: {"teacher": a["teacher"].int()}, TypeError, "^teacher should have one of"),
    (
        "student 1-D",
        BOTH,
        lambda a: {"student": a["student"][0, 0]},
        ValueError,
        r"^student should have shape \[B, D\]",
    ),
    (
        "student short",
        BOTH,
        lambda a: {"student": a["student"][:1], "teacher": a["teacher"][:1]},
        ValueError,
        "^student",
    ),
    ("student of ints", BOTH, lambda a: {"student": a["student"].int()}, TypeError, "^student should have one of"),
    ("student elsewhere", BOTH, lambda a: {"student": a["student"].to("meta")}, ValueError, "^student should be on"),
    ("mask elsewhere", BOTH, lambda a: {"mask": a["mask"].to("meta")}, ValueError, "^mask should be on pred's device"),
    ("no scale", BYTES, lambda a: {"teacher_scale": None}, ValueError, "^teacher_scale should be given with an int8"),
    ("scale short", BYTES, lambda a: {"teacher_scale": torch.ones(3)}, ValueError, r"^teacher_scale should have shape"),
    ("scale of float", BOTH, lambda a: {"teacher_scale": torch.ones(2, 3)}, ValueError, "^teacher_scale.*int8"),
    ("scale of ints", BYTES, lambda a: {"teacher_scale": torch.ones(2).int()}, TypeError, "^teacher_scale should have"),
    ("no mean", BYTES, lambda a: {"mean": None}, ValueError, "^mean and std should be given with uint8"),
    ("mean for floats", BOTH, lambda a: {"mean": 0.5, "std": 0.5}, ValueError, "^mean and std.*uint8 images only"),
    ("two means", BYTES, lambda a: {"mean": (0.1, 0.2)}, ValueError, "^mean should have one number for each of the 3"),
    ("mean a tensor", BYTES, lambda a: {"mean": torch.ones(3)}, TypeError, "^mean should be a number.*tolist"),
    ("mean of words", BYTES, lambda a: {"mean": ("a", "b", "c")}, TypeError, "^mean should be a number or a sequence"),
    ("std zero", BYTES, lambda a: {"std": 0.0}, ValueError, "^std should be positive"),
    ("patch size", BOTH, lambda a: {"patch_size": 15}, ValueError, "^patch_size should divide.*32.*48"),
    ("patch size 0", BOTH, lambda a: {"patch_size": 0}, ValueError, "^patch_size should divide"),
    ("patch size float", BOTH, lambda a: {"patch_size": 16.0}, TypeError, "^patch_size should be an int"),
    ("weight a tensor", BOTH, lambda a: {"mae_weight": torch.ones(())}, TypeError, "^mae_weight should be a number"),
    ("weight a word", BOTH, lambda a: {"distill_weight": "one"}, TypeError, "^distill_weight should be a number"),
    ("reduction", BOTH, lambda a: {"distill_reduction": "none"}, ValueError, "^distill_reduction should be 'sum' or"),
    ("backend", BOTH, lambda a: {"backend": "cuda"}, ValueError, "^backend should be one of auto, reference"),
]


@pytest.mark.parametrize(("case", "change", "error", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(
    case: Case,
    change: Callable[[Change], Change],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ROW.backends:
        monkeypatch.setitem(ROW.backends, name, Backend(lambda _: pytest.fail("a backend was called")))
    arguments = build(case)
    with pytest.raises(error, match=message):
        mae_distill_loss(**{**arguments, **change(arguments)})


def test_a_patch_of_one_value_has_no_variance() -> None:
    pred, images, mask = torch.zeros(1, 4, 1), torch.zeros(1, 1, 2, 2), torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"^norm_pix should be False"):
        mae_distill_loss(pred, images, mask, patch_size=1)
    assert mae_distill_loss(pred, images, mask, patch_size=1, norm_pix=False).loss.item() == 0.0


def test_every_argument_is_checked_before_the_backend_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "evaluate", lambda *_: pytest.fail("a backend was looked for"))
    with pytest.raises(ValueError, match=r"^patch_size"):
        mae_distill_loss(**{**build(BOTH), "patch_size": 7}, backend="native")
