"""From what a person types after --data to an opened source."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from sdfast.data import arrow, folder, idx, shard_names, shards, text_files
from sdfast.data.config import DataConfig
from sdfast.data.groups import find_groups
from sdfast.data.items import Source
from sdfast.data.modality import IMAGES, TEXTS, Modality
from sdfast.data.paper_images import check_not_above, layout_of
from sdfast.data.paper_sets import compare_with_paper
from sdfast.data.problem import REGRESSION, SEVERAL
from sdfast.data.unlabelled import join
from sdfast.errors import UserError, said, shortened
from sdfast.regular import open_regular

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_DATA_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".pq", ".gz")
_LONGEST_NAME = 300  # in a sentence
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|pipe:", re.IGNORECASE)  # a drive, as C:\, has one letter


def open_source(spec: str, options: DataConfig, modality: Modality = IMAGES) -> Source:
    """Open the source that `spec` names: a path that exists, or else an id of the Hugging Face hub.

    A path may begin with `~`, and of tar shards be a pattern (`photos-{000..012}.tar`); an id is `owner/name` or
    `owner/name:configuration`. It is searched for `modality`.
    Of the options, `source` is not looked at; the sources of `unlabelled` join it (`sdfast.data.unlabelled`).

    Raises:
        UserError: nothing of that name, an unknown kind of file, or content that cannot be used.
    """
    source = _open(spec, options, modality)
    compare_with_paper(source)
    find_groups(source, options)
    _take_as(source, options)
    if options.unlabelled:
        join(source, options.unlabelled, options, lambda other, given: _open(other, given, modality))
    return source


def _take_as(source: Source, options: DataConfig) -> None:
    """Make the labels of a source whose layout says one class a row what `options` ask for.

    Raises:
        UserError: numbers, which such a source has not.
    """
    if options.problem_type in (None, source.problem) or source.class_names is None:
        return
    if options.problem_type == REGRESSION:
        raise UserError(
            f"{source.name} has classes, and data.problem_type=regression needs numbers: give a table with a column of "
            "them, and name it by data.label_key."
        )
    source.problem = SEVERAL
    for items in source.splits.values():
        items.labels = [label if label is None or isinstance(label, tuple) else (label,) for label in items.labels]


def _open(spec: str, options: DataConfig, modality: Modality) -> Source:
    try:
        path = Path(spec).expanduser()
    except RuntimeError as error:
        raise UserError(f"{_printable(spec)}: there is no such user's home; write the whole path.") from error
    try:
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a name that no file can have
            mode = None
        if mode is not None and stat.S_ISDIR(mode):
            return _open_directory(path.resolve(), options, modality)
        if mode is not None:
            return _open_file(path.absolute(), options, modality)
        if shard_names.is_pattern(spec) and not _ADDRESS.match(spec):
            return shards.open_pattern(spec, options, modality)
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(path)
        raise UserError(f"{_printable(name)} cannot be read: {said(error)}.") from error
    if _ADDRESS.match(spec):
        raise UserError(f"{_printable(spec)} is an address: download what is there, and pass the file or folder.")
    suffix = Path(spec).suffix.lower()
    if _HUB_ID.fullmatch(spec) is None or suffix in (*_DATA_SUFFIXES, *_ARCHIVES):
        raise UserError(f"{_printable(spec)} does not exist; --data takes {modality.accepted}.")
    return arrow.open_hub_dataset(spec, options, modality)


def _printable(name: str) -> str:
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= _LONGEST_NAME else shortened(name)


def _open_file(path: Path, options: DataConfig, modality: Modality) -> Source:
    with open_regular(path):  # a pipe or a device is refused before a library waits for it
        pass
    if path.suffix.lower() in (".parquet", ".pq"):
        return arrow.open_parquet(path, options, modality)
    if modality is TEXTS and text_files.is_text_file(path):
        return text_files.open_text_files(path, [path], options)
    if modality is IMAGES and folder.is_list(path):
        return folder.open_list(path, options)
    if modality is IMAGES and idx.is_idx_images(path):
        return idx.open_idx(path, options)
    if path.suffix.lower() == shard_names.SUFFIX:
        return shards.open_shards(path.name, [path], options, modality)
    if path.name.lower().endswith(shard_names.PACKED):
        raise UserError(shard_names.refusal(path))
    if path.name.lower().endswith(_ARCHIVES) or ".tar." in path.name.lower():
        raise UserError(f"{path} is an archive: unpack it and pass the folder.")
    if modality is IMAGES and text_files.is_text_file(path):
        raise UserError(f"{path} is a file of texts, and {modality.otherwise}.")
    raise UserError(f"{path} is a file of an unknown kind; --data takes {modality.accepted}.")


def _open_directory(path: Path, options: DataConfig, modality: Modality) -> Source:
    names = {entry.name for entry in path.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        return arrow.open_saved_dataset(path, options, modality)
    if modality is IMAGES and any(idx.is_idx_images(path / name) for name in names):
        return idx.open_idx(path, options)
    if modality is IMAGES and (layout := layout_of(path)) is not None:
        return layout.open(path)
    if modality is TEXTS and names >= text_files.TWEET_EVAL:
        return text_files.open_tweet_eval(path, options)
    if modality is TEXTS and (files := text_files.text_files(path)):
        return text_files.open_text_files(path, files, options)
    if arrow.parquet_files(path):
        return arrow.open_parquet(path, options, modality)
    if files := shard_names.shard_files(path, modality):
        return shards.open_shards(path.name, files, options, modality, root=path)
    return folder.open_folder(path, options, modality, check_not_above)
