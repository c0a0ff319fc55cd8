"""Images or texts in folders (a class per sub-folder, or flat and unlabelled), and lists of images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sdfast.data.columns import choose_names
from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import SPLITS, Item, Raw, Source, file_reader
from sdfast.data.lines import suffix_of
from sdfast.data.modality import IMAGES, LABEL_COLUMN, TEXTS, Modality, counted
from sdfast.data.records import Notes, Rows, split_name
from sdfast.data.table import is_table, read_header, read_table
from sdfast.data.text_files import document_reader, is_text_file, read_json_lines
from sdfast.errors import UserError
from sdfast.regular import is_there, refuse

_IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
_METADATA = "metadata.csv"
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # a drive, as C:\, has one letter
LOOKED_AT = 100  # rows by which names that are no files are told from files that are missing
_MOST_FILES = 100_000
_SLASHES = "File names with backslashes, which are read as slashes"


@dataclass
class _Found:
    """What the walk met: the items of one split by name and label, and what is none; whether a table listed them.

    Where a table listed them and has a column of `data.group`, `groups` is what it says of each.
    """

    items: list[tuple[str, str | None]] = field(default_factory=list)
    groups: list[object] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    listed: bool = False


def open_folder(
    root: Path,
    options: DataConfig,
    modality: Modality,
    check: Callable[[Path, Iterable[str]], object] = lambda root, classes: None,
) -> Source:
    """Open a folder of images, or of texts with one document per file.

    * `train/`, `test/` and `val/` (or `training/`, `validation/`, `dev/`, ...) are splits when `train/` is there, or
      when there is no other folder; without them everything is train.
    * In a split, each sub-folder is a class and its items are found at any depth. Items beside class folders, and
      those of a folder without sub-folders, have no label.
    * Of images, a `metadata.csv` with a label column decides instead: it names the files, relative to itself, and their
      labels. Beside several sub-folders it does so only when its columns are called as documented.
    * Links are followed, also out of the folder: people keep data sets as folders of links. What a link leads to has to
      be a folder or a regular file.
    * `check` is asked about the folders of classes, where there are no splits.
    * Arrays (.npy) and DICOM files (.dcm) are images where there is no other image, and passed over beside others.
    * Hidden files and what file managers leave behind are passed over; files of other kinds are counted.

    Raises:
        UserError: no item at all, two folders for one split, a class of test that train lacks, or splits one level too
            deep.
    """
    if _lists_labels(root / _METADATA, options, modality):
        return open_list(root / _METADATA, options, "image folder", root.name)
    folders = _sub_folders(root)
    splits = _split_folders(root, folders)
    if modality is IMAGES and not splits:
        check(root, folders)
    for suffixes in (modality.suffixes, modality.rarer_suffixes):
        found = {
            split: _read_split(root, directory, options, modality, suffixes)
            for split, directory in (splits or {"train": root}).items()
        }
        if any(entry.items for entry in found.values()):
            break
    others = [name for entry in found.values() for name in entry.others]
    found = {split: entry for split, entry in found.items() if entry.items}
    if not found:
        ignored = f" ({len(others)} other files, the first: {others[0]})" if others else ""
        raise UserError(
            f"no {modality.plural} in {root}{ignored}; {modality.a_folder} holds "
            f"{', '.join(sorted(modality.suffixes | modality.rarer_suffixes))} files"
            f"{_of_the_other_kind(others, modality)}."
        )
    plural = modality.plural
    beside = [entry.name for entry in sorted(root.iterdir()) if entry.suffix.lower() in suffixes]
    met = {
        f"Files in {root.name} that are not {plural} and were passed over": others,
        f"Class folders without {plural}, which are no classes": [name for f in found.values() for name in f.empty],
        "Folders beside the splits that are not used": [name for name in folders if splits and not split_name(name)],
        f"{plural.capitalize()} beside the splits that are not used": beside if splits else [],
    }
    source = Source(root.name, f"{modality.content} folder", None, {}, modality=modality)
    source.warnings += [counted(what, names) for what, names in met.items() if names]
    for split, directory in splits.items():
        if split not in found:
            source.warnings.append(f"{directory.name}/ holds no {plural}, so there is no {split} split.")
    for entry in found.values():
        entry.notes.add_to(source)
    read = partial(document_reader, encoding=options.encoding) if modality is TEXTS else file_reader
    if not all(entry.listed for entry in found.values()):  # a folder's name is a class, whatever it is
        options = options.model_copy(update={"na_labels": "class"})
    rows = Rows()
    for split in (split for split in SPLITS if split in found):
        files = [(name, root / name) for name, _ in found[split].items]
        without = options.label_key == NO_COLUMN
        labels = [None if without else label for _, label in found[split].items]
        rows.add(split, labels, partial(_items, files, read), groups=found[split].groups or None)
    return rows.fill(source, options, options.unseen)


def _items(files: Sequence[tuple[str, Path]], read: Callable[[Path], Callable[[], Raw]]) -> Iterator[Item]:
    """Those of files, each with the item's name."""
    return (Item(name, None, read(path)) for name, path in files)


def _of_the_other_kind(others: list[str], modality: Modality) -> str:
    """The end of a sentence, when the files are of the kind that another model takes."""
    if modality is TEXTS:
        pictures = any(os.path.splitext(name)[1].lower() in IMAGES.suffixes for name in others)
        return f"; {modality.otherwise}" if pictures else ""
    if not any(is_text_file(Path(name)) for name in others):
        return ""
    table = next((name for name in others if is_list(Path(name))), None)
    passed = f"a list of images is passed itself (--data .../{table}), and " if table else ""
    return f"; {passed}{IMAGES.otherwise}"


def is_list(path: Path) -> bool:
    """Whether the suffix (before .gz) is that of a table or of JSON lines, which may list images."""
    return is_table(path) or suffix_of(path) in ("jsonl", "ndjson", "json")


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _IGNORED


def _sub_folders(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and _visible(entry.name))


def _split_folders(root: Path, folders: list[str]) -> dict[str, Path]:
    named = [(split_name(name), name) for name in folders]
    recognised = {split for split, _ in named}
    if "train" not in recognised and (not folders or None in recognised):
        return {}
    if None in recognised and len(recognised) == 2 and "train" not in map(str.lower, folders):
        return {}  # classes, of which one is called "training"
    splits: dict[str, Path] = {}
    for split, name in named:
        if split is not None and splits.setdefault(split, root / name).name != name:
            raise UserError(
                f"{root} holds {splits[split].name}/ and {name}/, which are both {split}; keep one of them."
            )
    return splits


def _lists_labels(table: Path, options: DataConfig, modality: Modality) -> bool:
    if modality is not IMAGES or not table.is_file():
        return False
    header, _ = read_header(table, options, IMAGES)
    if options.image_key is None and len(_sub_folders(table.parent)) > 1:
        keys = options.label_key if isinstance(options.label_key, tuple) else (options.label_key or LABEL_COLUMN,)
        return {IMAGES.column, *keys} <= set(header)
    content, labels = choose_names(header, options, IMAGES, str(table))
    return content is not None and bool(labels)


def _read_split(
    root: Path, directory: Path, options: DataConfig, modality: Modality, suffixes: frozenset[str]
) -> _Found:
    found = _Found()
    prefix = "" if directory == root else f"{directory.name}/"
    if _lists_labels(directory / _METADATA, options, modality):
        table = directory / _METADATA
        found.listed = True
        rows = list(read_table(table, options, found.notes, IMAGES))
        found.items = [
            (prefix + image_file(row.content, table.parent, f"{table} line {row.line}", found.notes), row.label)
            for row in rows
        ]
        found.groups = [row.group for row in rows if found.notes.group is not None]
        return found
    loose = sorted(entry.name for entry in directory.iterdir() if not entry.is_dir() and _visible(entry.name))
    inside: dict[str | None, list[str]] = {None: loose}
    for folder in _sub_folders(directory):
        inner = next((name for name in _sub_folders(directory / folder) if split_name(name) == "train"), None)
        if inner is not None and options.label_key != NO_COLUMN:  # else no folder is a class
            raise UserError(
                f"{directory / folder} holds a folder {inner}/, as a whole data set does: "
                f"pass --data {directory / folder}."
            )
        inside[folder] = _walk(directory, folder)
    for label, names in inside.items():
        items = [name for name in names if os.path.splitext(name)[1].lower() in suffixes]
        found.items += [(prefix + name, label) for name in items]
        found.others += [prefix + name for name in names if os.path.splitext(name)[1].lower() not in suffixes]
        if label is not None and not items:
            found.empty.append(prefix + label)
    found.items.sort()
    return found


def _walk(directory: Path, folder: str) -> list[str]:
    """Names of the visible files below `directory/folder`, relative to `directory`; links are followed, loops cut.

    Raises:
        OSError: a folder that cannot be listed, which `os.walk` by itself takes for empty.
    """
    names: list[str] = []
    seen: set[str] = set()
    for where, folders, files in os.walk(directory / folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if _visible(name))
        inside = Path(where).relative_to(directory).as_posix()
        names += [f"{inside}/{name}" for name in files if _visible(name)]
    return sorted(names)


def open_list(path: Path, options: DataConfig, kind: str | None = None, name: str | None = None) -> Source:
    """Open a .csv or .tsv file, or JSON lines, that list images.

    A table's header, or each object, has `file_name` and, for labels, `label` (or what `image_key` and `label_key` say,
    or another usual name). File names are relative to the file; they may lead out of its folder, as the file is the
    user's own. A column of splits divides the rows (see `Rows.fill`). Without one, when every name begins with
    `train/`, `val/` or `test/` (or another name of these splits), they are the splits; else everything is train. Cells
    are separated by commas, semicolons, tabs or bars. The source is of this kind and name, or else of the file's.

    Raises:
        UserError: no such column, no rows, web addresses, a class of test that train lacks, or not a text table.
    """
    notes = Notes()
    read = read_table if is_table(path) else read_json_lines
    rows = [
        (image_file(row.content, path.parent, f"{path} line {row.line}", notes), row)
        for row in read(path, options, notes, IMAGES)
    ]
    if not rows:
        raise UserError(f"{path} lists no images.")
    check_first_names([(file, f"{path} line {row.line}") for file, row in rows[:LOOKED_AT]], path.parent)
    parts = [split_name(file.split("/")[0]) if "/" in file else None for file, _ in rows]
    splits = [part or "train" for part in parts] if None not in parts else ["train"] * len(rows)
    found, folder = Rows(column=notes.split, label_columns=notes.labels), path.parent
    for split in (split for split in SPLITS if split in splits):
        own = [row for row, part in zip(rows, splits, strict=True) if part == split]
        items = partial(_items, [(portable(file, folder), folder / file) for file, _ in own], file_reader)
        groups = None if notes.group is None else [row.group for _, row in own]
        found.add(split, [row.label for _, row in own], items, [row.split for _, row in own], groups)
    source = Source(name or path.name, kind or ("csv" if is_table(path) else "jsonl"), None, {})
    notes.add_to(source)
    return found.fill(source, options, unseen=None)


def image_file(name: str, folder: Path, where: str, notes: Notes) -> str:
    """The name of a row's file, relative to the folder of the list or absolute.

    A backslash is a slash where no file has the name with it and one has the name with slashes.

    Args:
        name: as written.
        folder: of the list.
        where: the row is, for sentences.
        notes: count backslashes.

    Raises:
        UserError: a web address.
    """
    if address := _ADDRESS.match(name):
        where = f"{where} names {name[:80]}"
        if address[1].lower() == "file":
            raise UserError(f"{where}: write the path alone, without file://.")
        raise UserError(f"{where}, which is an address and no file: download the images, and name the files.")
    if "\\" in name and not is_there(folder / name):
        slashes = name.replace("\\", "/")
        if is_there(folder / slashes):
            notes.count(_SLASHES, name)
            return slashes
    return name


def check_first_names(names: list[tuple[str, str]], folder: Path) -> None:
    """Say what is amiss where no first row names a file, but one is called so with a suffix, capitals or a folder.

    Args:
        names: of files, each with where it stands.
        folder: that they are relative to.

    Raises:
        UserError: that is so.
    """
    if any(is_there(folder / name) for name, _ in names):
        return
    wanted = {_stem(name): (name, where) for name, where in reversed(names)}
    looked_at = 0
    for inside, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if (found := wanted.get(_stem(file))) and Path(file).suffix.lower() in IMAGES.suffixes:
                there = (Path(inside) / file).relative_to(folder).as_posix()
                raise UserError(
                    f"{found[1]} names {found[0]!r}, which is no file, while {there} is: write names as "
                    "the files have them, with folder, suffix and capitals, relative to the table."
                )
        looked_at += len(files)
        if looked_at > _MOST_FILES:
            return


def _stem(name: str) -> str:
    """A file's name without folder, suffix and capitals."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].casefold()
    stem, suffix = os.path.splitext(last)
    return stem if suffix in IMAGES.suffixes else last


def portable(name: str, base: Path) -> str:
    """The name without an absolute part: below `base` as it is, elsewhere only its last part."""
    if not os.path.isabs(name):
        return Path(name).as_posix()
    relative = Path(os.path.relpath(name, base))
    return relative.as_posix() if ".." not in relative.parts else relative.name
