"""Images as a person sees them: masked and filled in by a model, and features after each block."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.modalities.images.bands import WHITE
from sdfast.modalities.images.masking import PatchMask, patch_mask
from sdfast.modalities.images.model import MaskedAutoencoder, ViTEncoder, ViTShape
from sdfast.modalities.images.reader import Normalise
from sdfast.models.blocks import Block, Rows, settled
from sdfast.ops.attention import Groups
from sdfast.ops.mae_distill.reference import NORM_PIX_EPS, patchify

_LARGEST, _SMALL = 224, 96  # pixels of a side: pictures above are made smaller, and those up to there kept exactly
_PERCENTILES = (1.0, 99.0)  # of a band that is stretched
_GREY = 0.5  # of a hidden patch
_BATCH = 64


@dataclass(frozen=True)
class Look:
    """How a row of a pack becomes a picture that a screen can show.

    Attributes:
        bands: one, which is shown grey, or three, which are red, green and blue.
        low, high: [bands]: what becomes black and white, where a row's white is 1.
        grey: the mean of the three is shown.
    """

    bands: tuple[int, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    grey: bool = False

    @classmethod
    def of(cls, row: NDArray[Any]) -> Look:
        """That of a row [H, W, C].

        Grey and RGB of 8 bits are shown as they are; RGB whose bands are all equal, a grey picture, stays grey whatever
        a model puts in. Of others the first three bands are shown (of two the first), each stretched to its 1st and
        99th percentile.
        """
        channels = row.shape[2]
        bands = (0, 1, 2) if channels >= 3 else (0,)
        if row.dtype == np.uint8 and channels in (1, 3):
            grey = channels == 3 and bool((row == row[:, :, :1]).all())
            return cls(bands, np.zeros(len(bands), np.float32), np.ones(len(bands), np.float32), grey)
        low, high = np.percentile(shares(row)[:, :, bands], _PERCENTILES, axis=(0, 1)).astype(np.float32)
        return cls(bands, low, np.where(high > low, high, low + 1))

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
        """[H, W, C], with white 1 -> [H, W, 1 or 3] uint8."""
        shown = (pixels[:, :, self.bands] - self.low) / (self.high - self.low)
        shown = shown.mean(axis=2, keepdims=True) if self.grey else shown
        return np.rint(255 * np.nan_to_num(shown).clip(0, 1)).astype(np.uint8)


def looks_of(channels: int) -> str:
    """What is shown of an image of so many channels, in words; nothing where that is all."""
    return {1: "", 2: "the first of 2 channels", 3: ""}.get(channels, f"the first 3 of {channels} channels, stretched")


def shares(row: NDArray[Any]) -> NDArray[np.float32]:
    """Pixels of a pack with white 1."""
    return row.astype(np.float32) / np.float32(WHITE[row.dtype.name])


def picture(row: NDArray[Any]) -> str:
    """A row of a pack, [H, W, C], as a picture: see `encoded`."""
    return encoded(Look.of(row)(shares(row)))


def encoded(pixels: NDArray[np.uint8]) -> str:
    """[H, W, 1 or 3] -> a small picture in base64: WebP, of small images without loss; PNG where PIL has no WebP."""
    from PIL import Image, features

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    largest, file = max(image.size), io.BytesIO()
    if largest > _LARGEST:
        scale = _LARGEST / largest
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if features.check("webp"):
        image.convert("RGB").save(file, "WEBP", lossless=largest <= _SMALL, quality=85)
    else:
        image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


class MaskedPictures:
    """Images of which the same patches are hidden from every model.

    Visible patches are shown as they are. A model that predicts normalised pixels (`pretrain.norm_pix`) does not say
    how bright a patch is: its prediction is given the mean and the deviation of the patch itself, as in MAE's demo.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        normalise: Normalise,
        shape: ViTShape,
        mask: tuple[int, float, Any],
        norm_pix: tuple[bool, bool],
    ) -> None:
        """Hide patches.

        Args:
            rows: [n, H, W, C] of a pack.
            normalise: from them to the model's input.
            shape: of the models.
            mask: seed, share and kind of the mask (see `patch_mask`).
            norm_pix: whether pixels are normalised by patch in this run, and for the model as given.
        """
        self.rows, self.normalise, self.shape, self.norm_pix = rows, normalise, shape, norm_pix
        seed, ratio, kind = mask
        self.mask: PatchMask = patch_mask(seed, 0, torch.arange(len(rows)), shape.patches, ratio, kind)
        self.looks = [Look.of(row) for row in rows]

    def shown(self) -> list[dict[str, Any]]:
        """The `original` and `masked` picture of each row (`encoded`), and `look` where `looks_of` says something."""
        look = looks_of(self.shape.channels)
        masked = [self._with(number, np.float32(_GREY)) for number in range(len(self.rows))]
        found = ({"original": picture(row), "masked": encoded(hid)} for row, hid in zip(self.rows, masked, strict=True))
        return [{**each, "look": look} if look else each for each in found]

    def filled(self, module: MaskedAutoencoder, given: bool) -> dict[str, Any]:
        """What a model makes of the hidden patches.

        Args:
            module: in evaluation mode.
            given: whether it is the model as given, which may predict pixels of another kind.

        Returns:
            `pictures`, see `encoded`; `error`, the mean squared error of the hidden patches as the run's loss has it;
            and `norm_pix`.
        """
        images, error = self.restored(module, given)
        return {"pictures": [encoded(each) for each in images], "error": error, "norm_pix": self.norm_pix[given]}

    def restored(self, module: MaskedAutoencoder, given: bool) -> tuple[list[NDArray[np.uint8]], float]:
        """[H, W, 1 or 3] of each row, and the error: see `filled`."""
        like = next(module.parameters())
        device = like.device
        pixels = self.normalise.to(like)(torch.from_numpy(np.ascontiguousarray(self.rows)).to(device))
        seen = self.mask.seen_on(device)
        encoded_ = module.encoder(pixels, seen.visible_ids, seen.visible_valid)
        predicted = module.decoder(encoded_, seen.visible_ids, seen.visible_valid).float()
        patches = patchify(pixels.float(), self.shape.patch_size)
        mean, deviation = patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + NORM_PIX_EPS).sqrt()
        if self.norm_pix[given]:
            predicted = predicted * deviation + mean
        wrong = predicted - patches
        if self.norm_pix[0]:
            wrong = wrong / deviation
        hidden = self.mask.mask.to(device)
        error = float(wrong.square().mean(-1)[hidden].mean())
        return [self._with(number, each) for number, each in enumerate(self._coloured(predicted))], error

    def _coloured(self, patches: Tensor) -> NDArray[np.float32]:
        """Patches [n, L, P] of the model's input as pixels [n, H, W, C] with white 1."""
        (down, across), side, channels = self.shape.grid, self.shape.patch_size, self.shape.channels
        tiles = patches.cpu().view(-1, down, across, side, side, channels).transpose(2, 3)
        pixels = tiles.reshape(-1, down * side, across * side, channels)
        std, mean = (each.cpu().float().flatten() for each in (self.normalise.std, self.normalise.mean))
        return (pixels * std + mean).numpy()

    def _with(self, number: int, filling: Any) -> NDArray[np.uint8]:
        """A row as it is shown, hidden patches filled with pixels of `filling`, whose white is 1."""
        row, look, side = self.rows[number], self.looks[number], self.shape.patch_size
        original = look(shares(row))
        if np.ndim(filling):
            there = look(filling)
        else:
            there = np.full_like(original, round(255 * float(filling)))
        hidden = self.mask.mask[number].view(*self.shape.grid).numpy().repeat(side, 0).repeat(side, 1)
        return np.where(hidden[:, :, None], there, original)


def layer_features(encoder: ViTEncoder, images: NDArray[Any], rows: Tensor, normalise: Normalise) -> tuple[Tensor, str]:
    """What stands for each image after every block.

    Args:
        encoder: in evaluation mode.
        images: [N, H, W, C] of a pack.
        rows: [n] int64 of them.
        normalise: from them to its input.

    Returns:
        [depth, n, D] float32 on the CPU, the last after the last norm; and what it is, `CLS token` or `mean of the
        patches`.
    """
    like, found = next(encoder.parameters()), []
    normalise = normalise.to(like)
    for part in rows.split(_BATCH):
        some = torch.from_numpy(images[part.numpy()]).to(like.device)
        found.append(torch.stack([each.float().cpu() for each in _each_block(encoder, normalise(some))]))
    return torch.cat(found, dim=1), "CLS token" if encoder.shape.pool == "cls" else "mean of the patches"


def _each_block(encoder: ViTEncoder, pixels: Tensor) -> Iterator[Tensor]:
    """[B, D] after each block: before the last norm, but for the last."""
    tokens = encoder.embed(pixels)
    view, last = encoder.view(tokens), len(encoder.blocks)
    rows, groups = Rows(tokens.flatten(0, 1)), Groups((view.group,))
    for depth, block in enumerate(encoder.blocks, 1):
        assert isinstance(block, Block)
        rows = block.advance(rows, groups, view.turn)
        x = settled(*rows).view_as(tokens)
        if depth == last and encoder.shape.pool in ("cls", "mean"):
            x = encoder.norm(x)
        x = encoder.select(x, "cls")
        yield encoder.norm(x) if depth == last and encoder.shape.pool == "mean_then_norm" else x


def norm_pix_of(run: bool, own: Mapping[str, Any], fresh: bool) -> tuple[bool, bool]:
    """Whether pixels are normalised by patch in a run, and for the model as given, by how that was trained."""
    return run, run if fresh else bool(own.get("norm_pix", run))
