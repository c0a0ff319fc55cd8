"""Tar shards as webdataset writes them: the members of a shard that share a key are one sample.

A member's key is its name up to the first dot of the last part; what follows the dot is its kind: `jpg` or `png` an
image, `txt` a text, `cls` a label, `json` an object with further fields. Shards are read in place: of one at a time the
places of its samples are in memory, of all of them the labels alone, and of the contents none.
"""

from __future__ import annotations

import itertools
import json
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from sdfast.data.columns import column_notes, find_group_column, find_split_column, fitting_names
from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import LARGEST_FILE, Item, Source
from sdfast.data.labels import Value
from sdfast.data.lines import LONGEST_LINE, readable
from sdfast.data.modality import IMAGES, LABEL_COLUMN, TEXTS, USUAL_LABEL_COLUMNS, Modality, counted, listed
from sdfast.data.records import USUAL_SPLIT_COLUMNS, Notes, Rows, files_by_split
from sdfast.data.several import Cells
from sdfast.data.shard_names import files_of_pattern, split_of_shard
from sdfast.data.tar import Member, index_of, read_member
from sdfast.data.text_files import in_utf8
from sdfast.errors import UserError
from sdfast.portable import read_at
from sdfast.regular import open_regular

_LABEL, _TEXT, _FIELDS = "cls", "txt", "json"  # members, as webdataset calls them
_LONGEST_LABEL = 1 << 16  # bytes
_MANY_FIELDS = 1000  # names of fields that are kept


@dataclass(frozen=True)
class _Content:
    """Which member is a sample's content.

    Attributes:
        kinds: of the members that are; a sample has one of them at most.
        field: of the JSON member, which holds the content; None where a member itself is the content.
    """

    kinds: frozenset[str]
    field: str | None = None


def open_pattern(pattern: str, options: DataConfig, modality: Modality) -> Source:
    """Open the shards that a pattern stands for; their names say the splits, where they name several.

    Raises:
        UserError: see `files_of_pattern` and `open_shards`.
    """
    files = files_of_pattern(pattern, modality)
    root = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(root).as_posix() for file in files]
    whole = len({split_of_shard(name) for name in names}) == 1  # what was named so is one part, as a single file is
    name = pattern.rpartition("/")[2]
    return open_shards(name, files, options, modality, root=root, whole=whole)


def open_shards(
    name: str,
    files: Sequence[Path],
    options: DataConfig,
    modality: Modality,
    root: Path | None = None,
    whole: bool = False,
) -> Source:
    """Open shards; each is read once for its labels.

    * A sample's image is its member of a picture's suffix, its text `txt` or else a field of its `json` member. One of
      another name, as `seg.png`, is it where `image_key` or `text_key` says so (several: `jpg;png`).
    * Its label is `cls`, or another member or a field of `json` of a usual name, or what `label_key` says.
    * Where the shards' names (or folders) say train, val or test these are the splits; else everything is train, or
      what a field of `json` says (see `Rows.fill`).

    Args:
        name: of the source.
        files: at least one.
        options: the `data` section.
        modality: what is looked for.
        root: the folder that names in messages are relative to; None where a single file was named.
        whole: everything is train, whatever the names say.

    Raises:
        UserError: a shard that is cut or damaged, no sample with such a content, several that may be it, no member or
            field of the name that a key gives, or labels that are none.
    """
    source = Source(name, "tar shards", None, {}, modality=modality)
    if whole or root is None:
        found = {"train": [(file, os.path.relpath(file, root or file.parent)) for file in files]}
    else:
        found = files_by_split(root, files, source, split_of_shard)
    met = _Met(options)
    surveys = {shard: met.survey(file, shard) for each in found.values() for file, shard in each}
    content = _content(met, options, modality, name)
    chosen = _labels(met, content, options, name)
    split = find_split_column(met.fields, options, name, (content.field, *chosen))
    group = find_group_column([*met.fields, *met.kinds], options, name, alike=False)
    notes = Notes(split)
    rows, left_out = (
        Rows(column=split, label_columns=chosen),
        f"Samples of {name} without {modality.an_item}, which are left out",
    )
    folders: set[str] = set()
    for part, each in found.items():
        for file, shard in each:
            survey = surveys.pop(shard)
            kept = survey.with_one(content.kinds, shard, modality)
            for key in itertools.compress(survey.keys, map(operator.not_, kept)):
                notes.count(left_out, f"{shard}:{key}")
            folders.update(key.rpartition("/")[0] for key in itertools.compress(survey.keys, kept))
            labels = survey.labels(chosen, kept, isinstance(options.label_key, tuple))
            splits, groups = (None if column is None else survey.column(column, kept) for column in (split, group))
            items = partial(_items, file, shard, content, modality, options.encoding)
            rows.add(part, labels, items, splits, groups)
    if not chosen and options.label_key is None and len(folders) > 1:
        first, second = sorted(folders)[:2]
        more = ", ..." if len(folders) > 2 else ""
        raise UserError(
            f"{name} holds {modality.plural} in {len(folders):,} folders ({first}/, {second}/{more}) and no labels "
            "beside them, as an archive of class folders does and shards do not: unpack it and pass the folder, or set "
            f"data.label_key={NO_COLUMN} to take all without labels."
        )
    _say(met, content, chosen, split, options, modality, notes)
    notes.add_to(source)
    for what, names in {
        f"Members of {name} without a suffix, which are not used": met.keyless,
        f"Links, sparse files and devices in {name}, which are not read": met.odd,
    }.items():
        if names:
            source.warnings.append(counted(what, names))
    return rows.fill(source, options, options.unseen, where=name)


@dataclass
class _Survey:
    """What is kept of a shard until the labels are chosen: of each sample its key, its kinds and what may be its label.

    Attributes:
        columns: by kind or field; None where a sample has none.
    """

    keys: list[str] = field(default_factory=list)
    kinds: list[frozenset[str]] = field(default_factory=list)
    columns: dict[str, list[Value]] = field(default_factory=dict)

    def with_one(self, kinds: frozenset[str], shard: str, modality: Modality) -> list[bool]:
        """Whether each sample has a member of some kinds.

        Raises:
            UserError: one has several.
        """
        found = [own & kinds for own in self.kinds]
        several = next((at for at, each in enumerate(found) if len(each) > 1), None)
        if several is not None:
            raise UserError(
                f"{shard}: {self.keys[several]} has several {modality.plural} ({listed(sorted(found[several]))}); "
                f"choose one by data.{modality.key}=..."
            )
        return list(map(bool, found))

    def column(self, name: str | None, kept: Sequence[bool]) -> list[Value]:
        """The values of one kind or field for the samples that are kept, in order."""
        values = self.columns.get(name, []) if name is not None else []
        return [values[at] if at < len(values) else None for at, keep in enumerate(kept) if keep]

    def labels(self, names: Sequence[str], kept: Sequence[bool], several: bool) -> list[Value]:
        """The labels of the samples that are kept: in the one of `names`, or what each of `several` says together."""
        if several:
            return list(map(Cells, zip(*(self.column(name, kept) for name in names), strict=True)))
        return self.column(next(iter(names), None), kept)

    def put(self, name: str, value: Value) -> None:
        """Give the last sample a value."""
        column = self.columns.setdefault(name, [])
        column.extend([None] * (len(self.keys) - 1 - len(column)))
        column.append(value)


class _Met:
    """What the shards of a source hold, all together.

    Attributes:
        kinds: members of each kind.
        fields: names of the fields of JSON members, in the order in which they were met.
        keyless, odd: see `Index`, with the shards' names before them.
    """

    def __init__(self, options: DataConfig) -> None:
        self.kinds: Counter[str] = Counter()
        self._fields: dict[str, None] = {}
        self.keyless: list[str] = []
        self.odd: list[str] = []
        self._options = options
        self._same: dict[Any, Any] = {}  # equal values are kept once
        self._wanted: dict[str, bool] = {}

    @property
    def fields(self) -> list[str]:
        return list(self._fields)

    def survey(self, path: Path, shard: str) -> _Survey:
        """Read what may be labels and splits of one shard.

        Raises:
            UserError: see `index_of`; a label that is not UTF-8, or a JSON member that is none.
        """
        survey = _Survey()
        with readable(path), open_regular(path) as file:
            index = index_of(path, file)
            for key, sample in index.samples.items():
                survey.keys.append(key)
                survey.kinds.append(self._once(frozenset(sample)))
                self.kinds.update(sample.keys())
                for kind, member in sample.items():
                    where = f"{path}: {key}.{kind}"
                    if kind == _FIELDS:
                        for name, value in _object(file, member, where).items():
                            if len(self._fields) < _MANY_FIELDS:
                                self._fields.setdefault(name)
                            if self._may_be_wanted(name):
                                self._fields.setdefault(name)
                                survey.put(name, self._once(value))
                    elif self._may_be_wanted(kind):
                        survey.put(kind, self._once(_label_text(file, member, where)))
        self.keyless += [f"{shard}:{name}" for name in index.keyless]
        self.odd += [f"{shard}:{name}" for name in index.odd]
        return survey

    def _may_be_wanted(self, name: str) -> bool:
        """Whether a kind or field of this name may hold labels, splits or groups."""
        if name not in self._wanted:
            options = self._options
            usual = fitting_names([name], _LABEL, USUAL_LABEL_COLUMNS) and options.label_key is None
            split = name.strip().lower() in USUAL_SPLIT_COLUMNS
            keys = options.label_key if isinstance(options.label_key, tuple) else (options.label_key or _LABEL,)
            asked = name in (options.split_key, options.group) or any(fitting_names([name], key, ()) for key in keys)
            self._wanted[name] = bool(usual or split or asked)
        return self._wanted[name]

    def _once(self, value: Any) -> Any:
        try:
            return self._same.setdefault((type(value), value), value)
        except TypeError:  # a list
            return value


def _bytes(file: BinaryIO, member: Member, where: str, most: int) -> bytes:
    if member.size > most:
        raise UserError(f"{where} has {member.size:,} bytes, more than the {most:,} that are read of such a member.")
    return read_at(file.fileno(), member.size, member.offset)


def _label_text(file: BinaryIO, member: Member, where: str) -> str:
    try:
        return _bytes(file, member, where, _LONGEST_LABEL).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is no label, the number or name of a class in UTF-8; choose another by data.label_key, or "
            f"data.label_key={NO_COLUMN} to go without."
        ) from error


def _object(file: BinaryIO, member: Member, where: str) -> dict[str, Any]:
    return _parsed(_bytes(file, member, where, LONGEST_LINE), where)


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", "not UTF-8")
        raise UserError(f"{where} is not JSON: {reason}.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object with the fields of its sample.")
    return record


def _content(met: _Met, options: DataConfig, modality: Modality, name: str) -> _Content:
    """Which members are the contents.

    Raises:
        UserError: there are none, or none of the name that a key gives, or several fields may be it.
    """
    key: str | None = getattr(options, modality.key)
    members = ", ".join(f"{kind!r} ({count:,})" for kind, count in met.kinds.most_common(10)) or "none"
    fields = f", the fields of 'json' {listed(met.fields)}" if met.fields else ""
    if key is not None:
        kinds = frozenset(each.strip().lower().removeprefix(".") for each in key.split(";"))
        if kinds & set(met.kinds):
            return _Content(kinds)
        if modality is TEXTS and key in met.fields:
            return _Content(frozenset((_FIELDS,)), key)
        raise UserError(f"{name} has no {key!r} (data.{modality.key}); its members are {members}{fields}.")
    kinds = frozenset((_TEXT,)) if modality is TEXTS else frozenset(each[1:] for each in modality.suffixes)
    if kinds & set(met.kinds):
        return _Content(kinds)
    if modality is TEXTS and (fitting := fitting_names(met.fields, modality.column, modality.listed_columns)):
        if len(fitting) > 1:
            raise UserError(
                f"{name} has several fields that may hold the texts ({listed(fitting)}); choose one by "
                f"data.{modality.key}=..."
            )
        return _Content(frozenset((_FIELDS,)), fitting[0])
    pictures = any(f".{kind.rpartition('.')[2]}" in IMAGES.suffixes for kind in met.kinds)
    fix = f"name them by data.{modality.key}=..."
    if (modality is TEXTS and pictures) or (modality is IMAGES and not pictures and _TEXT in met.kinds):
        fix = modality.otherwise
    raise UserError(f"no {modality.plural} in {name}; its members are {members}{fields}: {fix}.")


def _labels(met: _Met, content: _Content, options: DataConfig, name: str) -> tuple[str, ...]:
    """The kind of member or the field that holds the labels, or those where several are named; none without labels.

    Raises:
        UserError: `label_key` names neither.
    """
    kinds = [kind for kind in met.kinds if kind not in content.kinds]
    fields = [field for field in met.fields if field != content.field]
    if options.label_key is not None:
        keys = options.label_key if isinstance(options.label_key, tuple) else (options.label_key,)
        found = [next(iter(fitting_names(kinds, key, ()) or fitting_names(fields, key, ())), None) for key in keys]
        chosen = tuple(each for each in found if each is not None)
        if len(chosen) == len(keys):
            return chosen
        if options.label_key == NO_COLUMN:
            return ()
        more = f" and the fields of 'json' {listed(fields)}" if fields else ""
        missing = keys[found.index(None)]
        raise UserError(f"{name} has no {missing!r} (data.label_key); its members are {listed(kinds)}{more}.")
    for names, documented in ((kinds, _LABEL), (fields, LABEL_COLUMN)):
        if len(fitting := fitting_names(names, documented, USUAL_LABEL_COLUMNS)) == 1:
            return (fitting[0],)
    return ()


def _say(
    met: _Met,
    content: _Content,
    labels: Sequence[str],
    split: str | None,
    options: DataConfig,
    modality: Modality,
    notes: Notes,
) -> None:
    """Tell how labels were found, and what is not used."""
    label = next(iter(labels), None)
    shown = LABEL_COLUMN if label == _LABEL else label
    others = [*(kind for kind in met.kinds if kind not in {*content.kinds, _FIELDS}), *met.fields]
    notes.take(column_notes(modality.column, shown, others, options, modality))
    used = {*content.kinds, *labels} | ({_FIELDS} if {*labels, split} & {*met.fields} else set())
    if unused := [f"{kind} ({count:,})" for kind, count in met.kinds.items() if kind not in used]:
        notes.say(f"members that are not used: {', '.join(unused[:10])}{' and others' if len(unused) > 10 else ''}")


def _items(path: Path, shard: str, content: _Content, modality: Modality, encoding: str) -> Iterator[Item]:
    """The items of a shard, which is looked through again."""
    with readable(path), open_regular(path) as file:
        samples = index_of(path, file).samples
    for key, sample in samples.items():
        kind = next((kind for kind in sample if kind in content.kinds), None)
        if kind is None:
            continue
        where = f"{path}: {key}.{kind}"
        read = partial(read_member, path, sample[kind], where, LARGEST_FILE if modality is IMAGES else LONGEST_LINE)
        if content.field is not None:
            read = partial(_text_in, read, content.field, where)
        elif modality is TEXTS:
            read = partial(in_utf8, read, encoding, where)
        yield Item(f"{shard}:{key}.{kind}", None, read, held=sample[kind].size if modality is TEXTS else 0)


def _text_in(read: Callable[[], bytes], name: str, where: str) -> bytes:
    """The text in a field of a JSON member; nothing where it has none.

    Raises:
        UserError: it is no text.
    """
    text = _parsed(read(), where).get(name)
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: field {name!r} is no text.")
    return (text or "").encode("utf-8", "surrogatepass")
