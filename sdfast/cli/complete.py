"""What the shell completes: presets, stages, studies, methods, keys with their values, and run directories.

Each function is given the word as far as it is written; none imports torch, as a person waits for it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

_COMPLETING = "_SDFAST_COMPLETE"  # the variable by which typer's scripts ask
_MOST = 200  # directories that are looked into
_key_before: str | None = None  # in bash, the key whose value is being written


def words(*choices: str) -> Any:
    """A completion of some words."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def preset_names(incomplete: str) -> list[tuple[str, str]]:
    """Presets, with what they are."""
    from sdfast.config.resolve import presets

    return [(name, about) for name, about in presets().items() if name.startswith(incomplete)]


def study_names(incomplete: str) -> list[tuple[str, str]]:
    """Studies, with their titles."""
    from sdfast.studies.declared import COST, STUDIES

    known = {**STUDIES, COST.name: COST}
    return [(name, study.title) for name, study in known.items() if name.startswith(incomplete)]


def method_names(incomplete: str) -> list[str]:
    """Methods of the study that is named, the last of several with commas between them; dashes stand for blanks."""
    from sdfast.studies.declared import STUDIES

    written = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    study = STUDIES[next((word for word in written if word in STUDIES), "compare")]
    before, comma, last = incomplete.rpartition(",")
    taken = {name.strip() for name in before.split(",")}
    titles = [re.sub(r"[^\w.-]+", "-", arm.title).strip("-") for arm in (*study.arms, *study.more)]
    return [f"{before}{comma}{title}" for title in titles if title.startswith(last) and title not in taken]


def overrides(incomplete: str) -> list[str]:
    """Keys, and behind `=` values where there are few."""
    from sdfast.config.whole import valid_keys

    if _key_before is not None:
        return [value for value in key_values(_key_before) if value.startswith(incomplete)]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={each}" for each in key_values(key) if each.startswith(value)]
    found = [each for each in valid_keys() if each.startswith(key)]
    # of a single one several completions, so that the shell goes on behind the `=`
    return [f"{each}=" for each in found] + [f"{found[0]}={value}" for value in key_values(found[0])] * (
        len(found) == 1
    )


def key_values(key: str) -> list[str]:
    """The values of a key that are words, else its default."""
    from sdfast.config.whole import Config

    section: Any = Config
    *sections, name = key.split(".")
    for each in sections:
        field = section.model_fields.get(each)
        if field is None or not hasattr(field.annotation, "model_fields"):
            return []
        section = field.annotation
    if (field := section.model_fields.get(name)) is None:
        return []
    default = [] if field.default is None or isinstance(field.default, (tuple, list, dict)) else [field.default]
    return [_written(value) for value in list(_choices(field.annotation)) or default]


def _choices(annotation: Any) -> Iterator[Any]:
    if annotation is bool:
        yield from (True, False)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif annotation is not NoneType and get_origin(annotation) not in (tuple, list, dict):
        for part in get_args(annotation):
            yield from _choices(part)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_directories(incomplete: str) -> list[str]:
    """Folders with a config.yaml, and those in which there are some; where nothing is written yet those in runs/."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        places = [incomplete] if incomplete else ["runs/", ""]
        for place in places:
            head, start = os.path.split(place)
            folders = [each for each in sorted(Path(os.path.expanduser(head) or ".").iterdir()) if each.is_dir()]
            for folder in [each for each in folders if each.name.startswith(start)][:_MOST]:
                name = os.path.join(head, folder.name)
                if _is_run(folder):
                    found.append(name)
                elif not folder.name.startswith(".") and any(map(_is_run, _inside(folder))):
                    found.append(f"{name}/")
    return list(dict.fromkeys(found))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _inside(folder: Path) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if each.is_dir()][:_MOST]
    except OSError:
        return []


def join_words_of_bash() -> None:
    """Before bash's words are read: it parts them at `=`, and completes what is behind it."""
    global _key_before
    _key_before = None
    if os.environ.get(_COMPLETING) != "complete_bash":
        return
    with contextlib.suppress(KeyError, ValueError):
        said, at = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
        before, current = said[:at], (said[at] if at < len(said) else "")
        if current == "=":
            before, current = [*before, "="], ""
        joined: list[str] = []
        for word in before[:-1]:
            if word == "=" or (joined and joined[-1].endswith("=")):
                joined[-1] += word
            else:
                joined.append(word)
        if before[-1] == "=":
            if not joined[-1].startswith("-"):
                _key_before = joined.pop()
        else:
            joined.append(before[-1])
        os.environ["COMP_WORDS"] = "\n".join([*joined, current])
        os.environ["COMP_CWORD"] = str(len(joined))
