"""What a run was made with and what it cost: commands, machine, configuration, and what to load its folders for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from sdfast.config import HEADS, Config
from sdfast.report.panel import Cell, Panel, Shown, details, duration, facts, number, table
from sdfast.report.records import Run, StageRecord

_SESSIONS = 10  # commands that are listed
_PURPOSES = {
    "head": "The model as given with its new {head} trained, before further pre-training.",
    "pretrain": "The further pre-trained model: the teacher, and what to load to go on without self-distillation.",
    "distill": "The self-distilled model: to fine-tune elsewhere, or for features.",
    "finetune": "The classifier: to predict with.",
}


def cost_panel(run: Run) -> Panel:
    """Seconds, rates and the machine."""
    done = [each for each in run.stages if each.result is not None]
    rows: list[list[Cell]] = []
    for each in done:
        stored = each.result
        assert stored is not None
        rate, unit = (stored.img_per_s, "img/s") if stored.img_per_s is not None else (stored.seq_per_s, "seq/s")
        speeds = each.values.get("tflops", ([], []))[1]
        peak = each.values.get("peak_share", ([], []))[1]
        rows.append(
            [
                each.folder,
                Shown(stored.seconds, duration(stored.seconds)),
                Shown(rate or 0.0, f"{number(rate or 0.0, 3)} {unit}"),
                Shown(_mean(speeds), f"{1000 * _mean(speeds):,.3g} GFLOP/s") if speeds else None,
                Shown(_mean(peak), f"{100 * _mean(peak):.0f} %") if peak else None,
            ]
        )
    total = sum(each.result.seconds for each in done if each.result is not None)
    body = table(["stage", "training", "rate", "arithmetic", "of the peak"], rows) if rows else Markup("")
    body += facts(_machine(run))
    lead = f"{duration(total)} of training in all, without reading data, the bank and evaluations." if done else ""
    return Panel("cost", "Cost", body, lead)


def _machine(run: Run) -> Iterator[tuple[str, Cell]]:
    last = run.sessions[-1] if run.sessions else {}
    for key, name in (
        ("device", "device"),
        ("processor", "processor"),
        ("processes", "processes"),
        ("threads", "CPU threads"),
        ("memory", "memory"),
        ("platform", "system"),
    ):
        if key in last:
            yield name, str(last[key])
    stored = next((each.result for each in run.stages if each.result is not None), None)
    if stored is not None and "precision" in stored.inputs:
        yield "precision", str(stored.inputs["precision"])
    if not last:
        yield "machine", "not kept: this run was trained by an earlier version, or without its report"
    versions = last.get("versions")
    for name, version in versions.items() if isinstance(versions, dict) else ():
        yield str(name), str(version)


def command_panel(run: Run) -> Panel:
    """How the run was made, and the configuration: what differs from the defaults, and all of it."""
    parts = []
    if run.sessions:
        for each in run.sessions[-_SESSIONS:]:
            when = each.get("at")
            told = time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) if isinstance(when, (int, float)) else ""
            text = '<p class="caption">{}</p><pre class="wrap">{}</pre>'
            parts.append(Markup(text).format(told, str(each.get("command", ""))))
    elif run.config is not None:
        text = '<p class="caption">The command was not kept; this one makes the same run.</p><pre class="wrap">{}</pre>'
        parts.append(Markup(text).format(f"sdfast train --config {run.out / 'config.yaml'} --out {run.out}"))
    if run.config is not None:
        changed = _changed(run.config)
        title = f"<h3>Keys that differ from the defaults ({len(changed)})</h3>"
        parts.append(Markup(title))
        parts.append(table(["key", "value", "default"], changed) if changed else Markup("<p>None.</p>"))
        whole = yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        parts.append(details("The whole configuration", Markup("<pre>{}</pre>").format(whole)))
    return Panel("command", "Configuration", Markup("\n").join(parts))


def _changed(config: Config) -> list[list[Cell]]:
    own, default = config.flat(), Config().flat()
    return [
        [Markup("<code>{}</code>").format(key), _plain(value), _plain(default.get(key))]
        for key, value in own.items()
        if value != default.get(key) and key != "out"
    ]


def _plain(value: Any) -> str:
    return "not given" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def folders_panel(run: Run) -> Panel:
    """What lies where, what to load it for, and by which digests it is known."""
    rows = []
    for stage in run.stages:
        if stage.result is None:
            continue
        rows.append(
            Markup('<tr><td><code>{}</code><div class="soft">{}</div></td><td>{}</td></tr>').format(
                f"{stage.folder}/model", _purpose(run, stage), _digests(stage)
            )
        )
    for name, purpose in _others(run.out):
        rows.append(
            Markup('<tr><td><code>{}</code><div class="soft">{}</div></td><td></td></tr>').format(name, purpose)
        )
    head = '<div class="scroll"><table class="folders"><thead><tr><th scope="col">in {}</th>'
    head += '<th scope="col">digests</th></tr></thead><tbody>{}</tbody></table></div>'
    body = Markup(head).format(str(run.out), Markup("").join(rows))
    lead = "Folders of models are in Hugging Face's format; `sdfast export` writes one elsewhere."
    return Panel("folders", "Folders", body, lead, wide=True)


def _purpose(run: Run, stage: StageRecord) -> str:
    if stage.folder.startswith("distill/round-"):
        return "An earlier round of self-distillation."
    if stage.kind == "finetune" and stage.folder != "finetune":
        return "Another classifier."
    return _PURPOSES[stage.kind].format(head=HEADS[run.modality])


def _digests(stage: StageRecord) -> Markup:
    assert stage.result is not None
    text = '<div class="digest"><span class="soft">weights</span> <code>{}</code></div>'
    text += '<div class="digest"><span class="soft">made from</span> <code>{}</code></div>'
    return Markup(text).format(stage.result.weights, stage.result.fingerprint)


def _others(out: Path) -> Iterator[tuple[str, str]]:
    known = {
        "pack": "The data as they are trained on, decoded or tokenised.",
        "teacher": "The bank: what the teacher says of each row, kept for self-distillation.",
        "predictions.csv": "What the classifier says of each test row.",
        "config.yaml": "The configuration, for --config.",
        "log.txt": "What was said while it ran.",
        "report": "What this page is made from, besides the rest.",
    }
    for name, purpose in known.items():
        if (out / name).exists():
            yield name, purpose


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
