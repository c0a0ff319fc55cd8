"""The lock, the build and the loading of the compiled core, as a new user meets them."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sdfast import _native

ROOT = Path(__file__).resolve().parent.parent
NOTHING_BUILT = not (_native.LIB_DIR / "build.json").is_file()
built = pytest.mark.skipif(NOTHING_BUILT, reason="installed with SDFAST_NO_EXT=1")
with_cuda_part = pytest.mark.skipif(
    not _native.build_metadata().get("cuda", {}).get("built", False),
    reason=f"no CUDA part: {_native.build_metadata().get('cuda', {}).get('why_not', 'nothing was built')}",
)


# --- the lock -------------------------------------------------------------------------------------------------------


def locked() -> dict[str, str]:
    """{name: version} of the lines that hold for this interpreter."""
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate():
            name = canonicalize_name(pin.name)
            assert name not in pins, f"{name} is pinned twice for this interpreter"
            pins[name] = str(pin.specifier).removeprefix("==")
    return pins


def needed(requirement: Requirement, seen: set[tuple[str, str]]) -> None:
    """Collect the names of `requirement` and of all that it asks for in turn, as far as it is installed."""
    if requirement.marker is not None and not requirement.marker.evaluate(default_environment() | {"extra": ""}):
        return
    for extra in ("", *requirement.extras):
        key = (canonicalize_name(requirement.name), extra)
        if key in seen:
            continue
        seen.add(key)
        try:
            children = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in children:
            child = Requirement(text)
            if child.marker is None or child.marker.evaluate(default_environment() | {"extra": extra}):
                child.marker = None
                needed(child, seen)


@functools.cache
def requirements_of_the_project() -> frozenset[str]:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [project["build-system"]["requires"], project["project"]["dependencies"]]
    groups += project["project"]["optional-dependencies"].values()
    seen: set[tuple[str, str]] = set()
    for text in (text for group in groups for text in group):
        needed(Requirement(text), seen)
    return frozenset(name for name, _ in seen) - {"sdfast"}


def test_every_package_in_every_depth_is_locked() -> None:
    names = requirements_of_the_project()
    assert len(names) > 80  # the walk went down: the project itself names about thirty
    assert sorted(names - locked().keys()) == []


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="only what make installed must equal the lock")
def test_the_environment_that_make_made_is_the_lock() -> None:
    pins = locked()
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # not what a package vendors
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions(path=folders)}
    wrong = {
        name: (version, pins.get(name))
        for name, version in installed.items()
        if name in requirements_of_the_project() and version != pins.get(name)
    }
    assert wrong == {}


def test_each_python_has_one_version_of_each_package() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in pins)
    for python in ("3.10", "3.11", "3.12", "3.13"):
        names = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
        assert len(names) == len(set(names)), python
        assert {"torch", "transformers", "numpy"} <= set(names), python


# --- the libraries that were built ----------------------------------------------------------------------------------


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, away from the repository, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def needed_libraries(path: Path) -> list[str]:
    text = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"NEEDED.*\[(.+)\]", text)


def test_importing_the_loader_loads_nothing() -> None:
    assert python("import sys, sdfast._native; print('torch' in sys.modules)") == "False"


@built
def test_the_cpu_library_says_what_it_was_built_with() -> None:
    _native.load()
    info = json.loads(torch.ops.sdfast.build_info())
    written = _native.build_metadata()
    assert info["stable_abi"] == written["stable_abi"] == "2.10"
    assert info["simd"] == written["simd"]
    assert info["simd_supported"] in info["simd"]
    assert info["cplusplus"] >= 202002
    assert info["threads"] == torch.get_num_threads()
    assert _native.available()


@built
def test_the_instruction_set_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    _native.load()
    widest = json.loads(torch.ops.sdfast.build_info())["simd_supported"]
    monkeypatch.delenv("SDFAST_SIMD", raising=False)
    assert torch.ops.sdfast.simd_level() == widest
    monkeypatch.setenv("SDFAST_SIMD", "plain")
    assert torch.ops.sdfast.simd_level() == "plain"
    monkeypatch.setenv("SDFAST_SIMD", "sse9")
    with pytest.raises(RuntimeError, match="SDFAST_SIMD must be plain, avx2, avx512 or amx, not sse9"):
        torch.ops.sdfast.simd_level()


@built
def test_the_cpu_library_needs_neither_cuda_nor_python_nor_openmp() -> None:
    names = needed_libraries(_native.LIB_DIR / "libsdfast_cpu.so")
    assert any(name.startswith("libtorch_cpu") for name in names)
    assert [name for name in names if re.search("cuda|cudart|python|omp", name)] == []


@built
def test_loading_brings_no_second_openmp_runtime() -> None:
    code = """
import re, torch
from sdfast import _native
def runtimes():
    return sorted(set(re.findall(r"/\\S*lib[gi]?omp\\S*", open("/proc/self/maps").read())))
before = runtimes()
_native.load()
torch.ops.sdfast.build_info()
print(len(before), before == runtimes())
"""
    assert python(code) == "1 True"


@with_cuda_part
def test_the_cuda_library_loads_without_a_device() -> None:
    _native.load_cuda()
    info = json.loads(torch.ops.sdfast.cuda_build_info())
    written = _native.build_metadata()["cuda"]
    assert written["nvcc"].startswith(info["nvcc"])
    assert info["runtime"].split(".")[0] == torch.version.cuda.split(".")[0]
    assert written["architectures"] != [""]


@pytest.mark.gpu
@with_cuda_part
def test_the_cuda_library_has_code_for_this_device() -> None:
    _native.load_cuda()
    kernel = json.loads(torch.ops.sdfast.cuda_build_info())["kernel"]
    major, minor = torch.cuda.get_device_capability()
    assert kernel["machine_code"] <= 10 * major + minor


# --- what a person reads when a library does not fit ----------------------------------------------------------------


@pytest.fixture
def lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty library folder; the loaders forget what they loaded, before and after."""
    loaders = (_native._load_cpu, _native._load_cuda)
    for loader in loaders:
        loader.cache_clear()
    monkeypatch.setattr(_native, "LIB_DIR", tmp_path)
    yield tmp_path
    for loader in loaders:
        loader.cache_clear()


def write_metadata(lib: Path, **changes: object) -> None:
    content = {"stable_abi": "2.10", "torch": "2.14.1+cu130", "compiler": "GNU 12.2.0", "system": "Linux x86_64"}
    (lib / "build.json").write_text(json.dumps(content | changes))


def test_nothing_built(lib: Path) -> None:
    with pytest.raises(_native.NativeLibraryError, match=r"libsdfast_cpu\.so is missing.*make build"):
        _native.load()
    assert not _native.available()
    assert "was not built" in (_native.why_not() or "")


def test_a_torch_that_is_too_old(lib: Path) -> None:
    write_metadata(lib, stable_abi="9.9")
    (lib / "libsdfast_cpu.so").touch()
    with pytest.raises(
        _native.NativeLibraryError, match=rf"needs torch >= 9\.9, but torch {re.escape(torch.__version__)}"
    ):
        _native.load()


def test_a_file_that_is_no_library(lib: Path) -> None:
    write_metadata(lib)
    (lib / "libsdfast_cpu.so").write_text("not a library")
    with pytest.raises(_native.NativeLibraryError) as caught:
        _native.load()
    message = str(caught.value)
    assert "libsdfast_cpu.so does not load" in message
    assert "built against torch 2.14.1+cu130 with GNU 12.2.0 on Linux x86_64" in message
    assert f"torch {torch.__version__} is running" in message
    assert "\n" not in message


def test_no_cuda_part(lib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metadata(lib, cuda={"built": False, "why_not": "nvcc was not found"})
    monkeypatch.setattr(_native, "_load_cpu", lambda: None)
    with pytest.raises(_native.NativeLibraryError, match=r"CUDA part .* was not built \(nvcc was not found\)"):
        _native.load_cuda()


@pytest.mark.parametrize(
    ("running", "message"),
    [("12.8", r"built with CUDA 13\.0\.88, but torch .* runs CUDA 12\.8"), (None, "a torch with CUDA, but torch")],
)
def test_another_cuda_major(lib: Path, monkeypatch: pytest.MonkeyPatch, running: str | None, message: str) -> None:
    write_metadata(lib, cuda={"built": True, "nvcc": "13.0.88"})
    (lib / "libsdfast_cuda.so").touch()
    monkeypatch.setattr(_native, "_load_cpu", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", running)
    with pytest.raises(_native.NativeLibraryError, match=message):
        _native.load_cuda()


# --- wheels ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """The project with the smallest compiled core that builds: packaging is tested here, not the kernels."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "README.md").write_text("# sdfast\n")
    shutil.copytree(ROOT / "cmake", tree / "cmake")
    (tree / "csrc" / "cpu").mkdir(parents=True)
    for name in ("build_info.cpp", "flags_avx2.cpp", "flags_avx512.cpp", "flags_amx.cpp", "simd.cpp", "simd.h"):
        shutil.copy(ROOT / "csrc" / "cpu" / name, tree / "csrc" / "cpu")
    (tree / "sdfast" / "presets").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "_native.py", "py.typed", "presets/__init__.py"):
        shutil.copy(ROOT / "sdfast" / name, tree / "sdfast" / name)
    (tree / "sdfast" / "presets" / "some.yaml").write_text("a: 1\n")
    return tree


def make_wheel(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", str(tree), "--no-build-isolation", "--no-deps", "--no-index"]
    environment = os.environ | {"CMAKE_ARGS": "-DSDFAST_CUDA=OFF"} | environment
    command += ["-w", str(tree / "out")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_wheel_for_any_python_carries_the_library_and_loads(small_tree: Path) -> None:
    result = make_wheel(small_tree, SDFAST_NO_EXT="")
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (small_tree / "out").glob("*.whl")
    assert re.fullmatch(r"sdfast-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("sdfast/")}
        archive.extractall(small_tree / "site")
    assert {"sdfast/lib/libsdfast_cpu.so", "sdfast/lib/build.json", "sdfast/py.typed"} <= names
    assert "sdfast/presets/some.yaml" in names
    assert "sdfast/lib/libsdfast_cuda.so" not in names
    code = f"""
import sys; sys.path.insert(0, {str(small_tree / "site")!r})
import torch
from sdfast import _native
_native.load()
assert _native.__file__.startswith(sys.path[0])
print(torch.ops.sdfast.simd_level(), _native.why_not(cuda=True))
"""
    level, reason = python(code, SDFAST_SIMD="plain").split(" ", 1)
    assert level == "plain"
    assert "SDFAST_CUDA=OFF was asked for" in reason


def test_a_pure_wheel(small_tree: Path) -> None:
    (small_tree / "sdfast" / "lib").mkdir()
    (small_tree / "sdfast" / "lib" / "build.json").write_text("{}")  # left over in the tree by an earlier build
    result = make_wheel(small_tree, SDFAST_NO_EXT="1")
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (small_tree / "out").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if "/lib/" in name] == []
    assert "sdfast/_native.py" in names


@pytest.mark.parametrize(
    ("break_it", "what"),
    [
        (lambda tree: (tree / "csrc" / "cpu" / "bad.cpp").write_text("int bad( {\n"), "the compile step ended"),
        (lambda tree: (tree / "CMakeLists.txt").write_text("nonsense(\n"), "the configure step ended"),
    ],
    ids=["compile", "configure"],
)
def test_a_build_that_fails_says_what_failed_and_the_way_out(small_tree: Path, break_it, what: str) -> None:
    break_it(small_tree)
    result = make_wheel(small_tree, SDFAST_NO_EXT="")
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert f"sdfast: the compiled core could not be built ({what} with exit code" in output
    assert "set SDFAST_NO_EXT=1" in output
    assert "Traceback" not in output
