"""Which columns of a table, by their names, hold the files or texts and which the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.modality import LABEL_COLUMN, USUAL_LABEL_COLUMNS, Modality
from sdfast.errors import UserError

NO_LABELS = "no column is taken for the labels"
_NAMES = 10  # in a sentence


@dataclass(frozen=True)
class NamedColumns:
    """Where a table or a line of JSON has its content and its label; None where it has none."""

    content: str | None
    label: str | None


def choose_names(
    names: Sequence[str], options: DataConfig, modality: Modality, where: str, what: str = "column"
) -> NamedColumns:
    """The columns that `options` names, or else those called as documented, or else as is usual.

    Names are the same without regard to case and to blanks around them. A usual name decides when one column alone has
    one.

    Args:
        names: of all columns.
        options: its `image_key` or `text_key`, and `label_key` ("none" goes without labels).
        modality: what the content is.
        where, what: for the sentence: of which file, and how its columns are called.

    Raises:
        UserError: no column of a name that `options` gives, or several that may hold the content.
    """
    wanted: str | None = getattr(options, modality.key)
    content = _given(names, wanted, modality.key, where, what)
    if content is None:
        fitting = fitting_names(names, modality.column, modality.listed_columns)
        if len(fitting) > 1:
            raise UserError(
                f"{where} has several {what}s that may hold the {modality.content}s ({listed(fitting)}); choose one by "
                f"data.{modality.key}=..."
            )
        content = fitting[0] if fitting else None
    if options.label_key == NO_COLUMN and NO_COLUMN not in names:
        return NamedColumns(content, None)
    label = _given(names, options.label_key, "label_key", where, what)
    if label is None:
        fitting = fitting_names([name for name in names if name != content], LABEL_COLUMN, USUAL_LABEL_COLUMNS)
        label = fitting[0] if len(fitting) == 1 else None
    return NamedColumns(content, label)


def fitting_names(names: Sequence[str], documented: str, usual: Sequence[str]) -> list[str]:
    """The names that are as documented (exactly, or else but for case and blanks), or else all that are usual."""
    plain = [_plain(name) for name in names]
    if documented in names:
        return [documented]
    if documented in plain:
        return [names[plain.index(documented)]]
    return [name for name, one in zip(names, plain, strict=True) if one in usual]


def taken_notes(columns: NamedColumns, options: DataConfig, modality: Modality) -> list[str]:
    """Sentences, without the source's name and a full stop, about columns that were taken by another usual name."""
    said = []
    parts = ((columns.content, modality.column, modality.key), (columns.label, LABEL_COLUMN, "label_key"))
    for (name, documented, key), role in zip(parts, (f"{modality.content}s", "labels"), strict=True):
        if name is not None and name != documented and getattr(options, key) is None:
            said.append(f"{name!r} is taken for the {role} (data.{key} chooses another)")
    return said


def unlabelled_notes(columns: NamedColumns, names: Sequence[str], options: DataConfig) -> list[str]:
    """A sentence when nothing has a label and there are columns that may hold them."""
    others = [name for name in names if name != columns.content]
    if columns.label is not None or not others or options.label_key is not None:
        return []
    return [f"{NO_LABELS}; if they are {_either(others)}, say so by data.label_key"]


def listed(names: Sequence[str]) -> str:
    """Names for a sentence."""
    return ", ".join(repr(name) for name in names[:_NAMES]) or "none"


def _either(names: Sequence[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"one of {listed(names)}"


def _given(names: Sequence[str], wanted: str | None, key: str, where: str, what: str) -> str | None:
    if wanted is None or wanted in names:
        return wanted
    fitting = [name for name in names if _plain(name) == _plain(wanted)]
    if len(fitting) != 1:
        raise UserError(f"{where} has no {what} {wanted!r} (data.{key}); its {what}s are {listed(names)}.")
    return fitting[0]


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
