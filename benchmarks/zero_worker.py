"""One process of a launch of `zero_setup.launched`: run by torchrun as `zero_worker.py FOLDER`.

FOLDER/task.json says what is measured. A set's rows go to FOLDER/<set>-<rank>.json. On a CPU each set of ways gets a
new process, forked here, where everything is imported; those of one set meet at a port of their own. What has touched
a GPU cannot be forked: there the sets follow each other in this process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from step_setup import Point, shape_of
from zero_setup import Task, measure

from sdfast import launch
from sdfast.engine.machine import freed_pages_kept
from sdfast.engine.zero import import_deepspeed
from sdfast.ranks import Ranks


def run_set(number: int, task: Task, ranks: Ranks, folder: Path) -> None:
    """Measure the ways of a set in this process, with its like in the other ranks."""
    small = Point(task.point.stage, "tiny", 2 * ranks.world, task.point.device)
    measure(task.sets[number], small, ranks, folder, 1)  # what first steps bring in is no growth of the measured ones
    rows = measure(task.sets[number], task.point, ranks, folder, task.rounds)
    path = folder / f"{number}-{ranks.rank}.json"
    path.with_suffix(".new").write_text(json.dumps(rows), encoding="utf-8")
    path.with_suffix(".new").replace(path)


def forked(number: int, task: Task, port: str, folder: Path) -> None:
    """A set in a new process, on the CPU."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    torch.set_num_threads(task.threads)
    ranks = launch.join(torch.device("cpu"), alone=True)
    with freed_pages_kept():
        run_set(number, task, ranks, folder)
    launch.leave()


def run_forked(task: Task, folder: Path) -> int:
    """Set after set in processes of their own; 1 as soon as one failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and with this process ends the forked one
    torch.set_num_threads(1)  # threads of a pool would be missing in a forked process
    for model in ("tiny", task.point.model):
        shape_of(model)  # makes and loads it
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    for number in range(len(task.sets)):
        if launch.launch_info().rank == 0:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                store.set(f"port {number}", str(free.getsockname()[1]))
        words = (number, task, store.get(f"port {number}").decode(), folder)
        process = multiprocessing.get_context("fork").Process(target=forked, args=words, daemon=True)
        process.start()
        process.join()
        if process.exitcode:
            return 1
    return 0


def main(folder: Path) -> int:
    """Exit code 0 when all was measured."""
    task = Task.read(folder / "task.json")
    transformers.utils.logging.disable_progress_bar()
    import_deepspeed(torch.device(task.point.device))
    if task.point.device == "cpu":
        return run_forked(task, folder)
    torch.set_num_threads(task.threads)
    ranks = launch.join(torch.device("cuda", launch.launch_info().local_rank), alone=True)
    for number in range(len(task.sets)):
        run_set(number, task, ranks, folder)
    launch.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
