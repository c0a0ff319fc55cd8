"""Small models, small data, and run directories in the states that are attacked."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_fixtures import write_images, write_model
from text_fixtures import write_text_model, write_texts

from stress import calls, server
from stress.files import contents, differing

STEPS = (
    *(f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=3", "batch_size=4")),
    "engine.checkpoint_steps=1",
    "engine.log_every=1",
)
WHOLE = "data.max_broken=0"  # a file that cannot be read is refused, in place of left out with a word
KINDS = {"images": ("model", "data", "more"), "texts": ("text-model", "text-data", "more-texts")}


@dataclass
class Command:
    """A command, what it works on, and what it leaves when nothing disturbs it.

    Attributes:
        name: of it in the tables.
        argv: its words.
        start: the state that it works on.
        truth: what lies in its working directory after it, in the words of `contents`.
        stdout: what it prints.
        calls: its system calls on what lies there.
        volatile: files that two undisturbed runs write differently; nothing is said of them.
        older: what it does where the newest checkpoint is damaged: it takes the one before, and says so.
    """

    name: str
    argv: tuple[str, ...]
    start: str
    truth: dict[str, Any] = field(default_factory=dict)
    stdout: str = ""
    calls: list[calls.Call] = field(default_factory=list)
    volatile: list[str] = field(default_factory=list)
    older: Command | None = None


def train(kind: str, *more: str) -> tuple[str, ...]:
    """The words that train all stages on images or texts."""
    model, data, _ = KINDS[kind]
    return ("train", "--model", model, "--data", data, "--out", "run", *STEPS, WHOLE, *more)


def commands(kind: str) -> list[Command]:
    """What is attacked on images or texts."""
    model, data, more = KINDS[kind]
    study = ("study", "compare", "--model", model, "--data", data, "--out", "study", "--seeds", "1", *STEPS, WHOLE)
    return [
        Command("train", train(kind), f"{kind}-new"),
        Command("train resumed", train(kind), f"{kind}-interrupted"),
        Command("train again", train(kind), f"{kind}-finished"),
        Command("train anew", train(kind, "seed=1"), f"{kind}-finished"),
        Command("eval", ("eval", "--out", "run"), f"{kind}-finished"),
        Command("eval --data", ("eval", "--out", "run", "--data", more), f"{kind}-finished"),
        Command("export", ("export", "--out", "run", "--to", "to"), f"{kind}-finished"),
        Command(
            "export unfinished",
            ("export", "--out", "run", "--to", "to", "--stage", "distill"),
            f"{kind}-interrupted",
        ),
        Command("cache build", ("cache", "build", "--out", "run", "--rebuild"), f"{kind}-finished"),
        Command("cache info", ("cache", "info", "--out", "run"), f"{kind}-finished"),
        Command("cache verify", ("cache", "verify", "--out", "run"), f"{kind}-finished"),
        Command("study", (*study, "--methods", "fine-tuning,self-distillation"), f"{kind}-new"),
    ]


class Workplace:
    """A working directory that is put into a state before each case, always at the same path."""

    def __init__(self, folder: Path, states: Path) -> None:
        self.folder, self.states = folder, states
        if not folder.exists():
            shutil.copytree(states / "inputs", folder)

    def put(self, state: str) -> None:
        """Start from a state again."""
        for path in self.folder.iterdir():
            if (self.states / "inputs" / path.name).exists():
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if (self.states / state).exists():
            shutil.copytree(self.states / state, self.folder, dirs_exist_ok=True, symlinks=True)

    def keep(self, state: str) -> None:
        """What commands have made here becomes a state."""
        inputs = {path.name for path in (self.states / "inputs").iterdir()}
        shutil.copytree(
            self.folder, self.states / state, ignore=lambda at, names: inputs if at == str(self.folder) else ()
        )


def write_inputs(folder: Path) -> None:
    """The models and data."""
    write_model(folder / "model")
    write_images(folder / "data", train=6, test=4)
    write_images(folder / "more", train=0, test=3, side=18)
    write_text_model(folder / "text-model")
    write_texts(folder / "text-data", train=12, test=8)
    write_texts(folder / "more-texts", train=0, test=6)
    _write_parquet(folder / "parquet", folder / "data")


def _write_parquet(folder: Path, images: Path) -> None:
    import pyarrow.parquet  # which starts a thread

    folder.mkdir()
    pictures = [path.read_bytes() for path in sorted(images.rglob("*.png"))]
    for column, values in (("image", pictures), ("text", [f"word{number}" for number in range(len(pictures))])):
        labels = [number % 2 for number in range(len(values))]
        pyarrow.parquet.write_table(pyarrow.table({column: values, "label": labels}), folder / f"{column}.parquet")


def import_what_commands_do(place: Workplace) -> None:
    """Have the process that forks import what the commands import."""
    for kind in KINDS:
        place.put(f"{kind}-new")
        for command in commands(kind):
            if command.name in ("train", "eval", "export", "cache verify", "study"):
                server.prepare(done(place, command).modules)


def write_states(place: Workplace) -> None:
    """Run directories that are finished, and that were killed in the middle of distill."""
    for kind in KINDS:
        place.put(f"{kind}-new")
        trained = next(command for command in commands(kind) if command.name == "train")
        outcome = done(place, trained, attack=[])
        for words in (("eval", "--out", "run"), ("cache", "verify", "--out", "run")):
            done(place, Command(words[0], words, ""))
        place.keep(f"{kind}-finished")
        lines = [
            call for call in calls.recorded(outcome.trace, place.folder) if call.path == "run/distill/metrics.jsonl"
        ]
        last = [call for call in lines if call.name == "write"][-1]
        place.put(f"{kind}-new")
        killed = server.run(trained.argv, place.folder, calls.killing(last))
        if killed.code != 137:
            raise RuntimeError(f"the run to be interrupted ended with {killed.code}: {killed.stderr}")
        place.keep(f"{kind}-interrupted")


def learn(place: Workplace, command: Command) -> None:
    """Run a command twice undisturbed: what it prints, leaves and calls."""
    place.put(command.start)
    outcome = done(place, command, attack=[])
    command.calls, command.stdout, command.truth = (
        calls.recorded(outcome.trace, place.folder),
        outcome.stdout,
        contents(place.folder),
    )
    place.put(command.start)
    done(place, command)
    command.volatile = differing(command.truth, contents(place.folder))


def learn_older(place: Workplace, command: Command) -> None:
    """What a command does with the checkpoint before the newest."""
    place.put(command.start)
    newest = max(place.folder.glob("run/*/checkpoints/step-*"))
    shutil.rmtree(newest)
    outcome = done(place, command)
    made = {name: value for name, value in contents(place.folder).items() if not name.startswith("run/")}
    command.older = Command(command.name, command.argv, command.start, command.truth | made, outcome.stdout)


def done(place: Workplace, command: Command, attack: Sequence[str] | None = None) -> server.Outcome:
    """Run a command that nothing disturbs; it has to end well."""
    outcome = server.run(command.argv, place.folder, attack, seconds=600)
    if outcome.code:
        raise RuntimeError(f"sdfast {' '.join(command.argv)} ends with {outcome.code} undisturbed: {outcome.stderr}")
    return outcome
