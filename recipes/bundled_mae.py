"""Make the bundled model and data: `python recipes/bundled_mae.py {crops,init,images} ...` (see recipes/README.md)."""

from __future__ import annotations

import argparse
import gzip
import io
import struct
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 28
LONGEST_SIDE = 2048
MOST_PIXELS = 50_000_000
Image.MAX_IMAGE_PIXELS = 2 * MOST_PIXELS
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 values in the IDX format (gzip when the name ends in .gz), any number of dimensions."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + np.ascontiguousarray(array).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 9, mtime=0) if path.suffix == ".gz" else data)


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped uint8 IDX file."""
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3]
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_parquet(path: Path, images: np.ndarray) -> None:
    """Write [n, H, W, 3] uint8 images as PNGs in a parquet file with one column `image`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def encoded(pixels: np.ndarray) -> dict[str, object]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return {"bytes": file.getvalue(), "path": None}

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"image": pa.array([encoded(pixels) for pixels in images], kind)}), path, row_group_size=10_000
    )


def crops_of(path: Path, count: int, seed: int) -> np.ndarray:
    """`count` random square crops of an image, [count, 28, 28, 3] uint8; fewer when it is broken or flat.

    The side lies between 28 pixels and the whole image, its logarithm leaning to the whole; transparent parts get a
    white, black or random background; half of the crops are mirrored, a fifth made grey.
    """
    random = np.random.default_rng(seed)
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                return np.zeros((0, SIDE, SIDE, 3), np.uint8)
            picture = opened.convert("RGBA")
            picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    except (OSError, Image.DecompressionBombError):
        return np.zeros((0, SIDE, SIDE, 3), np.uint8)
    if min(picture.size) < SIDE:
        return np.zeros((0, SIDE, SIDE, 3), np.uint8)
    colours = [(255, 255, 255), (0, 0, 0), tuple(int(v) for v in random.integers(0, 256, 3))]
    grounds = [Image.new("RGBA", picture.size, (*colour, 255)) for colour in colours]
    flattened = [Image.alpha_composite(ground, picture).convert("RGB") for ground in grounds]
    found = []
    for _ in range(4 * count):
        side = round(SIDE * (min(picture.size) / SIDE) ** random.random() ** 0.5)
        left = int(random.integers(0, picture.width - side + 1))
        top = int(random.integers(0, picture.height - side + 1))
        source = flattened[int(random.integers(3))]
        crop = source.resize(
            (SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + side, top + side), reducing_gap=3.0
        )
        if random.random() < 0.2:
            crop = crop.convert("L").convert("RGB")
        pixels = np.asarray(crop)
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        if pixels.std(axis=(0, 1)).max() > 12:  # a flat crop teaches nothing
            found.append(pixels)
        if len(found) == count:
            break
    return np.stack(found) if found else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def make_crops(arguments: argparse.Namespace) -> None:
    """Random crops of every picture below the given folders; each folder gives an equal share of the crops."""
    jobs = []
    for number, folder in enumerate(arguments.folders):
        paths = sorted(
            p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.is_symlink()
        )
        each = -(-arguments.count // len(arguments.folders) // len(paths))
        jobs += [(path, each, 1_000_000 * number + index) for index, path in enumerate(paths)]
        print(f"{folder}: {len(paths)} pictures, {each} crops of each")
    with ProcessPoolExecutor(arguments.workers) as pool:
        parts = list(pool.map(crops_of, *zip(*jobs, strict=True), chunksize=8))
    crops = np.concatenate(parts)
    crops = crops[np.random.default_rng(0).permutation(len(crops))][: arguments.count]
    write_parquet(Path(arguments.out), crops)
    print(f"{len(crops)} crops in {arguments.out}")


def make_init(arguments: argparse.Namespace) -> None:
    """A new ViT-MAE of the bundled size, seeded."""
    from sdfast.modalities.images.checkpoint import fresh_mae, save_mae
    from sdfast.modalities.images.model import ViTShape
    from sdfast.modalities.images.processor import ImageProcessor
    from sdfast.models.blocks import TransformerShape

    shape = ViTShape(
        image_size=(SIDE, SIDE),
        patch_size=4,
        channels=3,
        encoder=TransformerShape(width=128, depth=6, heads=4, mlp_width=512),
        decoder=TransformerShape(width=96, depth=2, heads=3, mlp_width=384),
    )
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    processor = ImageProcessor(SIDE, SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    save_mae(fresh_mae(shape, seed=0), folder, processor)


def make_images(arguments: argparse.Namespace) -> None:
    """The first images of each Fashion-MNIST split, as the bundled data."""
    for prefix, count in (("train", arguments.train), ("t10k", arguments.test)):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            values = read_idx(Path(arguments.source) / f"{prefix}-{kind}.gz")[:count]
            write_idx(Path(arguments.out) / f"{prefix}-{kind}.gz", values)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    crops = commands.add_parser("crops", help=make_crops.__doc__)
    crops.add_argument("folders", nargs="+")
    crops.add_argument("--out", required=True, help="parquet file")
    crops.add_argument("--count", type=int, default=400_000)
    crops.add_argument("--workers", type=int, default=2)
    crops.set_defaults(run=make_crops)
    init = commands.add_parser("init", help=make_init.__doc__)
    init.add_argument("--out", required=True)
    init.set_defaults(run=make_init)
    images = commands.add_parser("images", help=make_images.__doc__)
    images.add_argument("source", help="folder of the four full Fashion-MNIST .gz files")
    images.add_argument("--out", default="sdfast/bundled/fashion-mnist")
    images.add_argument("--train", type=int, default=2000)
    images.add_argument("--test", type=int, default=2000)
    images.set_defaults(run=make_images)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
