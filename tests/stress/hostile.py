"""Inputs that no user means well: each is read or refused in a sentence, in bounded time and memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from stress import hostile_models, server
from stress.hostile_files import Write
from stress.hostile_images import image_inputs
from stress.hostile_texts import text_inputs
from stress.judge import Case, Verdict, ill, refusal, title
from stress.scenes import KINDS, STEPS, Workplace

MEGABYTES = 1500.0  # of its own, that a command may take
_SECONDS = 40.0


def cases() -> Iterator[Case]:
    """Every hostile input, by the commands that read it."""
    for kind, inputs in (("images", image_inputs()), ("texts", text_inputs())):
        model, data, _ = KINDS[kind]
        train = ("train", "--model", model, "--out", "run", *STEPS, "data.max_broken=0.5")
        for name, (spec, write) in inputs.items():
            yield _case(kind, "train", name, f"{kind}-new", write, (*train, "--data", spec))
            yield _case(kind, "eval", name, f"{kind}-finished", write, ("eval", "--out", "run", "--data", spec))
        for name, write in hostile_models.of(kind).items():
            words = ("train", "--model", "evil", "--data", data, "--out", "run", *STEPS, "--stage", "pretrain")
            yield _case(kind, "train", f"model: {name}", f"{kind}-new", write, words)
    for name, (words, write) in hostile_models.CONFIGURATIONS.items():
        argv = ("train", "--model", "model", "--data", "data", "--out", "run", *STEPS, "--stage", "pretrain")
        yield _case("images", "train", f"configuration: {name}", "images-new", write, (*argv, *words))
    for name, words in hostile_models.PLACES.items():
        yield _case("images", title(words), f"place: {name}", "images-finished", _nothing, words)


def _nothing(folder: Path) -> None:
    (folder / "evil").write_text("a file\n")


def _case(kind: str, command: str, name: str, state: str, write: Write, argv: tuple[str, ...]) -> Case:
    return Case("hostile inputs", f"hostile {kind}/{command}: {name}", functools.partial(_try, state, write, argv))


def _try(state: str, write: Write, argv: tuple[str, ...], place: Workplace) -> list[Verdict]:
    place.put(state)
    write(place.folder)
    outcome = server.run(argv, place.folder, seconds=_SECONDS, megabytes=MEGABYTES)
    if outcome.code:
        verdict = refusal(outcome)
    else:
        fault = ill(outcome)
        verdict = Verdict(title(argv), "right" if fault is None else "wrong", fault or "")
    if (place.folder / "pickled").exists():
        verdict = Verdict(title(argv), "wrong", "ran what a pickle or a configuration told it to")
    return [Verdict(title(argv), verdict.kind, verdict.why)]
