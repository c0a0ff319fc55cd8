"""The machine code of the CUDA part, read without a device: no kernel may put its variables into local memory."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sdfast.ops import native

CUDA = native.build_metadata().get("cuda", {})
LIBRARY = native.LIB_DIR / "libsdfast_cuda.so"
# As CMake names them: 90-virtual is PTX alone, 90 is both.
REAL = {name.removesuffix("-real") for name in CUDA.get("architectures", []) if not name.endswith("-virtual")}
KERNELS = {"both_parts<float>", "both_parts<double>", "count_rows"}

pytestmark = [
    pytest.mark.skipif(
        not CUDA.get("built", False), reason=f"no CUDA part: {CUDA.get('why_not', 'nothing was built')}"
    ),
    pytest.mark.skipif(not REAL, reason=f"no machine code, only {CUDA.get('architectures')}"),
]


@pytest.fixture(scope="module")
def cuobjdump() -> str:
    """Triton's, since it comes with torch, or that of a CUDA toolkit on PATH."""
    triton = importlib.util.find_spec("triton")
    carried = Path(str(triton.origin)).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if triton else None
    found = str(carried) if carried and carried.is_file() else shutil.which("cuobjdump")
    if found is None:
        pytest.skip("cuobjdump is neither in triton nor on PATH")
    return found


def by_architecture(command: list[str]) -> dict[str, str]:
    """{architecture: all that the command says of its machine code}."""
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found: dict[str, str] = {}
    for part in re.split(r"^Fatbin (?=elf|ptx)", text, flags=re.MULTILINE):
        if part.startswith("elf"):
            architecture = re.search(r"arch = sm_(\w+)", part)
            assert architecture is not None, part
            found[architecture[1]] = found.get(architecture[1], "") + part
    assert found.keys() == REAL or REAL & {"native", "all", "all-major"}
    return found


def kernel_name(mangled: str) -> str:
    name = re.search(r"both_partsI[fd]E|count_rows|probe", mangled)
    assert name is not None, f"a kernel that this test does not know: {mangled}"
    return {"both_partsIfE": "both_parts<float>", "both_partsIdE": "both_parts<double>"}.get(name[0], name[0])


def test_no_kernel_has_a_stack_frame(cuobjdump: str) -> None:
    code = by_architecture([cuobjdump, "-res-usage", str(LIBRARY)])
    for architecture, text in code.items():
        usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
        kernels = {kernel_name(name): (int(stack), int(local)) for name, _, stack, local in usage}
        assert kernels.keys() >= KERNELS, architecture
        assert {name: used for name, used in kernels.items() if used != (0, 0)} == {}, architecture
        registers = {kernel_name(name): int(count) for name, count, _, _ in usage}
        assert registers["both_parts<float>"] <= 64, architecture  # or fewer than four blocks fit a multiprocessor


def test_no_kernel_loads_or_stores_local_memory(cuobjdump: str) -> None:
    code = by_architecture([cuobjdump, "-sass", str(LIBRARY)])
    for architecture, text in code.items():
        assert "STG.E.128" in text, architecture  # instructions are told apart by these names
        assert re.findall(r"\b(?:LDL|STL)\b.*", text) == [], architecture
