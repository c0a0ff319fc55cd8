"""How the training went: the stages in a table, and curves of everything that was recorded of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from markupsafe import Markup

from sdfast.config import HEADS, ModalityName
from sdfast.report.chart import Curve, chart
from sdfast.report.panel import Cell, Panel, Shown, duration, gallery, number, table
from sdfast.report.records import Run, StageRecord

_DRAWN = 8  # stages of which curves are shown: of a thousand rounds the last ones
_WORDS = {
    "head": "the new {head} alone, the encoder frozen",
    "pretrain": "further pre-training on the data, by masked parts",
    "distill": "self-distillation: from the first weights again, matching the model before",
    "finetune": "training of the classifier on the labels",
}
_TITLES = {
    "lr": "Learning rate",
    "rate": "Rate",
    "step_seconds": "Time of a step",
    "grad_norm": "Gradient norm",
    "gradient_norm": "Gradient norm",
}
_UNITS = {"step_seconds": "s", "tflops": "TFLOP/s"}
_SHARES = {"peak_share": "of the peak", "wait_share": "waiting for data"}
_SKIPPED = {"epoch"}  # said in words
_STATES = {"done": "good", "running": "warn", "interrupted": "bad", "outdated": "bad", "not begun": "soft"}

Values = Mapping[str, tuple[list[float], list[float]]]


def training_panel(run: Run) -> Panel:
    """A table of the stages, and curves of each of which something was recorded; of many stages the last ones."""
    unit = "img/s" if run.modality == "images" else "seq/s"
    recorded = [each for each in run.stages if any(xs for xs, _ in each.values.values())]
    drawn = Markup("\n").join(_curves(each, run.modality, unit) for each in recorded[-_DRAWN:])
    return Panel("training", "Training", Markup("{}\n{}").format(_stages(run), drawn), wide=True)


def _stages(run: Run) -> Markup:
    """How far each is, how long it took, how fast it was."""
    unit = "img/s" if run.modality == "images" else "seq/s"
    return table(
        ["stage", "what it is", "state", "steps", "time", unit, "loss", "distance"],
        [_row(each, run.modality) for each in run.stages],
        caption="Distance: how far the encoder's weights are from the first ones, as the root of the summed squares.",
    )


def _row(stage: StageRecord, modality: ModalityName) -> list[Cell]:
    stored, last = stage.result, {name: values[-1] for name, (_, values) in stage.values.items() if values}
    state = Markup('<span class="{}">{}</span>').format(_STATES[stage.state], stage.state)
    if stage.state in ("running", "interrupted"):
        state = Markup('<span class="{}">{} at {:,} of {:,}</span>').format(
            _STATES[stage.state], stage.state, stage.step, stage.steps
        )
    seconds: Cell = Shown(stored.seconds, duration(stored.seconds)) if stored else None
    rate = (stored.img_per_s or stored.seq_per_s) if stored else last.get("rate")
    distance = stored.metrics.get("distance") if stored else None
    steps: Cell = stage.steps if stage.steps else None
    speed: Cell = Shown(rate, f"{rate:,.0f}" if rate >= 10 else number(rate, 2)) if rate else None
    how: Cell = Shown(distance, number(distance)) if distance is not None else None
    loss: Cell = last.get("loss")
    return [stage.folder, _words(stage, modality), state, steps, seconds, speed, loss, how]


def _words(stage: StageRecord, modality: ModalityName) -> str:
    return _WORDS[stage.kind].format(head=HEADS[modality])


def _curves(stage: StageRecord, modality: ModalityName, unit: str) -> Markup:
    lead = _words(stage, modality)
    lead = f"{lead[0].upper()}{lead[1:]}."
    epochs = stage.values.get("epoch", ([], []))[1]
    if epochs:
        passes = int(max(epochs)) + 1
        lead += (
            f" {passes:,} passes over the training rows." if passes > 1 else " Up to one pass over the training rows."
        )
    if stage.result and stage.result.best_step is not None:
        lead += f" The weights of step {stage.result.best_step:,} were kept, the best by {stage.result.best_by}."
    drawn = gallery(_charts(stage.values, max(stage.steps, 1), unit))
    return Markup('<h3>{}</h3><p class="lead">{}</p>{}').format(stage.folder, lead, drawn)


def _charts(values: Values, steps: int, unit: str) -> Iterator[Markup]:
    ends = (0.0, float(max(steps, *(each[0][-1] for each in values.values() if each[0]))))
    left = {name: each for name, each in values.items() if name not in _SKIPPED}

    def curve(name: str, shown: str = "", factor: float = 1.0, dots: bool = False) -> Curve:
        xs, ys = left.pop(name)
        return Curve(shown or name, xs, [factor * y for y in ys], dots)

    if losses := _losses(left):
        yield chart("Loss", [curve(name, shown) for name, shown in losses], x_range=ends)
    if dev := [name for name in left if name.startswith("dev_") and name != "dev_loss"]:
        shown = [curve(name, name.removeprefix("dev_").replace("_", " "), dots=True) for name in dev]
        yield chart("Val split", shown, x_range=ends)
    if "dev_loss" in left:
        yield chart("Loss of the val split", [curve("dev_loss", dots=True)], x_range=ends)
    for name in ("grad_norm", "gradient_norm", "lr"):
        if name in left:
            yield chart(_TITLES[name], [curve(name)], x_range=ends, from_zero=True, smooth=name != "lr")
    if "rate" in left:
        yield chart("Rate", [curve("rate")], unit=unit, x_range=ends, from_zero=True)
    if "tflops" in left:
        small = max(left["tflops"][1]) < 0.1
        told, factor = ("GFLOP/s", 1000.0) if small else ("TFLOP/s", 1.0)
        yield chart("Arithmetic", [curve("tflops", factor=factor)], unit=told, x_range=ends, from_zero=True)
    if shares := [name for name in _SHARES if name in left]:
        drawn = [curve(name, _SHARES[name], 100.0) for name in shares]
        highest = max(100.0, *(y for each in drawn for y in each.ys))
        title = "Use of the device" if "peak_share" in shares else "Waiting for data"
        yield chart(title, drawn, unit="%", x_range=ends, y_range=(0.0, highest))
    for name in list(left):
        title = _TITLES.get(name, name.replace("_", " ").capitalize())
        yield chart(title, [curve(name)], unit=_UNITS.get(name, ""), x_range=ends, from_zero=name == "step_seconds")


def _losses(values: dict[str, tuple[list[float], list[float]]]) -> list[tuple[str, str]]:
    """Names of the losses and what they are called; a part that is all of the loss is not drawn twice."""
    names = sorted((name for name in values if name == "loss" or name.startswith("loss_")), key=len)
    parts = [(name, name.removeprefix("loss_").replace("_", " ")) for name in names if name != "loss"]
    if "loss" not in names:
        return parts
    if len(parts) == 1 and values[parts[0][0]][1] == values["loss"][1]:
        values.pop("loss")
        return parts
    return [("loss", "in all"), *parts]
