"""The parts of a study's report: results, differences, runs, curves, classes, cost, and how to run it again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from sdfast.config import Config
from sdfast.report.chart import Curve, chart
from sdfast.report.classes import drawn_matrix
from sdfast.report.panel import Cell, Panel, Shown, details, duration, facts, figure, gallery, table
from sdfast.studies.declared import COST, study_named
from sdfast.studies.drawing import COLOURS, Line, Row, lines_with_bands, rows_on_a_scale, stacked
from sdfast.studies.evidence import evidence_panel
from sdfast.studies.results import METRICS, SHARES
from sdfast.studies.stored import Data, curve, fixed, label, mean_curve, reference
from sdfast.studies.units import kind_of, unit_of
from sdfast.studies.verdict import Difference, differences, stages_in

_KINDS = {
    "head": "new decoder or head",
    "pretrain": "further pre-training",
    "distill": "self-distillation",
    "finetune": "fine-tuning",
}
_CLASSES = 40  # of a table
_MATRIX = 25  # classes of a confusion matrix that is drawn
_DIGITS = 12  # of a digest
_DRAWN = 12  # arms whose curves and classes are shown


def panels(data: Data, prefix: str, name: str) -> Iterator[Panel]:
    """All parts about one data set.

    Args:
        data: of the study.
        prefix: of the parts' anchors.
        name: of the data set behind the titles, where there are several; else empty.
    """
    after = f": {name}" if name else ""
    costs = data.record["study"] == COST.name
    compares = bool(data.arms) and not costs
    if costs:
        yield from _cost_study(data, prefix, after)
    elif compares:
        yield _results(data, prefix, after)
        yield from _differences(data, prefix, after)
        yield _runs(data, prefix, after)
        yield from _along_the_axis(data, prefix, after)
        yield from _picture(data, prefix, after)
        yield from _evidence(data, prefix, after)
    yield from _curves(data, prefix, after)
    if compares:
        yield from _classes(data, prefix, after)
        yield from _cost(data, prefix, after)


def _results(data: Data, prefix: str, after: str) -> Panel:
    metric, arms = data.metric, data.arms
    compared = {each.title: each for each in differences(data.record, data.values, metric)}
    counts = {arm["title"]: data.count(arm) for arm in arms}
    kind, differ = kind_of(data.record), len(set(counts.values())) > 1
    one = "run" if kind == "seed" else kind
    header = ["method", *([f"{one}s"] * differ), *map(label, data.metrics)]
    at = header.index(label(metric)) + 1 if label(metric) in header else len(header)
    extra = [f"difference from {_against(data)}", "p (Holm)"] if compared else []
    rows = []
    for arm in arms:
        cells: list[Cell] = [_stressed(arm["title"]) if arm["title"] == reference(data) else arm["title"]]
        cells += [counts[arm["title"]]] * differ
        cells += [_summary(arm["summary"].get(name), name) for name in data.metrics]
        if extra:
            cells[at:at] = _compared(compared.get(arm["title"]), metric)
        rows.append(cells)
    header[at:at] = extra
    for arm in data.values["arms"]:
        if arm.get("unavailable"):
            rows.append([arm["title"], "not available", *[None] * (len(header) - 2)])
    most = max(counts.values())
    lead = f"Mean ± deviation over {most} {kind}s." if most > 1 else f"One {one} of each: no deviation."
    about = [METRICS[name].about for name in data.metrics if name in METRICS and METRICS[name].about]
    body = table(header, rows, sortable=len(rows) > 2, caption=" ".join(about))
    return Panel(f"{prefix}results", f"Results{after}", body, lead, wide=True)


def _stressed(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(text)


def _against(data: Data) -> str:
    same = study_named(data.record["study"]).same
    return reference(data) + (f" at that {same}" if same else "")


def _summary(found: Mapping[str, Any] | None, metric: str) -> Cell:
    if found is None:
        return None
    mean, deviation = fixed(found["mean"], metric), found.get("deviation")
    return Shown(found["mean"], mean if deviation is None else f"{mean} ± {fixed(deviation, metric)}")


def _compared(each: Difference | None, metric: str) -> list[Cell]:
    if each is None:
        return [None, None]
    kind = _kind(each, metric)
    text = Markup('<span class="{}">{}</span>').format(kind, _interval(each, metric))
    if each.p is None:
        return [Shown(each.mean, text), each.note]
    return [Shown(each.mean, text), Shown(each.p, f"{each.p:.3f}" if each.p >= 0.001 else f"{each.p:.0e}")]


def _kind(each: Difference, metric: str) -> str:
    """A class of the style sheet: good and bad where more is better and the difference counts."""
    if each.sign == 0 or metric not in {*SHARES, "r2", "spearman"}:
        return ""
    return "good" if each.sign > 0 else "bad"


def _interval(each: Difference, metric: str) -> str:
    mean = fixed(each.mean, metric, "+")
    if each.low is None or each.high is None:
        return mean
    return f"{mean} [{fixed(each.low, metric, '+')}, {fixed(each.high, metric, '+')}]"


def _differences(data: Data, prefix: str, after: str) -> Iterator[Panel]:
    metric = data.metric
    found = [each for each in differences(data.record, data.values, metric) if each.low is not None]
    if not found:
        return
    colours = {"good": "var(--good)", "bad": "var(--bad)", "": "var(--soft)"}
    rows = [
        Row(each.title, _interval(each, metric), each.mean, each.low, each.high, colour=colours[_kind(each, metric)])
        for each in found
    ]
    what = kind_of(data.record)
    many = f", corrected for {len(found)} comparisons (Holm)" if len(found) > 1 else ""
    unit = "points of " if metric in SHARES else ""
    lead = (
        f"Each method less {_against(data)}, in {unit}{label(metric).removesuffix(' %')}, paired by {what}, with 95 %"
        f" intervals. Where one crosses the dashed line, no difference is shown; colour is given to those with p below"
        f" 0.05{many}."
    )
    yield Panel(
        f"{prefix}differences", f"Differences{after}", rows_on_a_scale(rows, 0.0), lead, wide=len(data.arms) > 6
    )


def _runs(data: Data, prefix: str, after: str) -> Panel:
    metric, study = data.metric, study_named(data.record["study"])
    unit = " %" if metric in SHARES else ""
    if body := _chart_of_lines(data, metric):
        what = f"{kind_of(data.record)}s"
        lead = f"Means over the {what}; bands are 95 % intervals, of three {what} or more."
        return Panel(f"{prefix}runs", f"{study.title}{after}", body, lead, wide=True)
    rows = []
    for arm in data.arms:
        runs, values = data.runs(arm, metric), data.by_place(arm, metric)
        if not values:
            continue
        low, high = data.interval(arm, metric) or (None, None)
        own = arm["title"] == reference(data)
        said = _summary(arm["summary"].get(metric), metric)
        text = said.text if isinstance(said, Shown) else fixed(fmean(values), metric)
        dots = [(value, f"{name}: {fixed(value, metric)}") for name, value in runs]
        colour = "var(--soft)" if own else "var(--c1)"
        rows.append(Row(arm["title"], str(text), fmean(values), low, high, dots, colour, own))
    lead = "Small dots are single runs, the large one is their mean" + (
        ", the line its 95 % interval." if any(row.low is not None for row in rows) else "."
    )
    alone = not any(each.low is not None for each in differences(data.record, data.values, metric))
    wide = alone or len(rows) > 6
    return Panel(f"{prefix}runs", f"Every run{after}", rows_on_a_scale(rows, unit=unit), lead, wide=wide)


def _along_the_axis(data: Data, prefix: str, after: str) -> Iterator[Panel]:
    """The further panels of the study's figure."""
    study = study_named(data.record["study"])
    for metric in study.tested[1:] if study.figure == "lengths" else ():
        if body := _chart_of_lines(data, metric):
            yield Panel(
                f"{prefix}{metric}", f"{label(metric).capitalize()}{after}", body, METRICS[metric].about, wide=True
            )


def _chart_of_lines(data: Data, metric: str) -> Markup | None:
    """A metric along the study's axis; None where there is none, or no run with the metric."""
    study = study_named(data.record["study"])
    if study.axis is None or not (lines := _lines(data, metric)):
        return None
    x_name = study.axis.label.format(rows=data.values["modality"])
    return lines_with_bands(lines, x_name, label(metric), logarithmic=bool(study.same))


def _lines(data: Data, metric: str) -> list[Line]:
    """One for each series, the reference's last; an arm that is not on the axis is a level one, where others are."""
    series: dict[str, list[dict[str, Any]]] = {}
    for arm in data.arms:
        if arm["x"] is not None and arm["series"]:
            series.setdefault(arm["series"], []).append(arm)
    found = []
    for name, arms in sorted(series.items(), key=lambda each: each[0] == reference(data)):
        arms = sorted((arm for arm in arms if data.by_place(arm, metric)), key=lambda arm: arm["x"])
        means = [fmean(data.by_place(arm, metric)) for arm in arms]
        found.append(Line(name, [arm["x"] for arm in arms], means, [data.interval(arm, metric) for arm in arms]))
    ends = [end for line in found for end in (min(line.xs, default=0.0), max(line.xs, default=0.0))]
    for arm in data.arms:
        if found and arm["x"] is None and (values := data.by_place(arm, metric)):
            level = Line(arm["title"], [min(ends), max(ends)], [fmean(values)] * 2, [data.interval(arm, metric)] * 2)
            found.append(level)
    return found


def _picture(data: Data, prefix: str, after: str) -> Iterator[Panel]:
    """The study's own figure, where it shows what nothing here does; it is of all data sets together."""
    study = study_named(data.record["study"])
    path = data.out / f"{study.name}.svg"
    if study.figure == "gaps" and data.values is data.record["data"][0] and path.is_file():
        body = Markup('<div class="paper">{}</div>').format(figure(path, alt=study.title))
        yield Panel(f"{prefix}figure", f"Figure{after}", body, wide=True)


def _evidence(data: Data, prefix: str, after: str) -> Iterator[Panel]:
    """What the models of one run fill in where something is hidden, where that is kept."""
    if (panel := evidence_panel(data, prefix, after)) is not None:
        yield panel


def _classes(data: Data, prefix: str, after: str) -> Iterator[Panel]:
    """F1 of each class by method, and for each method what is taken for what, over all of its runs."""
    arms, scores, matrices = data.arms, {}, {}
    if study_named(data.record["study"]).axis is not None or len(arms) > _DRAWN:
        return
    for arm in arms:
        results = [found for run in arm["runs"] if (found := data.result(run)) is not None]
        tables = [found.per_class["test"] for found in results if found.per_class and "test" in found.per_class]
        if not tables:
            continue
        scores[arm["title"]] = {name: fmean(each[name].f1 for each in tables if name in each) for name in tables[0]}
        counted = [np.asarray(found.confusion_matrix["test"]) for found in results if found.confusion_matrix]
        if counted and len(counted[0]) == len(tables[0]) <= _MATRIX:
            matrices[arm["title"]] = (list(tables[0]), np.sum(counted, axis=0))
    if not scores:
        return
    names = list(next(iter(scores.values())))
    shown = names
    if len(names) > _CLASSES:
        spread = {name: _spread([each.get(name, 0.0) for each in scores.values()]) for name in names}
        shown = sorted(names, key=lambda name: -spread[name])[:_CLASSES]
    bar = '<span class="bar-cell" style="--s:{:.3f}">{:.3f}</span>'
    rows: list[list[Cell]] = []
    for name in shown:
        values = [each.get(name, 0.0) for each in scores.values()]
        rows.append([name, *(Shown(value, Markup(bar).format(value, value)) for value in values)])
    body = table(["class", *scores], rows, sortable=True)
    for title, (classes, matrix) in matrices.items():
        body += details(f"What {title} takes for what, over its runs", drawn_matrix(classes, matrix))
    lead = "F1 on the test rows, the mean over the runs."
    if len(shown) < len(names):
        lead += f" The {len(shown)} of {len(names):,} classes in which the methods differ most."
    yield Panel(f"{prefix}classes", f"Classes{after}", body, lead, wide=True)


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _cost(data: Data, prefix: str, after: str) -> Iterator[Panel]:
    """Seconds of one classifier by method: the stages before it, and its fine-tuning."""
    own_chains = data.record.get("protocol") == "full" or data.record.get("folds")
    rows, used, arms = [], set(), data.arms
    if len(arms) > _DRAWN and any(arm["x"] is not None for arm in arms):
        largest = max(arm["x"] for arm in arms if arm["x"] is not None)
        arms = [arm for arm in arms if arm["x"] in (None, largest)]
    for arm in arms:
        chains = data.count(arm) if own_chains else 1
        seconds = dict.fromkeys(_KINDS, 0.0)
        for stage in data.values["stages"]:
            if arm["title"] in stage["arms"]:
                seconds[stage["stage"]] += stage["seconds"] / chains
        seconds["finetune"] = fmean(run["seconds"] for run in arm["runs"])
        used |= {kind for kind, value in seconds.items() if value}
        rows.append((arm["title"], seconds))
    kinds = [kind for kind in _KINDS if kind in used]
    base = next((sum(each.values()) for title, each in rows if title == reference(data)), 0.0)
    drawn = []
    for title, seconds in rows:
        whole = sum(seconds.values())
        times = f", {whole / base:.1f} times" if base and f"{whole / base:.1f}" != "1.0" else ""
        drawn.append((title, [seconds[kind] for kind in kinds], f"{duration(whole)}{times}"))
    shared = "" if own_chains else " What several runs need was trained once."
    lead = f"Training of one classifier, with what comes before it.{shared}"
    body = stacked(drawn, [_KINDS[kind] for kind in kinds])
    yield Panel(f"{prefix}cost", f"Cost{after}", body, lead, wide=True)


def _curves(data: Data, prefix: str, after: str) -> Iterator[Panel]:
    """The loss of each kind of stage, all methods in one frame; of fine-tunings the mean over the runs."""
    parts: dict[str, dict[str, list[Path]]] = {}
    arms = [arm["title"] for arm in data.arms]
    largest = [arm["title"] for arm in data.arms if arm["x"] is not None]
    shown = {*arms[:_DRAWN], *largest[-_DRAWN:]} if len(arms) > _DRAWN else set(arms)
    for stage in stages_in(data.values):
        wanted = [title for title in stage["arms"] if title in shown] or ([] if arms else stage["arms"])
        folder = data.folder(stage) if wanted else None
        if folder is not None:
            name = wanted[0] if len(wanted) == 1 else f"{wanted[0]} and {len(wanted) - 1} more"
            parts.setdefault(stage["stage"], {}).setdefault(name, []).append(folder)
    charts = []
    for kind in [each for each in _KINDS if each in parts]:
        found = []
        for name, folders in parts[kind].items():
            steps, values = mean_curve([curve(folder, "loss") for folder in folders[:20]])
            if steps:
                found.append(Curve(name, steps, values))
        for start in range(0, len(found), COLOURS):
            title = f"{_KINDS[kind].capitalize()}: loss"
            charts.append(chart(title, found[start : start + COLOURS], wide=False))
    if charts:
        lead = "Training losses. Those of methods with different objectives are not to be compared by their height."
        yield Panel(f"{prefix}curves", f"Learning curves{after}", gallery(charts, 320), lead, wide=True)


def _cost_study(data: Data, prefix: str, after: str) -> Iterator[Panel]:
    rows = data.record.get("rows", {}).get(data.values["title"], [])
    if not rows:
        return
    base = next((row["seconds"] for row in rows if row["stage"] == "finetune"), 0.0)
    lines: list[list[Cell]] = []
    for row in rows:
        step = 1000 * row["seconds"] / row["steps"] if row["steps"] else None
        lines.append(
            [
                _KINDS.get(row["stage"], row["stage"]),
                row["steps"] or None,
                Shown(row["seconds"], duration(row["seconds"])),
                None if step is None else Shown(step, f"{step:.1f}"),
                f"{row['rate']:.0f} {row['unit']}" if row["unit"] else None,
                Shown(row["seconds"] / base, f"{row['seconds'] / base:.2f}") if base else None,
            ]
        )
    body = table(["stage", "steps", "time", "ms a step", "rate", "to fine-tuning"], lines)
    bars = [(_KINDS.get(row["stage"], row["stage"]), [row["seconds"]], duration(row["seconds"])) for row in rows]
    body += stacked(bars, ["training"])
    lead = "One stage at a time, on this machine; other work on it counts."
    yield Panel(f"{prefix}cost", f"What each stage takes{after}", body, lead, wide=True)


def stages_panel(parts: Sequence[Data]) -> Panel:
    """Every stage once, with where it lies."""
    rows: list[list[Cell]] = []
    seen = set()
    for data in parts:
        for stage in stages_in(data.values):
            if stage["fingerprint"] in seen:
                continue
            seen.add(stage["fingerprint"])
            titles = list(dict.fromkeys(stage["arms"]))
            whose = titles[0] if len(titles) == 1 else f"{titles[0]} and {len(titles) - 1} more"
            where = f", seed {stage['seed']}" if "seed" in stage else ""
            unit = unit_of(stage)
            where += f", {unit}" if unit else ""
            seconds = Shown(stage["seconds"], duration(stage["seconds"]))
            link = _link(data.out, data.folder(stage))
            rows.append([stage["stage"], f"{whose}{where}", stage["steps"], seconds, link])
    total = sum(row[3].value for row in rows if isinstance(row[3], Shown))
    lead = f"{len(rows)} stages, {duration(total)} of training in all. Each folder has the model, result.json and"
    lead += " metrics.jsonl; a link works where the page lies in the study's directory."
    body = table(["stage", "for", "steps", "training", "folder"], rows, sortable=True)
    return Panel("stages", "Stages and models", body, lead, wide=True)


def _link(out: Path, folder: Path | None) -> Cell:
    if folder is None:
        return Markup('<span class="soft">gone</span>')
    there = Path(os.path.relpath(folder, out)).as_posix()
    return Markup('<a href="{}/"><code>{}</code></a>').format(quote(there), there)


def trouble_panel(parts: Sequence[Data]) -> Iterator[Panel]:
    """Stages that failed, and methods that cannot be trained here."""
    said = []
    for data in parts:
        name = f"{data.values['title']}: " if len(parts) > 1 else ""
        said += [f"{name}{sentence}" for sentence in data.values["failures"]]
        for arm in data.values["arms"]:
            if arm.get("unavailable"):
                said.append(f"{name}{arm['title']} is not available: {arm['unavailable']}")
    if said:
        items = Markup("").join(Markup("<li>{}</li>").format(each) for each in dict.fromkeys(said))
        body = Markup('<ul class="warnings">{}</ul>').format(items)
        yield Panel("trouble", "What did not go", body, "The same command tries it again.", wide=True)


def again_panel(parts: Sequence[Data]) -> Panel:
    """What was compared, and how to run it again."""
    record = parts[0].record
    command = Markup('<pre class="wrap">{}</pre>').format(str(record.get("command", "")))
    seeds = ", ".join(map(str, record.get("seeds", [])))
    pairs: list[tuple[str, Cell]] = [("seeds", seeds), ("protocol", str(record.get("protocol", "")))]
    pairs += [(name, str(record[name])) for name in ("folds", "chains") if record.get(name)]
    pairs += [("device", str(record.get("device", ""))), ("stages at a time", str(record.get("jobs", "")))]
    pairs += [(str(name), str(value)) for name, value in record.get("versions", {}).items()]
    for data in parts:
        title = data.values["title"]
        pairs.append((f"training rows of {title}", f"{data.values['train_rows']:,}"))
        digests = data.values.get("digests", {})  # an earlier version wrote none
        pairs += [(f"SHA-256 of {title}: {name}", digest[:_DIGITS]) for name, digest in digests.items()]
    body = command + facts(pairs) + Markup("<h3>Methods</h3>")
    rows: list[list[Cell]] = []
    starts = {"init": "the model as given", "pretrain": "the further pre-trained", "distill": "the self-distilled"}
    for arm in parts[0].values["arms"]:
        keys = [*arm["overrides"]]
        keys += [f"{arm['longer']} times the steps of pretrain"] if arm.get("longer", 1) != 1 else []
        rows.append([arm["title"], starts.get(arm["start"], arm["start"]), ", ".join(keys)])
    body += table(["method", "fine-tunes", "keys that it sets"], rows)
    default = Config().flat()
    for config, data in zip(record.get("config", []), parts, strict=False):
        flat = _flat(config)
        changed: list[list[Cell]] = [
            [Markup("<code>{}</code>").format(key), _plain(value), _plain(default.get(key))]
            for key, value in flat.items()
            if value != default.get(key) and value != {} and key not in ("out", "name")
        ]
        name = f" on {data.values['title']}" if len(parts) > 1 else ""
        body += Markup("<h3>Keys that differ from the defaults{} ({})</h3>").format(name, len(changed))
        body += table(["key", "value", "default"], changed) if changed else Markup("<p>None.</p>")
    return Panel("again", "What was compared, and how to run it again", body, wide=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict) and value
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def _plain(value: Any) -> str:
    return "not given" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
