"""The floor plan, read from the imports: rooms depend on those below them, and nothing goes round in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USERS = {"sdfast", "sdfast.pipeline"}  # the face of the package, which loads Pipeline when it is asked for it

SEAMS = ("images", "texts")
PARTS = ("model", "families", "checkpoint", "pack", "near", "masking")
PARTS += ("objectives", "teacher", "costs", "portable", "shown", "modality")
SEAM = set(PARTS)


def modules() -> dict[str, Path]:
    """Name -> file of every module of the package."""
    found = {}
    for path in (ROOT / "sdfast").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """The package's modules that are imported anywhere in a file, in functions and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module -> modules it imports; the face itself is left out."""
    known = modules()
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in known.items() if name != "sdfast"}
    return {name: set(imported(tree, known)) - {name, "sdfast"} for name, tree in trees.items()}


def test_no_module_imports_itself_by_way_of_others(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def room_of(module: str) -> str:
    """`sdfast.data.idx` -> `data`."""
    return module.split(".")[1]


def test_no_room_imports_itself_by_way_of_others(graph: dict[str, set[str]]) -> None:
    rooms: dict[str, set[str]] = {}
    for name, needs in graph.items():
        rooms.setdefault(room_of(name), set()).update({room_of(need) for need in needs} - {room_of(name)})
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_only_users_import_the_pipeline(graph: dict[str, set[str]]) -> None:
    importers = {name for name, needs in graph.items() if "sdfast.pipeline" in needs} - USERS
    assert {room_of(name) for name in importers} == {"cli"}


def test_images_and_texts_are_behind_one_seam(graph: dict[str, set[str]]) -> None:
    """Their folders have the same names, and but for what is of images alone others know them by `Modality`."""
    folders = {name: {path.stem for path in (ROOT / "sdfast/modalities" / name).glob("[!_.]*")} for name in SEAMS}
    assert folders["images"] & folders["texts"] == SEAM
    one = tuple(f"sdfast.modalities.{name}" for name in SEAMS)
    knowing = {name for name, needs in graph.items() if any(need.startswith(one) for need in needs)}
    others = {name for name in knowing if room_of(name) != "modalities"}
    assert others == {"sdfast.stages.bench", "sdfast.cli.main"}  # `sdfast bench`; what a folder's model was masked with


@pytest.mark.parametrize("room", ["losses", "ops"])
def test_losses_and_ops_import_torch_alone(room: str, graph: dict[str, set[str]]) -> None:
    known = modules()
    allowed = {"__future__", "torch", "sdfast", "triton"} | set(
        sys.stdlib_module_names
    )  # triton inside of its backends
    for name, needs in graph.items():
        if room_of(name) != room:
            continue
        assert {room_of(need) for need in needs} <= {"losses", "ops"}, name
        for node in ast.walk(ast.parse(known[name].read_text("utf-8"))):
            named = [node.module] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {str(each).partition(".")[0] for each in named} <= allowed | {"xformers"}, name


def test_importing_the_losses_loads_nothing_but_torch() -> None:
    code = "import sys, sdfast.losses; print(*sorted({n.partition('.')[0] for n in sys.modules} & set(sys.argv[1:])))"
    heavy = [
        "triton",
        "transformers",
        "pydantic",
        "numpy",
        "xformers",
        "deepspeed",
        "datasets",
        "yaml",
        "typer",
        "rich",
    ]
    before = subprocess.run(
        [sys.executable, "-c", code.replace("sdfast.losses", "torch"), *heavy],
        capture_output=True,
        text=True,
        check=True,
    )
    after = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert after.stdout == before.stdout
