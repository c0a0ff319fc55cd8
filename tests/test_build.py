"""The build and the loading of the compiled core, as a new user meets them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from sdfast.ops import native

ROOT = Path(__file__).resolve().parent.parent
NOTHING_BUILT = not (native.LIB_DIR / "build.json").is_file()
built = pytest.mark.skipif(NOTHING_BUILT, reason="installed with SDFAST_NO_EXT=1")
with_cuda_part = pytest.mark.skipif(
    not native.build_metadata().get("cuda", {}).get("built", False),
    reason=f"no CUDA part: {native.build_metadata().get('cuda', {}).get('why_not', 'nothing was built')}",
)


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
    assert python("import sys, sdfast.ops.native; print('torch' in sys.modules)") == "False"


@built
def test_the_cpu_library_says_what_it_was_built_with() -> None:
    native.load()
    info = json.loads(torch.ops.sdfast.build_info())
    written = native.build_metadata()
    assert info["stable_abi"] == written["stable_abi"] == "2.10"
    assert info["simd"] == written["simd"]
    assert info["simd_supported"] in info["simd"]
    assert info["cplusplus"] >= 202002
    assert info["threads"] == torch.get_num_threads()
    assert native.available()


@built
def test_the_instruction_set_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    native.load()
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
    names = needed_libraries(native.LIB_DIR / "libsdfast_cpu.so")
    assert any(name.startswith("libtorch_cpu") for name in names)
    assert [name for name in names if re.search("cuda|cudart|python|omp", name)] == []


@built
def test_loading_brings_no_second_openmp_runtime() -> None:
    code = """
import re, torch
from sdfast.ops import native
def runtimes():
    return sorted(set(re.findall(r"/\\S*lib[gi]?omp\\S*", open("/proc/self/maps").read())))
before = runtimes()
native.load()
torch.ops.sdfast.build_info()
print(len(before), before == runtimes())
"""
    assert python(code) == "1 True"


@with_cuda_part
def test_the_cuda_library_loads_without_a_device() -> None:
    native.load_cuda()
    info = json.loads(torch.ops.sdfast.cuda_build_info())
    written = native.build_metadata()["cuda"]
    assert written["nvcc"].startswith(info["nvcc"])
    assert info["runtime"].split(".")[0] == torch.version.cuda.split(".")[0]
    assert written["architectures"] != [""]


@pytest.mark.gpu
@with_cuda_part
def test_the_cuda_library_has_code_for_this_device() -> None:
    native.load_cuda()
    kernel = json.loads(torch.ops.sdfast.cuda_build_info())["kernel"]
    major, minor = torch.cuda.get_device_capability()
    assert kernel["machine_code"] <= 10 * major + minor


# --- what a person reads when a library does not fit ----------------------------------------------------------------


@pytest.fixture
def lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty library folder; the loaders forget what they loaded, before and after."""
    loaders = (native.load, native.load_cuda)
    for loader in loaders:
        loader.cache_clear()
    monkeypatch.setattr(native, "LIB_DIR", tmp_path)
    yield tmp_path
    for loader in loaders:
        loader.cache_clear()


def write_metadata(lib: Path, **changes: object) -> None:
    content = {"stable_abi": "2.10", "torch": "2.14.1+cu130", "compiler": "GNU 12.2.0", "system": "Linux x86_64"}
    (lib / "build.json").write_text(json.dumps(content | changes))


def test_nothing_built(lib: Path) -> None:
    with pytest.raises(native.NativeLibraryError, match=r"libsdfast_cpu\.so is missing.*make build"):
        native.load()
    assert not native.available()
    assert "was not built" in (native.why_not() or "")


def test_a_torch_that_is_too_old(lib: Path) -> None:
    write_metadata(lib, stable_abi="9.9")
    (lib / "libsdfast_cpu.so").touch()
    with pytest.raises(
        native.NativeLibraryError, match=rf"needs torch >= 9\.9, but torch {re.escape(torch.__version__)}"
    ):
        native.load()


def test_an_operator_with_fewer_arguments_is_an_older_core() -> None:
    if not native.available():
        pytest.skip("the compiled core is not built")
    assert native.why_not_operator("attention_forward", last="seed") is None
    reason = native.why_not_operator("attention_forward", last="of the next version")
    assert reason is not None and "older than this Python package" in reason


def test_a_file_that_is_no_library(lib: Path) -> None:
    write_metadata(lib)
    (lib / "libsdfast_cpu.so").write_text("not a library")
    with pytest.raises(native.NativeLibraryError) as caught:
        native.load()
    message = str(caught.value)
    assert "libsdfast_cpu.so does not load" in message
    assert "built against torch 2.14.1+cu130 with GNU 12.2.0 on Linux x86_64" in message
    assert f"torch {torch.__version__} is running" in message
    assert "\n" not in message


def test_no_cuda_part(lib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metadata(lib, cuda={"built": False, "why_not": "nvcc was not found"})
    monkeypatch.setattr(native, "load", lambda: None)
    with pytest.raises(native.NativeLibraryError, match=r"CUDA part .* was not built \(nvcc was not found\)"):
        native.load_cuda()


@pytest.mark.parametrize(
    ("running", "message"),
    [("12.8", r"built with CUDA 13\.0\.88, but torch .* runs CUDA 12\.8"), (None, "a torch with CUDA, but torch")],
)
def test_another_cuda_major(lib: Path, monkeypatch: pytest.MonkeyPatch, running: str | None, message: str) -> None:
    write_metadata(lib, cuda={"built": True, "nvcc": "13.0.88"})
    (lib / "libsdfast_cuda.so").touch()
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", running)
    with pytest.raises(native.NativeLibraryError, match=message):
        native.load_cuda()


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
    for folder in ("presets", "ops"):
        (tree / "sdfast" / folder).mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "ops/__init__.py", "ops/native.py", "py.typed", "presets/__init__.py"):
        shutil.copy(ROOT / "sdfast" / name, tree / "sdfast" / name)
    (tree / "sdfast" / "presets" / "some.yaml").write_text("a: 1\n")
    return tree


def make_wheel(tree: Path, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "pip", "wheel", str(tree), "--no-build-isolation", "--no-deps", "--no-index"]
    environment = os.environ | {"CMAKE_ARGS": "-DSDFAST_CUDA=OFF", "SDFAST_NO_EXT": ""} | environment
    command += ["-w", str(tree / "out")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_wheel_for_any_python_carries_the_library_and_loads(small_tree: Path) -> None:
    result = make_wheel(small_tree)
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
from sdfast.ops import native
native.load()
assert native.__file__.startswith(sys.path[0])
print(torch.ops.sdfast.simd_level(), native.why_not(cuda=True))
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
    assert "sdfast/ops/native.py" in names


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
    result = make_wheel(small_tree)
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert f"sdfast: the compiled core could not be built ({what} with exit code" in output
    assert "set SDFAST_NO_EXT=1" in output
    assert "Traceback" not in output


# --- old tools: one sentence, which names the tool, the version found and the fix -----------------------------------


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a build that ended without a traceback, on one line (CMake breaks its own)."""
    assert result.returncode != 0
    output = " ".join((result.stdout + result.stderr).split())
    assert "Traceback" not in output
    return output


def floor_of(name: str) -> str:
    (floor,) = set(re.findall(rf'"{name}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    return floor


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """An interpreter with this one's packages, but without cmake and ninja beside it or on PATH; its environment."""
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    packages = os.pathsep.join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    return str(tmp_path / "venv" / "bin" / "python"), {"PYTHONPATH": packages, "PATH": str(tmp_path / "no tools")}


def test_an_old_setuptools(small_tree: Path, tmp_path: Path) -> None:
    shim = """
import sys, setuptools
setuptools.__version__ = "68.2.2"
sys.modules["setuptools.command.bdist_wheel"] = None  # what that version lacks
"""
    (tmp_path / "sitecustomize.py").write_text(shim)
    output = refusal(make_wheel(small_tree, PYTHONPATH=str(tmp_path)))
    floor = floor_of("setuptools")
    expected = f"sdfast: the build needs setuptools {floor} or newer, but {sys.executable} has 68.2.2: "
    assert expected + f"`pip install -U 'setuptools>={floor}'`." in output


def test_an_old_cmake(small_tree: Path, bare: tuple[str, dict[str, str]]) -> None:
    python, environment = bare
    cmake = script(Path(python).parent / "cmake", "echo cmake version 3.18.4")
    output = refusal(make_wheel(small_tree, python, **environment))
    floor = floor_of("cmake")
    assert f"sdfast: the compiled core needs cmake {floor} or newer, but {cmake} is 3.18.4: " in output
    assert f"`pip install -U 'cmake>={floor}'`, or set SDFAST_NO_EXT=1" in output


@pytest.mark.parametrize("missing", ["cmake", "ninja"])
def test_a_missing_tool(small_tree: Path, bare: tuple[str, dict[str, str]], missing: str) -> None:
    python, environment = bare
    if missing == "ninja":
        script(Path(python).parent / "cmake", "echo cmake version 99.0")
    output = refusal(make_wheel(small_tree, python, **environment))
    expected = f"sdfast: the compiled core needs {missing}, but there is none beside {python} or on PATH: "
    assert expected + f"`pip install {missing}`, or set SDFAST_NO_EXT=1" in output


def test_an_old_compiler(small_tree: Path, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ that could pretend to be an old one")
    old = script(tmp_path / "old", f'exec {compiler} -U__GNUC__ -D__GNUC__=10 -U__GNUC_MINOR__ -D__GNUC_MINOR__=2 "$@"')
    output = refusal(make_wheel(small_tree, CXX=str(old)))
    assert f"needs C++20, from g++ 11 or clang 14 on, but {old} is GNU 10.2.0: name a newer one, as in CXX=" in output
    assert "the configure step ended" in output


@pytest.mark.parametrize("version", ["2.10.0+cu130", "2.9.1"])
def test_an_old_torch(small_tree: Path, tmp_path: Path, version: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
    output = refusal(make_wheel(small_tree, PYTHONPATH=str(tmp_path)))
    floor = floor_of("torch")
    expected = f"The compiled core needs torch {floor} or newer, but {sys.executable} has torch {version}: "
    assert expected + f"pip install -U 'torch>={floor}'" in output
