"""Every GPU path of sdfast, checked and timed on the card at hand, in two calls of a few minutes each:

    python benchmarks/gpu_suite.py --call 1 --out DIR     first contact: does all of it work, and the step that matters
    python benchmarks/gpu_suite.py --call 2 --out DIR     everything else, after repairs
    python benchmarks/gpu_suite.py --render DIR...        the table, from the rows alone
    python benchmarks/gpu_suite.py --publish DIR...       the same into benchmarks/results/gpu_<card>.md and .json

Needs torch, triton, transformers, pytest and sdfast's own requirements, no network; uses xformers and deepspeed where
they are. Every row is in DIR/rows.jsonl as soon as it is measured; DIR/suite.json and suite.md are made out of the
rows. Each arm of a step has a process of its own and a time of its own. `--quick` runs it all on tiny sizes without
compiling; with `--device cpu` that works anywhere. Exit code: 0; 1 when something went wrong or a check was missed; 2
for what cannot be run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gpu_parts import collect, plan, publish, render, rows, runner  # noqa: E402 (the path comes first)


def main() -> int:
    began = time.monotonic()
    options = parse()
    try:
        if options.render:
            print(render.markdown(collect.suite(read(options.render))), end="")
            return 0
        if options.publish:
            print(*publish.publish(read(options.publish), HERE / "results"), sep="\n")
            return 0
        return measure(options, began)
    except rows.UsageError as error:
        print(error, file=sys.stderr)
        return 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", type=int, choices=sorted(plan.WORK), help="which of the two")
    parser.add_argument("--out", type=Path, default=Path("gpu_suite"), metavar="DIR", help="where the files go")
    parser.add_argument("--seconds", type=float, help="stop after so many (call 1: 280, call 2: 410)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing compiled")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=plan.PARTS, nargs="+", help="these parts alone, of one call or of both")
    parser.add_argument("--render", type=Path, nargs="+", metavar="DIR", help="print the table of earlier calls")
    parser.add_argument("--publish", type=Path, nargs="+", metavar="DIR", help="write it to benchmarks/results")
    options = parser.parse_args()
    if not (options.call or options.only or options.render or options.publish):
        parser.error("say which call: --call 1 or --call 2 (or --only PART, --render DIR, --publish DIR).")
    if options.device == "cpu" and not (options.quick or options.render or options.publish):
        parser.error("on a CPU the suite only runs with --quick.")
    return options


def read(folders: list[Path]) -> list[rows.Row]:
    """The rows of earlier calls; in a later folder they replace an earlier one's."""
    found = rows.read_all(folders)
    if not found:
        raise rows.UsageError(f"there are no rows in {', '.join(str(folder / rows.NAME) for folder in folders)}.")
    return found


def measure(options: argparse.Namespace, began: float) -> int:
    path = options.out / rows.NAME
    if path.exists():
        raise rows.UsageError(f"{path} has the rows of an earlier run; name another folder.")
    prepare_environment()
    tasks = plan.chosen(options.call, options.quick, options.only)
    threads = runner.import_parts(list(dict.fromkeys(task.part for task in tasks)))
    runner.warm_first(tasks, options.device)
    processes = runner.process_kind(options.device)
    if processes is None:
        raise rows.UsageError("torch finds no CUDA device here; `--quick --device cpu` tries the suite without one.")
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = began + (options.seconds or plan.DEADLINES.get(options.call, plan.DEADLINES[2]))
    suite = runner.Suite(options.device, options.quick, path, began, deadline, processes, threads)
    facts = {"call": options.call, "quick": options.quick, "device": options.device, "started": time.time()}
    suite.keep(
        {"part": "suite", **facts, "processes": processes.get_start_method(), "seconds": time.monotonic() - began}
    )
    shown = 0

    def after() -> None:
        nonlocal shown
        found = rows.read(path)
        for row in found[shown:]:
            if said := render.line(row):
                print(said, flush=True)
        shown = len(found)
        summarise(found, options.out)

    runner.run(suite, tasks, after)
    return finish(rows.read(path))


def prepare_environment() -> None:
    """What has to be set before torch is imported: caches that the processes share, and no CUDA in this one."""
    folder = Path(tempfile.gettempdir()) / f"gpu-suite-{os.getuid()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # whether there is a card is asked without the driver


def summarise(found: list[rows.Row], folder: Path) -> None:
    """The files that are made out of the rows."""
    suite = collect.suite(found)
    rows.write_whole(folder / "suite.json", json.dumps(suite, indent=1))
    rows.write_whole(folder / "suite.md", render.markdown(suite))


def finish(found: list[rows.Row]) -> int:
    """Say what was found, the aims last; the exit code."""
    suite: dict[str, Any] = collect.suite(found)
    print(render.targets(suite["derived"]))
    problems = collect.found_wrong(suite["parts"])
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
