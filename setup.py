"""Builds the compiled core: setuptools only drives, CMakeLists.txt is the one description of the build.

Environment:
    SDFAST_NO_EXT=1            install the Python part alone
    CMAKE_CUDA_ARCHITECTURES   e.g. "90" or "80;90"; an editable install builds fewer by default than a wheel
    CMAKE_ARGS                 further arguments for the configure step, e.g. "-DSDFAST_CUDA=OFF"
    MAX_JOBS                   compile jobs at once
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
WITH_EXTENSION = os.environ.get("SDFAST_NO_EXT", "") in ("", "0")
HELP = """
sdfast: the compiled core could not be built ({what}). The tool's own message is above.
  It needs a C++20 compiler (g++ 11 or clang 14, or newer) and cmake >= 3.24, ninja and torch >= 2.11.
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
        raise NativeBuildError(f"{name} was not found; `pip install {name}` provides it")
    return found


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
        cmake = tool("cmake")
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
