"""The files of versions: the lock that `make` installs, and the oldest versions that pyproject.toml takes."""

from __future__ import annotations

import functools
import re
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sdfast.engine.zero import OLDEST_DEEPSPEED

ROOT = Path(__file__).resolve().parent.parent
LOCK, OLDEST = "constraints.txt", "constraints-oldest.txt"


def locked(file: str = LOCK) -> dict[str, str]:
    """{name: version} of the lines that hold for this interpreter."""
    pins: dict[str, str] = {}
    for line in (ROOT / file).read_text().splitlines():
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


def requirements_in_pyproject() -> list[Requirement]:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [project["build-system"]["requires"], project["project"]["dependencies"]]
    groups += project["project"]["optional-dependencies"].values()
    return [Requirement(text) for group in groups for text in group]


@functools.cache
def requirements_of_the_project() -> frozenset[str]:
    seen: set[tuple[str, str]] = set()
    for requirement in requirements_in_pyproject():
        needed(requirement, seen)
    return frozenset(name for name, _ in seen) - {"sdfast"}


def installed() -> dict[str, str]:
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # not what a package vendors
    return {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions(path=folders)}


def only_in(environment: str) -> pytest.MarkDecorator:
    """Other versions ask for other packages, so a file of versions is held against what was installed by it."""
    return pytest.mark.skipif(Path(sys.prefix) != ROOT / environment, reason=f"not run in {environment}")


@only_in(".venv")
def test_every_package_in_every_depth_is_locked() -> None:
    names = requirements_of_the_project()
    assert len(names) > 80  # the walk went down: the project itself names about thirty
    assert sorted(names - locked().keys()) == []


@only_in(".venv")
def test_the_environment_that_make_made_is_the_lock() -> None:
    pins = locked()
    wrong = {
        name: (version, pins.get(name))
        for name, version in installed().items()
        if name in requirements_of_the_project() and version != pins.get(name)
    }
    assert wrong == {}


@only_in(".venv-oldest")
def test_the_oldest_environment_has_the_oldest_versions() -> None:
    versions = installed()
    wrong = {name: (versions.get(name), pin) for name, pin in locked(OLDEST).items() if versions.get(name) != pin}
    assert wrong == {}


def floors() -> dict[str, set[str]]:
    """{package: every version after `>=` in pyproject.toml}."""
    found: dict[str, set[str]] = {}
    for requirement in requirements_in_pyproject():
        for specifier in requirement.specifier:
            assert specifier.operator == ">=", f"{requirement}: a version is a floor or in a file of versions"
            found.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return found


def test_the_oldest_versions_are_the_floors() -> None:
    pins = locked(OLDEST)
    assert "torch" in floors()
    for name, versions in floors().items():
        (floor,) = versions
        assert name in pins, f"{name}>={floor} in pyproject.toml is not in {OLDEST}"
        release = Version(floor).release
        assert Version(pins[name]).release[: len(release)] == release, f"{name}>={floor} is {pins[name]} in {OLDEST}"


def test_cmake_names_the_same_floors() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    assert set(re.findall(r"cmake_minimum_required\(VERSION ([\d.]+)\)", text)) == floors()["cmake"]
    assert re.findall(r"TORCH_VERSION VERSION_LESS ([\d.]+)\)", text) == list(floors()["torch"])
    assert set(re.findall(r"torch(?: |>=)(\d[\d.]*\d)", text)) == floors()["torch"]  # in the sentences


def test_the_engine_names_the_same_floor() -> None:
    assert {OLDEST_DEEPSPEED} == floors()["deepspeed"]


def test_each_python_has_one_version_of_each_package() -> None:
    lines = [line for line in (ROOT / LOCK).read_text().splitlines() if line and line[0] != "#"]
    pins = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in pins)
    for python in ("3.10", "3.11", "3.12", "3.13"):
        names = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
        assert len(names) == len(set(names)), python
        assert {"torch", "transformers", "numpy"} <= set(names), python
