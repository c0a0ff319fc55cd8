"""Run a study: plan it, train what is missing, and write its tables and its figure."""

from __future__ import annotations

import contextlib
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdfast import __version__, durable
from sdfast.config import Config
from sdfast.durable import sha256_json
from sdfast.errors import UserError, nearest
from sdfast.launch import launch_info
from sdfast.locks import locked
from sdfast.log import attach_file, log
from sdfast.opening import device_of
from sdfast.report.live import wanted as wants_report
from sdfast.rundir import slug
from sdfast.studies.declared import COST, Study, study_named
from sdfast.studies.earlier import Trained, earlier_tables, make_room, sweep
from sdfast.studies.evidence import make_evidence
from sdfast.studies.figures import caption, draw, draw_cost
from sdfast.studies.plan import Node, Plan, Protocol, Target
from sdfast.studies.progress import only_the_study_speaks, say
from sdfast.studies.raw import raw_scores
from sdfast.studies.report import LiveReport, write_report
from sdfast.studies.results import Found, gather
from sdfast.studies.schedule import train
from sdfast.studies.settle import conclusions
from sdfast.studies.store import Store
from sdfast.studies.tables import cost_markdown, cost_rows, markdown, record, run_rows
from sdfast.studies.units import Chain


def run_study(
    name: str,
    configs: Sequence[Config],
    out: Path,
    seeds: int | None = None,
    protocol: Protocol | None = None,
    jobs: int | None = None,
    points: Sequence[int] = (),
    methods: Sequence[str] = (),
    folds: int | None = None,
    repeats: int | None = None,
    chains: int | None = None,
) -> tuple[str, list[str]]:
    """Run a study by name on one or more data sets.

    Args:
        name: of the study.
        configs: one for each data set.
        out: the study's directory.
        seeds: how many, from the run's `seed` on; None for the study's own number, or for one where there are folds or
            chains, of which each has so many.
        protocol: `paper`, one checkpoint and its fine-tunings, or `full`, whole chains; None for `full` where there are
            chains, else `paper`.
        jobs: stages at a time; None for one on each CUDA device.
        points: of the axis.
        methods: titles of the arms, those that can be named alone too; when empty all but those.
        folds: of `compare`: each of so many folds is tested in turn, by models of their own.
        repeats: divisions into folds, with split seeds from the run's `data.split_seed` on; one when None.
        chains: whole chains, each with its own seed, sample of the rows and fine-tunings, of which the mean counts.

    Returns:
        Its table, as Markdown, and a sentence for each stage that failed.

    Raises:
        UserError: a study, method or point that does not exist, options that exclude each other, or data that it is
            not for.
        Interrupted: a signal came; what was being trained is saved.
    """
    study = _chosen(study_named(name), methods)
    if launch_info().world > 1:
        raise UserError("sdfast study starts its own processes (--jobs); run it without a launcher.")
    device, timed = device_of(configs[0]).type, study.name == COST.name
    if timed and (jobs or 1) > 1:
        raise UserError("study cost measures times, which other stages beside would change; use --jobs 1.")
    if sys.platform == "win32" and (jobs or 1) > 1:
        raise UserError("workers of a study are given pipes as Windows does not; use --jobs 1.")
    jobs = jobs or (torch.cuda.device_count() if device == "cuda" and not timed and sys.platform != "win32" else 1)
    first = configs[0].seed
    _check_units(study, protocol, folds, repeats, chains)
    protocol = protocol or ("paper" if chains is None else "full")
    chosen = range(first, first + (seeds or (study.seeds if folds is None and chains is None else 1)))
    with _session(out):
        plan = Plan(study, chosen, protocol, points, folds, repeats or 1, chains, earlier_tables(out, study.name))
        # times are not taken from other studies
        places = [out / "cost" / _digest(config) if timed else out for config in configs]
        targets = [plan.target(config, place) for config, place in zip(configs, places, strict=True)]
        _tell_apart(targets)
        wanted = [node for node in plan.nodes.values() if node.wanted_by]
        _announce(study, targets, wanted, out)
        if study.raw:
            for target in targets:
                cells = ((cell.arm.x if study.of_sizes else None, cell.config, cell.unit) for cell in target.cells)
                target.raw = raw_scores(cells, Store(target.out, plan.shared))
        about = {"protocol": protocol, "jobs": jobs, **_about(configs, device)}
        about |= {"folds": folds} if folds else {}
        reported = wants_report(configs[0].engine.report)

        def so_far() -> dict[str, Any] | None:
            found = [each for target in targets if (each := gather(study, target)).runs]
            return _record(study, found, about) if found else None

        live = LiveReport(out, so_far)
        try:
            train(wanted, out, jobs, device, plan.shared, live.tell if reported else lambda done, total: None)
            if reported and (values := so_far()) is not None:
                make_evidence(out, values, plan.shared)
        finally:
            found = [gather(study, target) for target in targets]
            text = _write(study, [each for each in found if each.runs], out, about)
            if reported:
                write_report(out)
    return text, list(dict.fromkeys(sentence for each in found for sentence in each.failures))


def _check_units(
    study: Study, protocol: Protocol | None, folds: int | None, repeats: int | None, chains: int | None
) -> None:
    """Refuse a protocol, folds or chains that the study does not have, or that exclude each other."""
    if protocol not in (None, "paper", "full"):
        raise UserError(f"--protocol {protocol} is not known; use paper or full.")
    if chains is not None:
        _check_chains(study, protocol, folds or repeats)
    if folds is None and repeats is not None:
        raise UserError("--repeats says how often the rows are divided into folds; give --folds too, as --folds 5.")
    if folds is not None and study.name != "compare":
        raise UserError(f"--folds is of study compare; study {study.name} tests the data's one test split.")


def _check_chains(study: Study, protocol: Protocol | None, folds: int | None) -> None:
    """Refuse what a study of chains cannot be as well; `folds` is set where there are any, or repeats of them."""
    if study.name == COST.name:
        raise UserError("study cost trains each stage once, to measure it; leave --chains away.")
    if folds is not None:
        raise UserError(
            "--chains trains whole chains on the data's own splits, which --folds and --repeats divide"
            " anew; give one or the other."
        )
    if protocol == "paper":
        raise UserError("--chains pre-trains anew in each chain, and --protocol paper once; leave one of them away.")


def _digest(config: Config) -> str:
    """A name for all that was asked for: that of the data, and twelve digits of the configuration's digest."""
    asked = config.model_dump(
        mode="json", exclude={"out": True, "name": True, "engine": {"report", "tracker", "tracker_project"}}
    )
    return f"{slug(config.data_spec)}-{sha256_json(asked)[:12]}"


def _chosen(study: Study, methods: Sequence[str]) -> Study:
    """The study with some of its arms; that which the others are compared with has to be among them."""
    if not methods:
        return study
    if not study.arms:
        raise UserError(f"study {study.name} has no methods to choose; leave --methods away.")
    known = (*study.arms, *study.more)
    titles = {_key(arm.title): arm for arm in known}
    wanted = []
    for method in methods:
        name = _key(method)
        if name not in titles:
            raise UserError(f"study {study.name} has no method '{method}'; {nearest(name, list(titles))}")
        wanted.append(titles[name])
    arms = tuple(arm for arm in known if arm in wanted)
    if study.reference not in {arm.title for arm in arms}:
        raise UserError(f"study {study.name} compares with {study.reference}; name it in --methods too.")
    return replace(study, arms=arms)


def _key(method: str) -> str:
    """By what a method is found: its letters, whatever is between them."""
    return slug(method.strip()).lower().strip("-")


@contextlib.contextmanager
def _session(out: Path) -> Iterator[None]:
    with locked(out):
        handler = attach_file(out / "log.txt")
        try:
            with only_the_study_speaks():
                yield
        finally:
            log.removeHandler(handler)
            handler.close()


def _tell_apart(targets: Sequence[Target]) -> None:
    """Data sets with one name are called as they were asked for."""
    titles = [target.title for target in targets]
    for target in targets:
        if titles.count(target.title) > 1:
            target.title = target.spec


def _announce(study: Study, targets: Sequence[Target], nodes: Sequence[Node], out: Path) -> None:
    cells = sum(len(target.cells) for target in targets)
    missing = sum(node.result is None for node in nodes)
    names = ", ".join(target.title for target in targets)
    say.info(
        "study %s on %s: %d fine-tunings; %d of %d stages are done (%s)",
        *(study.name, names, cells, len(nodes) - missing, len(nodes), out),
    )
    for target in targets:
        for title, reason in target.unavailable.items():
            say.warning("%s: not available: %s", title, reason)


def _about(configs: Sequence[Config], device: str) -> dict[str, Any]:
    """What a person needs who wants to run it again."""
    return {
        "command": shlex.join(["sdfast", *sys.argv[1:]]),
        "versions": {"sdfast": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU",
        "config": [config.model_dump(mode="json") for config in configs],
    }


def _record(study: Study, found: Sequence[Found], about: dict[str, Any]) -> dict[str, Any]:
    """What `<study>.json` holds."""
    runs = [run for each in found for run in each.all_runs()]
    chains = {run.unit for run in runs if isinstance(run.unit, Chain)}
    about = {"seeds": sorted({run.seed for run in runs}), **about} | ({"chains": len(chains)} if chains else {})
    values = record(study, found, **about)
    if study.name == COST.name:
        values["rows"] = {each.target.title: cost_rows(each) for each in found}
    return values | {"verdict": conclusions(values)}


def _write(study: Study, found: Sequence[Found], out: Path, about: dict[str, Any]) -> str:
    """Write `<study>.md`, `.csv`, `.json`, `.png` and `.svg`, and return the Markdown; nothing when there is nothing.

    What an earlier command wrote and this does not show is kept beside it.
    """
    if not found:
        return ""
    runs = [run for each in found for run in each.all_runs()]
    values = _record(study, found, about)
    if study.name == COST.name:
        text, pictures = cost_markdown(values["rows"]), draw_cost(values["rows"])
    else:
        text, pictures = markdown(study, found, about["protocol"]), draw(found, caption(found, about["protocol"]))
    text = "\n\n".join([text.rstrip("\n"), *values["verdict"]]) + "\n"
    trained = frozenset(Trained(run.arm.title, run.seed, run.result.fingerprint, run.unit) for run in runs)
    if aside := make_room(out, study.name, trained):
        kept, name = out / f"{aside}.md", study.name
        say.warning(
            "the %s that was there is of other settings or data, which one table does not mix: see %s", name, kept
        )
    for ending, content in {"md": text.encode(), "csv": run_rows(found).encode(), **pictures}.items():
        durable.write_bytes(out / f"{study.name}.{ending}", content)
    durable.write_json(out / f"{study.name}.json", values)
    sweep(out, study.name, trained)
    return text
