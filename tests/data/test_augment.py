"""The training transforms: what they do to pixels, and that their draws depend on the address alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdfast.modalities.images.augment import Augmentation, Placements, content_keys, draw_placements, placed
from sdfast.rng import STREAM_AUGMENT, STREAM_FLIP, STREAM_MASK, STREAM_ORDER

ROWS = torch.arange(4000)


def images(count: int, height: int = 20, width: int = 28) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def one_by_one(pixels: torch.Tensor, placements: Placements) -> torch.Tensor:
    """The plain way: cut, resize, mirror."""
    results = []
    for number, image in enumerate(pixels):
        if placements.boxes is not None:
            top, left, height, width = placements.boxes[number].tolist()
            part = image[None, :, top : top + height, left : left + width]
            image = F.interpolate(part, image.shape[-2:], mode="bilinear", align_corners=False)[0]
        results.append(image.flip(-1) if placements.flipped[number] else image)
    return torch.stack(results)


@pytest.mark.parametrize("kind", ["flip", "crop"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_it_is_cut_resize_and_mirror(kind: str, dtype: torch.dtype, error: float) -> None:
    pixels = images(64)
    placements = draw_placements(kind, 3, 1, ROWS[:64], 20, 28)  # type: ignore[arg-type]
    result = placed(pixels.to(dtype), placements)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), one_by_one(pixels, placements), atol=error, rtol=0)
    assert not torch.allclose(result.double(), pixels, atol=0.1)


def test_flips_are_exact_and_half() -> None:
    placements = draw_placements("flip", 3, 1, ROWS, 20, 28)
    assert placements.boxes is None and abs(float(placements.flipped.double().mean()) - 0.5) < 0.03
    pixels = images(len(ROWS[:50]))
    result = placed(pixels, draw_placements("flip", 3, 1, ROWS[:50], 20, 28))
    for number, flipped in enumerate(placements.flipped[:50]):
        assert torch.equal(result[number], pixels[number].flip(-1) if flipped else pixels[number])


def test_parts_have_the_published_distribution() -> None:
    size = 224
    boxes = draw_placements("crop", 0, 0, ROWS, size, size).boxes
    assert boxes is not None
    top, left, height, width = boxes.double().unbind(dim=1)
    assert int(boxes.min()) >= 0 and float((top + height).max()) <= size and float((left + width).max()) <= size
    area, ratio = height * width / size**2, width / height
    assert 0.195 < float(area.min()) < 0.22 and 0.95 < float(area.max()) <= 1
    assert 0.74 < float(ratio.min()) < 0.77 and 1.3 < float(ratio.max()) < 1.35
    # Uniform in 0.2 .. exp(-|log ratio|): what is larger does not fit and is drawn again. The mean is 0.1036 / 0.1925.
    assert abs(float(area.mean()) - 0.538) < 0.015 and abs(float(ratio.log().mean())) < 0.02
    down, across = (top / (size - height).clamp_min(1), left / (size - width).clamp_min(1))
    assert abs(float(across[width < size].mean()) - 0.5) < 0.03 and abs(float(np.corrcoef(down, across)[0, 1])) < 0.1


@pytest.mark.parametrize(("height", "width", "box"), [(8, 100, (0, 44, 8, 11)), (100, 8, (44, 0, 11, 8))])
def test_where_nothing_fits_it_is_the_largest_part_in_the_middle(height: int, width: int, box: tuple[int, ...]) -> None:
    boxes = draw_placements("crop", 0, 0, ROWS[:300], height, width).boxes
    assert boxes is not None and list(box) in boxes.tolist()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()


def test_draws_depend_on_seed_row_and_epoch_alone() -> None:
    def drawn(seed: int, epoch: int | torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        placements = draw_placements("crop", seed, epoch, rows, 224, 224)
        assert placements.boxes is not None
        return torch.cat((placements.boxes, placements.flipped[:, None].long()), dim=1)

    whole = drawn(5, 2, ROWS)
    chosen = torch.tensor([17, 3, 1999, 3])
    assert torch.equal(drawn(5, 2, chosen), whole[chosen])
    assert torch.equal(drawn(5, torch.tensor([2, 0, 2, 1]), chosen)[[0, 2]], whole[chosen[[0, 2]]])
    for other in (drawn(6, 2, ROWS), drawn(5, 3, ROWS), whole.roll(1, dims=0)):
        assert float((other == whole).all(dim=1).double().mean()) < 0.01
    assert len({STREAM_AUGMENT, STREAM_FLIP, STREAM_MASK, STREAM_ORDER}) == 4


def test_views_come_again_and_equal_images_share_them() -> None:
    digests = np.random.default_rng(0).integers(0, 256, (6, 32), dtype=np.uint8)
    digests[4] = digests[1]
    augment = Augmentation("crop", 7, views=3, keys=content_keys(digests))
    pixels, rows = images(1).expand(6, -1, -1, -1), torch.arange(6)
    first = [augment(pixels, rows, epoch) for epoch in range(7)]
    for epoch, result in enumerate(first):
        assert torch.equal(result, first[epoch % 3])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    assert torch.equal(first[0][4], first[0][1]) and not torch.equal(first[0][4], first[0][2])
    anew = Augmentation("crop", 7)
    assert not torch.equal(anew(pixels, rows, 0), anew(pixels, rows, 3))
    assert not torch.equal(anew(pixels, rows, 0)[4], anew(pixels, rows, 0)[1])
