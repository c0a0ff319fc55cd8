"""Which of a folder's data files belong to which split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdfast.data.items import SPLITS, Source, split_of_file


def files_by_split(root: Path, files: Sequence[Path], source: Source) -> dict[str, list[tuple[Path, str]]]:
    """The files of each split and their names in messages, splits in their usual order.

    Files whose name (or folder) says train, val or test are these splits, and others beside them are not used; where no
    name says so, everything is train. So is `root` when it is itself the only file.

    Args:
        root: what was opened.
        files: at least one, all below `root`, or `root` itself.
        source: gets the warnings.
    """
    if not root.is_dir():
        return {"train": [(root, root.name)]}
    names = [file.relative_to(root).as_posix() for file in files]
    splits = [split_of_file(name) for name in names]
    if not any(splits):
        splits = ["train"] * len(files)
    elif unused := [name for name, split in zip(names, splits, strict=True) if split is None]:
        source.warnings.append(f"Files that name no split and are not used: {len(unused)} (the first: {unused[0]}).")
    found = list(zip(splits, files, names, strict=True))
    return {split: [(file, name) for part, file, name in found if part == split] for split in SPLITS if split in splits}
