"""Builds the compiled core: setuptools only drives, CMakeLists.txt is the one description of the build.

Environment:
    SDFAST_NO_EXT=1            install the Python part alone
    CMAKE_CUDA_ARCHITECTURES   e.g. "90" or "80;90"; an editable install builds fewer by default than a wheel
    CMAKE_ARGS                 further arguments for the configure step, e.g. "-DSDFAST_CUDA=OFF"
    MAX_JOBS                   compile jobs at once
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST = dict(re.findall(r'"(\w+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))  # {"cmake": "3.24", ...}


def older(version: str, oldest: str) -> bool:
    """Whether a version, such as 3.24.1 or 4.0.0-rc2, comes before another, such as 3.24."""
    return [int(n) for n in re.findall(r"\d+", version)] < [int(n) for n in re.findall(r"\d+", oldest)]


# Before the import that an old one lacks; pyproject.toml, whose `license` it would refuse, is read after this file.
if older(setuptools.__version__, OLDEST["setuptools"]):
    raise SystemExit(
        f"sdfast: the build needs setuptools {OLDEST['setuptools']} or newer, but {sys.executable} has "
        f"{setuptools.__version__}: `pip install -U 'setuptools>={OLDEST['setuptools']}'`."
    )

from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402

WITH_EXTENSION = os.environ.get("SDFAST_NO_EXT", "") in ("", "0")
WITHOUT = "or set SDFAST_NO_EXT=1 to do without the compiled core"
HELP = f"""
sdfast: the compiled core could not be built ({{what}}). The tool's own message is above.
  It needs g++ 11 or clang 14 (for C++20), cmake {OLDEST["cmake"]}, ninja and torch {OLDEST["torch"]}, or newer ones.
  A CUDA part that will not build can be left out with CMAKE_ARGS=-DSDFAST_CUDA=OFF.
  To do without the compiled core (PyTorch and Triton paths only), set SDFAST_NO_EXT=1 and repeat.
"""


class NativeBuildError(SystemExit):
    """Ends the build with one plain explanation instead of a traceback."""

    def __init__(self, what: str) -> None:
        super().__init__(HELP.format(what=what))


def tool(name: str) -> str:
    """The path of cmake or ninja: beside this interpreter, in its PyPI package, or on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise SystemExit(
            f"sdfast: the compiled core needs {name}, but there is none beside {sys.executable} or on PATH: "
            f"`pip install {name}`, {WITHOUT}."
        )
    return found


def new_enough_cmake() -> str:
    """The path of cmake, once it has said its version."""
    cmake = tool("cmake")
    try:
        answer = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        answer = ""  # the configure step says what is wrong
    version = re.match(r"cmake version (\S+)", answer)
    if version and older(version[1], OLDEST["cmake"]):
        raise SystemExit(
            f"sdfast: the compiled core needs cmake {OLDEST['cmake']} or newer, but {cmake} is {version[1]}: "
            f"`pip install -U 'cmake>={OLDEST['cmake']}'`, {WITHOUT}."
        )
    return cmake


def run(what: str, *command: str) -> None:
    """Run one build step; its output goes to ours."""
    print("+", shlex.join(command), flush=True)
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise NativeBuildError(f"the {what} step ended with exit code {error.returncode}") from None
    except OSError as error:
        raise NativeBuildError(f"the {what} step did not start: {error}") from None


def discard_foreign_cache(folder: Path) -> None:
    """Drop a build folder that another checkout configured: CMake refuses it."""
    cache = folder / "CMakeCache.txt"
    if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
        shutil.rmtree(folder)


class BuildNative(build_ext):
    """Configure, compile and install into sdfast/lib, of the source tree or of the wheel."""

    def run(self) -> None:
        editable = self.inplace or self.editable_mode
        build = ROOT / "build" / "native" if editable else Path(self.build_temp).resolve() / "native"
        target = (ROOT if editable else Path(self.build_lib).resolve()) / "sdfast" / "lib"
        discard_foreign_cache(build)
        cmake = new_enough_cmake()
        run("configure", cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *self.definitions(editable))
        jobs = os.environ.get("MAX_JOBS")
        run("compile", cmake, "--build", str(build), *(["--parallel", jobs] if jobs else []))
        shutil.rmtree(target, ignore_errors=True)
        run("install", cmake, "--install", str(build), "--prefix", str(target))

    def definitions(self, editable: bool) -> list[str]:
        """The configure step's -D arguments."""
        architectures = os.environ.get("CMAKE_CUDA_ARCHITECTURES")
        given = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "SDFAST_VERSION": self.distribution.get_version(),
            "SDFAST_CUDA_ALL_ARCHITECTURES": "OFF" if editable else "ON",
        }
        if architectures:
            given["CMAKE_CUDA_ARCHITECTURES"] = architectures
        return [f"-D{key}={value}" for key, value in given.items()] + shlex.split(os.environ.get("CMAKE_ARGS", ""))

    def get_outputs(self) -> list[str]:
        target = Path(self.build_lib) / "sdfast" / "lib"
        return [str(path) for path in target.glob("*")] if not self.inplace else []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """py3-none-PLATFORM: the libraries are loaded by torch and know nothing of the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform if WITH_EXTENSION else "any"


setup(
    ext_modules=[Extension("sdfast.lib.native", sources=[])] if WITH_EXTENSION else [],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
