"""What the model was trained and tested on, as the manifest of the data says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from sdfast.report.panel import Cell, Panel, Shown, details, facts, percent, table
from sdfast.report.records import Run

_CLASSES = 1000  # that are listed
_SENTENCES = 40  # of warnings, and of rows that were left out


def data_panel(run: Run) -> Panel | None:
    """Counts, sizes, and what was odd; None where there is no manifest."""
    manifest = run.manifest
    splits = {name: each for name, each in _mapping(manifest.get("splits")).items() if isinstance(each, Mapping)}
    if not splits:
        return None
    parts = [_splits(splits), facts(_facts(run, splits)), _warnings(manifest)]
    if any(isinstance(each.get("classes"), Mapping) and each["classes"] for each in splits.values()):
        parts.append(_classes(splits))
    parts.append(_skipped(manifest))
    body = Markup("\n").join(part for part in parts if part)
    source = _mapping(manifest.get("source"))
    lead = f"{source.get('name', 'The data')}, read as {source.get('kind', 'it is')}."
    return Panel("data", "Data", body, lead, wide=True)


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> Markup:
    """A table with a line for each split."""
    texts = any("tokens" in each for each in splits.values())
    tiles = any("tiles" in each for each in splits.values())
    header = ["split", "rows", "with a label", "without", "classes with a row"]
    header += ["tokens", "longest", "cut"] if texts else []
    header += ["tiles"] if tiles else []
    rows: list[list[Cell]] = []
    for name, each in splits.items():
        count, labelled = _number(each.get("rows")), _number(each.get("labelled"))
        there = sum(bool(number) for number in _mapping(each.get("classes")).values())
        row: list[Cell] = [name, count, labelled, count - labelled, there]
        row += [_number(each.get(key)) for key in ("tokens", "longest", "truncated")] if texts else []
        row += [_number(each.get("tiles"))] if tiles else []
        rows.append(row)
    return table(header, rows, tight=True)


def _facts(run: Run, splits: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Cell]]:
    manifest = run.manifest
    limits = [] if run.config is None else [("data.limit", run.config.data.limit)]
    limits += [] if run.config is None else [("data.labelled_limit", run.config.data.labelled_limit)]
    for key, limit in limits:
        if limit is not None and limit < _number(splits.get("train", {}).get("rows")):
            yield f"trained on ({key})", f"{limit:,} of them"
    rule = _mapping(manifest.get("split_rule"))
    if isinstance(rule.get("rule"), str):
        yield "test split", rule["rule"]
    shape = _mapping(manifest.get("transform"))
    if {"height", "width", "channels"} <= shape.keys():
        yield "images", f"{shape['height']} × {shape['width']} pixels, {shape['channels']} channels"
    words = _mapping(manifest.get("tokenization"))
    if words:
        yield "texts", f"up to {words.get('max_length')} tokens of {_number(words.get('vocabulary')):,}"
    yield from _duplicates(_mapping(manifest.get("duplicates")))
    yield "could not be read", f"{len(_list(manifest.get('skipped'))):,} rows, left out"
    met = {"blank": "blank", "uniform": "of one colour"}
    for note, count in _mapping(manifest.get("conversions")).items():
        yield f"met: {met.get(str(note), str(note))}", f"{_number(count):,} rows"
    if isinstance(content := _mapping(manifest.get("source")).get("content"), str):
        yield "content (SHA-256)", Markup("<code>{}</code>").format(content)


def _duplicates(found: Mapping[str, Any]) -> Iterator[tuple[str, Cell]]:
    for kind, words in (("shared", "the same row in"), ("near", "nearly the same row in")):
        for pair, count in _mapping(found.get(kind)).items():
            yield f"{words} {str(pair).replace(', ', ' and ')}", f"{_number(count):,}"
    if dropped := _list(found.get("dropped_from_train")):
        yield "left out of train as copies", f"{len(dropped):,}"


def _warnings(manifest: Mapping[str, Any]) -> Markup:
    said = [str(each) for each in _list(manifest.get("warnings"))]
    if not said:
        return Markup("")
    shown = Markup("").join(Markup("<li>{}</li>").format(each[:2000]) for each in said[:_SENTENCES])
    return Markup('<h3>What was noticed</h3><ul class="warnings">{}</ul>').format(shown)


def _classes(splits: Mapping[str, Mapping[str, Any]]) -> Markup:
    counts = {name: _mapping(each.get("classes")) for name, each in splits.items()}
    names = list(dict.fromkeys(name for each in counts.values() for name in each))
    totals = {split: max(sum(map(_number, each.values())), 1) for split, each in counts.items()}
    rows: list[list[Cell]] = []
    for name in names[:_CLASSES]:
        row: list[Cell] = [str(name)]
        for split, each in counts.items():
            count = _number(each.get(name))
            shown = Markup('{:,} <span class="soft">({})</span>').format(count, percent(count / totals[split]))
            row.append(Shown(count, shown))
        rows.append(row)
    more = f"; the first {_CLASSES:,} of {len(names):,}" if len(names) > _CLASSES else ""
    title = f"Rows of each class ({len(names):,}{more})"
    return details(title, table(["class", *counts], rows, sortable=True))


def _skipped(manifest: Mapping[str, Any]) -> Markup:
    rows: list[list[Cell]] = []
    for each in _list(manifest.get("skipped"))[:_SENTENCES]:
        told = _mapping(each)
        rows.append([str(told.get("split", "")), str(told.get("name", "")), str(told.get("reason", ""))])
    if not rows:
        return Markup("")
    count = len(_list(manifest.get("skipped")))
    title = f"Rows that could not be read ({count:,})" + (f": the first {_SENTENCES}" if count > _SENTENCES else "")
    return details(title, table(["split", "row", "why"], rows))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
