"""Every GPU path of sdfast, checked and timed on the card at hand: `python benchmarks/gpu_suite.py [--out FILE.json]`.

Under nine minutes on an H100, without network; needs torch, triton, transformers and sdfast's own requirements, and
uses xformers when it is there. Each part runs in a process of its own with a time of its own: what fails, crashes or
takes too long is recorded, and the next part begins. The JSON is written after every part, and the table beside it.
`--render FILE.json` prints the table again. `--quick` runs every part on tiny sizes without compiling; with
`--device cpu` that works anywhere. Exit code: 0; 1 when something went wrong or a check was missed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

if TYPE_CHECKING:
    from gpu_parts.context import Context

from gpu_parts import derived, render  # noqa: E402 (the path comes first; the other parts need torch and more)

# In this order, each with its share of the time; what one does not need, the next ones have.
PARTS = {
    "environment": 25,
    "correctness": 115,
    "steps": 230,
    "profile": 45,
    "attention": 25,
    "losses": 45,
    "zero": 40,
}
GRACE = 8.0  # seconds from the end of a part's time until it is stopped
LEAST = 5.0  # a part is not begun with less
TOTAL = 530.0
EXPECTED = ("out of memory", "not reached")  # of a point too large, or too late in the list


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_suite.json"), help="where the JSON goes")
    parser.add_argument(
        "--render", type=Path, metavar="FILE.json", help="print the table of an earlier run, and no more"
    )
    parser.add_argument("--quick", action="store_true", help="every part on tiny sizes, nothing compiled")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=PARTS, nargs="+", help="these parts (and the environment) alone")
    options = parser.parse_args()
    if options.render is not None:
        print(render.markdown(json.loads(options.render.read_text("utf-8"))), end="")
        return 0
    if options.device == "cpu" and not options.quick:
        parser.error("on a CPU the suite only runs with --quick.")
    if process_kind(options.device) is None:
        print("torch finds no CUDA device here; `--quick --device cpu` tries the suite without one.", file=sys.stderr)
        return 2
    import_parts()
    processes = process_kind(options.device)  # again: what was imported may have touched the GPU
    wanted = [name for name in PARTS if not options.only or name in options.only or name == "environment"]
    suite = run(wanted, options, processes)
    print(render.markdown(suite))
    problems = found_wrong(suite["parts"])
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if problems else 0


def run(wanted: list[str], options: argparse.Namespace, processes: Any) -> dict[str, Any]:
    """Part after part; the files are written after each. With fewer parts each has the more time."""
    from gpu_parts.context import Context

    end = time.monotonic()
    suite: dict[str, Any] = {"quick": options.quick, "seconds": {}, "parts": {}}
    for name in wanted:
        began = time.monotonic()
        end += TOTAL * PARTS[name] / sum(PARTS[each] for each in wanted)
        seconds = end - began
        measured = suite["parts"].get("environment", {})
        context = Context(options.device, options.quick, seconds - GRACE, environment=measured)
        suite["parts"][name] = in_a_process(processes, name, seconds, context)
        suite["seconds"][name] = time.monotonic() - began
        suite["derived"] = derived.derive(suite["parts"])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write(options.out, json.dumps(finite(suite), indent=1))
        write(options.out.with_suffix(".md"), render.markdown(suite))
    return suite


def in_a_process(processes: Any, name: str, seconds: float, context: Context) -> dict[str, Any]:
    """A part's result; with `part_error` where it did not end by itself and well."""
    if seconds < LEAST:
        return {"part_error": "not reached: the suite's time was spent"}
    with tempfile.TemporaryDirectory() as folder:
        context.folder = Path(folder)
        path = Path(folder) / "result.json"
        process = processes.Process(target=child, args=(name, context, path))
        process.start()
        process.join(seconds)
        stopped = process.is_alive()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # what it started, too: the compiler keeps helpers
        process.join()
        result = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if stopped:
        result["part_error"] = f"stopped after {seconds:.0f} s"
    elif process.exitcode:
        result.setdefault("part_error", f"its process ended with exit code {process.exitcode}")
    return result


def import_parts() -> None:
    """Everything that the parts need, once, before their processes are forked."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for name in ("torch._dynamo", *(f"gpu_parts.{part}" for part in PARTS)):
        importlib.import_module(name)


def child(name: str, context: Context, path: Path) -> None:
    """Run a part, writing what there is each time it yields."""
    import torch

    os.setsid()
    gc.freeze()  # what was imported is not looked through again at every collection
    context.started = time.monotonic()
    result: dict[str, Any] = {}
    if context.quick:
        torch.compiler.set_stance("force_eager")
    try:
        for result in importlib.import_module(f"gpu_parts.{name}").run(context):
            write(path, json.dumps(finite(result)))
    except Exception as error:
        traceback.print_exc()
        write(path, json.dumps(finite(result | {"part_error": f"{type(error).__name__}: {error}"[:500]})))
        sys.exit(1)


def process_kind(device: str) -> Any:
    """How the parts' processes begin: forked, so that everything is imported once, or new where that fails.

    This process must not touch the GPU to be forked; an imported package may have done so. None without a GPU.
    """
    for kind in ("fork", "spawn"):
        processes = multiprocessing.get_context(kind)
        process = processes.Process(target=touch, args=(device,))
        process.start()
        process.join()
        if process.exitcode == 0:
            return processes
    return None


def touch(device: str) -> None:
    """Exit code 0 when a tensor can be made on the device."""
    try:
        import torch

        torch.zeros(1, device=device)
    except Exception:  # whatever torch says: there is none to be had
        os._exit(1)
    os._exit(0)


def found_wrong(parts: dict[str, Any]) -> list[str]:
    """Parts that did not end well, failed tests, checks that were missed. A baseline that is faster is no error."""
    wrong = [f"{name}: {part['part_error']}" for name, part in parts.items() if "part_error" in part]
    for name, point in parts.get("steps", {}).get("points", {}).items():
        rows = {"": point, **point.get("arms", {})}
        said = ((arm, row["error"]) for arm, row in rows.items() if "error" in row)
        wrong += [f"steps, {name}, {arm}: {error}" for arm, error in said if not error.startswith(EXPECTED)]
    for name, rows in parts.get("zero", {}).get("points", {}).items():
        said = ((way, row["error"]) for way, row in rows.items() if "error" in row)
        wrong += [f"zero, {name}, {way}: {error}" for way, error in said if not error.startswith(EXPECTED)]
    wrong += [f"test {said}" for said in parts.get("correctness", {}).get("tests", {}).get("failed", [])]

    def missed(value: Any, where: str) -> Iterator[str]:
        if isinstance(value, dict):
            if value.get("met") is False:
                yield where
            for key, inner in value.items():
                yield from missed(inner, f"{where}, {key}")

    return wrong + [f"missed: {where}" for where in missed(parts.get("correctness", {}), "correctness")]


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(path: Path, text: str) -> None:
    """Beside it first, so that a reader never finds a half."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
