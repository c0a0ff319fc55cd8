"""From what a person types after --data to an opened source."""

from __future__ import annotations

import re
from pathlib import Path

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.errors import UserError

ACCEPTED = (
    "an image folder, a .csv list, a parquet file or folder, a saved Hugging Face data set, IDX files, "
    "or the id of a hub data set"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")


def open_source(spec: str, options: DataConfig) -> Source:
    """Open the source that `spec` names: a path that exists, or else an id of the Hugging Face hub.

    Args:
        spec: path (with or without `~`) or hub id (`owner/name`, `owner/name:configuration`).
        options: columns and bounds; `options.source` is not looked at.

    Raises:
        UserError: nothing of that name, an unknown kind of file, or content that cannot be used.
    """
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            return _open_directory(path.resolve(), options)
        if path.exists():
            return _open_file(path.absolute(), options)
    except PermissionError as error:
        raise UserError(f"{error.filename or path} cannot be read: permission denied.") from error
    if not _looks_like_hub_id(spec):
        raise UserError(f"{spec} does not exist; --data takes {ACCEPTED}.")
    from sdfast.data.hf_dataset import open_hub_dataset

    return open_hub_dataset(spec, options)


def _open_file(path: Path, options: DataConfig) -> Source:
    from sdfast.data import idx, parquet, table

    if path.suffix.lower() == ".csv":
        return table.open_csv(path, options)
    if path.suffix.lower() in (".parquet", ".pq"):
        return parquet.open_parquet(path, options)
    if idx.is_idx_images(path):
        return idx.open_idx(path, options)
    if path.name.lower().endswith(_ARCHIVES) or ".tar." in path.name.lower():
        raise UserError(f"{path} is an archive: unpack it and pass the folder.")
    raise UserError(f"{path} is a file of an unknown kind; --data takes {ACCEPTED}.")


def _open_directory(path: Path, options: DataConfig) -> Source:
    from sdfast.data import folder, hf_dataset, idx, parquet

    names = {entry.name for entry in path.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        return hf_dataset.open_saved_dataset(path, options)
    if any(idx.is_idx_images(path / name) for name in names):
        return idx.open_idx(path, options)
    if parquet.parquet_files(path):
        return parquet.open_parquet(path, options)
    return folder.open_folder(path, options)


def _looks_like_hub_id(spec: str) -> bool:
    suffix = Path(spec).suffix.lower()
    return _HUB_ID.fullmatch(spec) is not None and suffix not in (".csv", ".parquet", ".pq", ".gz", *_ARCHIVES)
