"""One process of several: what the launcher says (torchrun, deepspeed, srun), and the groups they talk in."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from sdfast.durable import sha256_file, sha256_json
from sdfast.errors import UserError
from sdfast.ranks import Ranks, control_group, talk_in

LAST_WORDS = 10.0  # seconds in which a process says why it ends
_PATIENCE = datetime.timedelta(days=7)  # of processes that wait for the first one's work, however long that takes
_met = False  # whether this has been one of several processes


@dataclass(frozen=True)
class LaunchInfo:
    """Which process of how many this is, and which on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def launch_info(environment: Mapping[str, str] = os.environ) -> LaunchInfo:
    """What the launcher put into the environment; one process alone where there was none.

    Read are the variables of torchrun and of the deepspeed launcher (RANK, WORLD_SIZE, LOCAL_RANK) and those that srun
    gives the tasks of a step (not those of the batch script, which is one process whatever the job has).

    Raises:
        UserError: variables that do not fit each other.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            found = LaunchInfo(rank, world, int(environment.get("LOCAL_RANK", rank)))
        elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
            local = int(environment.get("SLURM_LOCALID", 0))
            found = LaunchInfo(int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]), local)
        else:
            return LaunchInfo()
    except ValueError as error:
        raise UserError(
            f"the launcher's variables RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error})."
        ) from None
    if not 0 <= found.rank < found.world:
        raise UserError(f"the launcher gave RANK={found.rank} of WORLD_SIZE={found.world}; launch with torchrun.")
    return found


def join(device: torch.device, alone: bool = False) -> Ranks:
    """Meet the other processes of this launch, once.

    Args:
        device: of this process; NCCL carries what GPUs exchange, gloo the rest.
        alone: form a group of one too, which DeepSpeed asks for.

    Raises:
        UserError: the launcher did not say where they meet.
        RunError: another process did not come.
    """
    global _met
    here = launch_info()
    if here.world == 1 and not alone:
        return Ranks()
    if not dist.is_initialized():
        index = _index(device, here)
        options: dict[str, Any] = {"store": _own_store()} if here.world == 1 else {}
        if here.world > 1:
            _name_meeting_point(os.environ)
            _met = True
        backend = "gloo" if index is None else "cpu:gloo,cuda:nccl"
        if index is not None:
            torch.cuda.set_device(index)
        dist.init_process_group(backend, rank=here.rank, world_size=here.world, **options)
        talk_in(dist.new_group(backend="gloo", timeout=_PATIENCE))
        if here.world > 1:
            _outlive_the_launcher()
    return Ranks.current()


def _outlive_the_launcher() -> None:
    """Have SIGTERM end this process after `LAST_WORDS`: a launcher sends it as soon as another process has died, which
    may be before this one has said so.

    Whoever handles the signal already goes on doing so.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        ending = threading.Timer(LAST_WORDS, os._exit, (128 + number,))
        ending.daemon = True
        ending.start()

    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, handle)


def _own_store() -> dist.Store:
    """Where a group of one meets.

    Raises:
        UserError: torch has none on this system.
    """
    if sys.platform == "win32":
        raise UserError("DeepSpeed in a process alone needs what torch does not have on Windows; leave --zero out.")
    return dist.HashStore()


def _index(device: torch.device, here: LaunchInfo) -> int | None:
    """Which GPU a device is, `cuda` alone being this process's; None of a CPU."""
    if device.type != "cuda":
        return None
    if device.index is not None:
        return device.index
    return here.local_rank if here.world > 1 else torch.cuda.current_device()


def name_local_rank(device: torch.device) -> bool:
    """Put this process's LOCAL_RANK, which DeepSpeed asks for, into the environment.

    Returns:
        Whether no launcher had: it is then to be taken out again, or else what asks it later in this process, such as
        Hugging Face's Trainer, takes itself for one of several processes.
    """
    if "LOCAL_RANK" in os.environ:
        return False
    here = launch_info()
    index = _index(device, here)
    os.environ["LOCAL_RANK"] = str(here.local_rank if index is None else index)
    return True


def code() -> dict[str, str]:
    """What computes in this process, by name: the version of torch, and a digest of this package's own files."""
    own = Path(__file__).parent
    files = sorted((*own.rglob("*.py"), *own.glob("lib/*.so")))
    digest = sha256_json({file.relative_to(own).as_posix(): sha256_file(file) for file in files})
    return {"the code of sdfast": digest, "the version of torch": torch.__version__}


def leave() -> None:
    """End the groups that `join` made, when every process is here."""
    group = control_group()
    if group is not None and dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # one that failed is not waited for
            dist.barrier(group=group)
        theirs = sys.modules.get("deepspeed.comm")  # it remembers groups, which the next engine would be given
        (theirs if theirs is not None and theirs.is_initialized() else dist).destroy_process_group()
        talk_in(None)


def end(code: int) -> NoReturn:
    """End this process, one of several or alone.

    Threads of gloo may outlive its groups and then abort an interpreter that is being taken apart, when everything has
    been done (pytorch#179291): one of several does what is to be done at its exit, and leaves the rest to the system.
    """
    if not _met:
        raise SystemExit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def may_speak() -> bool:
    """Whether this process is the one that says how the job ended: the first to ask."""
    if launch_info().world == 1:
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("sdfast/speaker", 1) == 1
    except (RuntimeError, ValueError):  # the processes never met, or their meeting point is gone
        return True


def _name_meeting_point(environment: Any) -> None:
    """MASTER_ADDR and MASTER_PORT, which srun leaves to its tasks: the step's first machine, a port by the job."""
    if "MASTER_ADDR" not in environment:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
        if not nodes:
            raise UserError("the launcher did not set MASTER_ADDR and MASTER_PORT; launch with torchrun or srun.")
        environment["MASTER_ADDR"] = first_machine(nodes)
    if "MASTER_PORT" not in environment:
        numbers = [int(environment.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        environment["MASTER_PORT"] = str(20_000 + (numbers[0] + 101 * numbers[1]) % 20_000)


def first_machine(nodes: str) -> str:
    """The first name of a SLURM list, such as n07 of `n[07-12,20],login1`."""
    head = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^\[,]*))?", nodes)
    assert head is not None
    return head[1] + (head[2] or "") + (head[3] or "")
