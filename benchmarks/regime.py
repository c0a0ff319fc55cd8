"""A cell of the registered grid of `results/studies/regime.md`, run with one command.

python benchmarks/regime.py main                      # the headline; then says whether it agrees with the committed one
python benchmarks/regime.py unlabelled --jobs 1       # any other; what has to be trained or made before is, once
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regime_table import HEADLINE, RESULTS, same

ROOT = Path(__file__).parent.parent
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package dataset-fashion-mnist has it
COMMITTED = RESULTS / "starts"  # what the headline starts from: 78 minutes of a core

C = (
    "pretrain.steps=1000 pretrain.lr=5e-4 distill.steps=1000 distill.lr=5e-4 finetune.steps=400"
    " finetune.lr=3e-4 engine.precision=bf16"
)
ARMS = "fine-tuning,further pre-training,self-distillation"
MORE = "fine-tuning,self-distillation (all tokens),LoRA,linear probe,kNN"
START = (
    "pretrain.steps=12000 pretrain.batch_size=128 pretrain.lr=1e-3 pretrain.warmup=0.05 pretrain.weight_decay=0.05"
    " engine.precision=bf16"
)


@dataclass(frozen=True)
class Cell:
    """A study of the grid.

    Attributes:
        data: of the target, in the folder that `recipes/study_images.py` writes.
        chains: whole ones.
        start: of `STARTS`; the bundled model when empty.
        study: as `sdfast study` calls it.
        options: of the command.
        rows: how many of train have a label, and how many there are.
        seeds: fine-tunings of a chain.
        beside: the cell in whose folder it is, and with which it shares stages; one of its own when empty.
    """

    data: str
    chains: int
    start: str = ""
    study: str = "compare"
    options: str = f'--methods "{ARMS}"'
    rows: str = "data.limit=100"
    seeds: int = 2
    beside: str = ""

    def command(self, folder: Path, start: Path | None, out: Path, jobs: int) -> list[str]:
        """The arguments of `sdfast`; `start` is None for the bundled model."""
        model = ["--model", str(start)] if start else []
        units = ["--chains", str(self.chains), "--seeds", str(self.seeds), "--jobs", str(jobs)]
        data = ["--data", str(folder / self.data), "--out", str(out)]
        return ["study", self.study, *model, *data, *units, *shlex.split(self.options), self.rows, *C.split()]


STARTS = {"in-domain": "fashion/pool", "shifted": "fashion/shifted-pool"}

CELLS = {
    HEADLINE: Cell("fashion/target", 16, "in-domain"),
    "main-more": Cell("fashion/target", 6, "in-domain", options=f'--methods "{MORE}"', beside=HEADLINE),
    "lengths": Cell("fashion/target", 6, "in-domain", "lengths", "--points 250,500,1000,2000", beside=HEADLINE),
    **{f"labels-{n}": Cell("fashion/target", 4, "in-domain", rows=f"data.limit={n}", seeds=1) for n in (50, 500)},
    "unlabelled": Cell("fashion/target", 10, rows="data.labelled_limit=100"),
    "shifted": Cell("fashion/shifted-target", 8, "shifted"),
}


def start_of(name: str, folder: Path, out: Path) -> Path:
    """The committed start, or one that is trained now, as it is registered; nothing is trained twice."""
    if (COMMITTED / name).is_dir():
        return Path(os.path.relpath(COMMITTED / name))  # a study's record has the command in it
    run = out / "starts" / name
    sdfast(["train", "--stage", "pretrain", "--data", str(folder / STARTS[name]), "--out", str(run), *START.split()])
    return run / "pretrain" / "model"


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


def make_fashion(folder: Path, source: Path) -> None:
    """Fashion-MNIST as the cells take it.

    Raises:
        SystemExit: its files are not there.
    """
    if (folder / "fashion").is_dir():
        return
    if not (source / "train-images-idx3-ubyte.gz").is_file():
        raise SystemExit(
            f"{source} has no Fashion-MNIST: name the folder of its four .gz files with --fashion (Debian's package"
            " dataset-fashion-mnist has them, and github.com/zalandoresearch/fashion-mnist)."
        )
    recipe = [str(ROOT / "recipes" / "study_images.py"), "--out", str(folder), "fashion", str(source)]
    succeed([sys.executable, *recipe])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", choices=CELLS)
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of the four files of Fashion-MNIST")
    parser.add_argument("--data", type=Path, default=Path("study-images"), help="what recipes/study_images.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/regime"), help="a folder below it for each cell")
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time")
    options = parser.parse_args(arguments)
    cell = CELLS[options.cell]
    make_fashion(options.data, options.fashion)
    start = start_of(cell.start, options.data, options.out) if cell.start else None
    out = options.out / (cell.beside or options.cell)
    sdfast(cell.command(options.data, start, out, options.jobs))
    if options.cell == HEADLINE and (RESULTS / HEADLINE).is_dir():
        print(same(out / f"{cell.study}.json", RESULTS / HEADLINE)[0])


if __name__ == "__main__":
    main()
