"""The pack: a source decoded once into uint8 rows on the disk, with a digest, a label and a name per row.

A pack is a directory: `<split>-images.npy` ([n, H, W, C] uint8), `<split>-labels.npy` ([n] int64, -1 = no label; absent
when no row has one), `<split>-digests.npy` ([n, 32] uint8), `<split>-names.json` and, written last, `manifest.json`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS
from sdfast.data.parallel import available_threads, ordered_map
from sdfast.data.rows import stratified_rows
from sdfast.data.transform import Transform
from sdfast.durable import read_json, recover_directory, sha256_file, staged_directory
from sdfast.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
_NOT_IN_PACK = {"source", "image_size", "channels", "limit", "limit_seed", "text_key", "max_length", "token_budget"}


class PackSplit:
    """The rows of one split.

    Attributes:
        images: np.memmap, [n, H, W, C] uint8, read-only.
        labels: [n] int64, -1 where a row has no label; None when no row has one.
        digests: [n, 32] uint8, SHA-256 of the row's shape and bytes.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]]) -> None:
        self._names_path = directory / files["names"]["file"]
        self.images: NDArray[np.uint8] = np.load(directory / files["images"]["file"], mmap_mode="r")
        self.digests: NDArray[np.uint8] = np.load(directory / files["digests"]["file"])
        self.labels: NDArray[np.int64] | None = (
            np.load(directory / files["labels"]["file"]) if "labels" in files else None
        )

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def names(self) -> list[str]:
        """Each row's name in the source."""
        return list(json.loads(self._names_path.read_text(encoding="utf-8")))

    def limited(self, limit: int | None, seed: int) -> NDArray[np.int64]:
        """`limit` of the rows: stratified by label, seeded, nested (see `stratified_rows`); None gives all.

        Returns:
            [min(limit, n)] int64, ascending.
        """
        return stratified_rows(self.digests, self.labels, limit, seed)


class Pack:
    """An open pack.

    Attributes:
        directory: where it lies.
        manifest: what `manifest.json` holds.
        transform: how the rows were made.
        class_names: the name of each class number, or None without labels.
        fingerprint: SHA-256 over transform, class names, and every row's content and label; independent of paths, names
            and library versions.
        splits: "train", "val", "test", those that exist.
        warnings: sentences for a person, as they were given when the pack was built.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self.transform = Transform.from_json(manifest["transform"])
        self.class_names: list[str] | None = manifest["class_names"]
        self.fingerprint: str = manifest["fingerprint"]
        self.warnings: list[str] = manifest["warnings"]
        self.splits = {
            split: PackSplit(directory, manifest["splits"][split]["files"])
            for split in SPLITS
            if split in manifest["splits"]
        }

    def split(self, name: str) -> PackSplit:
        """The split of that name.

        Raises:
            UserError: when the source had none.
        """
        if name not in self.splits:
            raise UserError(f"{self.manifest['source']['name']} has no {name} split; it has {', '.join(self.splits)}.")
        return self.splits[name]


def open_pack(directory: Path, verify: bool = True) -> Pack:
    """Open a pack.

    Args:
        directory: of the pack.
        verify: compare every file's size and SHA-256 with the manifest.

    Raises:
        UserError: no pack there, one of another format version, or a file that differs from the manifest.
    """
    directory = Path(directory)
    recover_directory(directory)
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or not manifest.keys() >= {"format", "fingerprint", "splits"}:
        raise UserError(f"{directory} holds no pack; run the stage again to build it.")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{directory} is a pack of format {manifest['format']}, not {FORMAT}; delete it to build it anew."
        )
    files = [entry for split in manifest["splits"].values() for entry in split["files"].values()]
    for entry in files:
        path = directory / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise UserError(_damaged(path))
    if verify:
        paths = [directory / entry["file"] for entry in files]
        digests = ordered_map(sha256_file, paths, min(available_threads(), len(paths)))
        for path, entry, digest in zip(paths, files, digests, strict=True):
            if digest != entry["sha256"]:
                raise UserError(_damaged(path))
    return Pack(directory, manifest)


def prepare_pack(
    source_spec: str,
    directory: Path,
    transform: Transform,
    options: DataConfig,
    notify: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Pack:
    """The pack of a source, built when it is missing, damaged, or made from other content, transform or options.

    Whether it is up to date is decided by the bytes of the source, not by paths or times. The new pack is staged beside
    the old one, so that a killed process leaves the old pack or none.

    Args:
        source_spec: what `open_source` takes.
        directory: of the pack.
        transform: from image to row.
        options: the `data` section; `source`, `image_size`, `channels`, `limit` and `limit_seed` do not matter here.
        notify: called with each sentence that a person should read, while a pack is built.
        progress: called with (images done, images in all).
        threads: that read and decode; by default, those that the process may use, at most 16.

    Raises:
        UserError: see `open_source`; too many broken files, no usable image in a split, images that train shares with
            test, or a `directory` that holds something else.
        RunError: the pack cannot be written.
    """
    from sdfast.data.decode import decoding
    from sdfast.data.pack_build import PackBuilder
    from sdfast.data.sources import open_source

    directory = Path(directory)
    threads = threads or available_threads()
    source = open_source(source_spec, options)
    recover_directory(directory)
    manifest = read_json(directory / MANIFEST)
    if isinstance(manifest, dict) and manifest.get("format") == FORMAT:
        same = manifest.get("transform") == transform.to_json() and manifest.get("options") == build_options(options)
        if same and manifest["source"]["content"] == source.content_digest(threads):
            try:
                return open_pack(directory)
            except UserError as error:
                notify(f"{error} It is built again now.")
    _refuse_foreign(directory)
    with staged_directory(directory) as staging, decoding(options):
        builder = PackBuilder(source, staging, transform, options, progress or _silent, threads)
        warnings = builder.build()
    for warning in warnings:
        notify(warning)
    return open_pack(directory, verify=False)


def build_options(options: DataConfig) -> dict[str, Any]:
    """The options that decide what is in a pack, as a JSON value."""
    return options.model_dump(mode="json", exclude=_NOT_IN_PACK)


def _silent(done: int, total: int) -> None:
    pass


def _refuse_foreign(directory: Path) -> None:
    """Stop before a directory that holds other things than a pack would be replaced."""
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    endings = ("-images.npy", "-labels.npy", "-digests.npy", "-names.json")
    foreign = [name for name in names if name != MANIFEST and not name.endswith(endings)]
    if foreign or (directory.exists() and not directory.is_dir()):
        what = f"holds {foreign[0]!r}, which is no part of a pack" if foreign else "is a file"
        raise UserError(f"{directory} {what}; choose another --out.")


def _damaged(path: Path) -> str:
    return f"{path} is missing or differs from its manifest; delete {path.parent} to build the pack anew."
