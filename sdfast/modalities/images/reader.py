"""The images of a split on the device: kept there whole where they fit, else brought batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sdfast.log import log
from sdfast.modalities.images.bands import WHITE
from sdfast.modalities.images.pack import ImageSplit
from sdfast.modalities.images.tiles import ImageTiles
from sdfast.teacher.residency import free_memory

_SHARE = 0.25  # of the device's free memory that images may take: a step needs the rest
_ROWS = 256  # copied at a time
_WHITE = {getattr(torch, name): white for name, white in WHITE.items()}


def image_reader(split: ImageSplit | ImageTiles, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The function that brings rows of a split to the device; where its pictures are cut, tiles are its rows.

    On a CPU the rows are gathered from the pack's memory map. On a GPU the whole split is loaded once when it takes at
    most a quarter of the free memory, and gathered there; else each batch goes through pinned memory.

    Returns:
        rows [B] int64, on the CPU or the device -> [B, H, W, C] on the device, in the type of the pack.
    """
    images = split.images
    if device.type == "cpu":
        return lambda rows: torch.from_numpy(images[rows.numpy()])
    if images.nbytes <= _SHARE * free_memory(device):
        if isinstance(images, np.memmap):  # a split that is in memory is one of many
            log.info("data: %.2f GB of images in the memory of %s", images.nbytes / 1e9, device)
        dtype = torch.from_numpy(np.empty(0, images.dtype)).dtype
        held = torch.int16 if dtype == torch.uint16 else dtype  # torch gathers no rows of uint16
        whole = torch.empty(images.shape, dtype=held, device=device)
        for first in range(0, len(images), _ROWS):
            some = torch.from_numpy(np.ascontiguousarray(images[first : first + _ROWS]))
            whole[first : first + _ROWS] = some.view(held)
        return lambda rows: whole[rows.to(device, non_blocking=True)].view(dtype)
    log.info("data: images are brought to %s batch by batch", device)
    return lambda rows: torch.from_numpy(images[rows.numpy()]).pin_memory().to(device, non_blocking=True)


class Normalise(nn.Module):
    """[B, H, W, C] -> [B, C, H, W] in the buffers' dtype: (x / white - mean) / std, on the images' device.

    White is 65535 in uint16, 1 in float16 and 255 in uint8 and every other type.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scale and normalise."""
        dtype, white = self.mean.dtype, _WHITE.get(images.dtype, 255)
        wide = dtype if white == 255 or dtype.itemsize > 2 else torch.float32  # 65535 is beyond half precision
        pixels = (images.permute(0, 3, 1, 2).to(wide) / white).to(dtype)
        return ((pixels - self.mean) / self.std).contiguous()
