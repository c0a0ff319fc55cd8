"""The parcel for a machine without a network: what is in it, that it is enough, and the command that uses it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# What the other machine has; and so has what these need.
THERE = ["torch", "torchvision", "triton", "transformers", "timm", "numpy", "scipy", "pyarrow", "pillow", "safetensors"]
THERE += ["huggingface-hub", "pyyaml", "typer", "rich", "torchmetrics", "jinja2", "matplotlib", "accelerate", "psutil"]
THERE += ["pytest", "pytest-benchmark", "pytest-timeout", "pytest-xdist", "hypothesis", "setuptools", "packaging"]
LACKING = {"pydantic", "datasets", "deepspeed", "xformers"}  # whatever needs them


@pytest.fixture
def parcel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_parcel", ROOT / "scripts" / "gpu_parcel.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_parcel", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(parcel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What pip is asked for; it leaves an empty wheel for each requirement."""
    words_of: list[tuple[str, ...]] = []

    def pip(*words: str) -> None:
        words_of.append(words)
        folder = next(Path(after) for word, after in itertools.pairwise(words) if word.endswith("-dir"))
        for word in words:
            name, equals, version = word.partition("==")
            if equals:
                (folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").write_bytes(b"wheel")

    monkeypatch.setattr(parcel, "pip", lambda *words: pip(*(w.replace("--dest", "--wheel-dir") for w in words)))
    return words_of


def test_the_folder_has_what_is_needed(parcel: ModuleType, asked: list[tuple[str, ...]], tmp_path: Path) -> None:
    folder = tmp_path / "parcel"
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "pydantic-1.0-py3-none-any.whl").touch()  # of an earlier parcel
    size = parcel.make(folder, deepspeed=False)
    pins = parcel.locked()
    wheels = {path.name for path in (folder / "wheels").iterdir()}
    assert wheels == {f"{n.replace('-', '_')}-{pins[n]}-py3-none-any.whl" for n in parcel.PACKAGES}
    (words,) = asked
    assert words[0] == "download" and {"--no-deps", "--only-binary=:all:", "cp312", "3.12"} <= set(words)
    assert "manylinux2014_x86_64" in words
    assert size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < parcel.LIMIT
    assert (folder / "run.sh").stat().st_mode & stat.S_IXUSR
    assert (folder / "commit").read_text().strip()
    built = (ROOT / "sdfast" / "lib" / "build.json").is_file()
    assert {path.name for path in (folder / "lib").glob("*")} == (
        {path.name for path in (ROOT / "sdfast" / "lib").iterdir()} if built else set()
    )


def test_deepspeed_comes_on_request(parcel: ModuleType, asked: list[tuple[str, ...]], tmp_path: Path) -> None:
    parcel.make(tmp_path / "parcel", deepspeed=True)
    names = {path.name.partition("-")[0] for path in (tmp_path / "parcel" / "wheels").iterdir()}
    assert {"deepspeed", "hjson", "msgpack", "py_cpuinfo", "einops", "pydantic"} <= names
    assert [words[0] for words in asked] == ["download", "wheel"]
    version = parcel.locked()["deepspeed"]
    assert asked[1][-1] == f"deepspeed=={version}" and "--no-deps" in asked[1]


def test_one_sentence_where_something_cannot_be_had(
    parcel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"gpu_parcel: `pip nothing_of_this` did not end well"):
        parcel.pip("nothing_of_this")
    monkeypatch.setattr(parcel, "pip", lambda *words: None)
    monkeypatch.setattr(parcel, "LIMIT", 100)
    with pytest.raises(SystemExit, match="more than"):
        parcel.make(tmp_path / "parcel", deepspeed=False)


def test_the_lock_is_read_for_the_other_python(
    parcel: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ['a==2 ; python_version >= "3.11"', 'a==1 ; python_version <= "3.10"', "# b==1", "Some_Name==3"]
    (tmp_path / "constraints.txt").write_text("\n".join(lines))
    monkeypatch.setattr(parcel, "ROOT", tmp_path)
    assert parcel.locked() == {"a": "2", "some-name": "3"}


def test_the_command_is_well_formed(parcel: ModuleType, tmp_path: Path) -> None:
    """Run with a python that writes down how it was called."""
    folder, root, site = (tmp_path / name for name in ("parcel", "a tree", "tmp"))
    for each in (folder / "wheels", folder / "lib", root / "sdfast" / "lib", site):
        each.mkdir(parents=True)
    (folder / "wheels" / "one-1-py3-none-any.whl").touch()
    (folder / "commit").write_text("abc+\n")
    (folder / "run.sh").write_text(parcel.RUN)
    for name in ("same.so", "newer.so"):
        (folder / "lib" / name).write_text("library")
    (root / "sdfast" / "lib" / "same.so").write_text("library")
    (root / "sdfast" / "lib" / "newer.so").write_text("an older one")
    before = (root / "sdfast" / "lib" / "same.so").stat().st_mtime_ns
    loaded = (root / "sdfast" / "lib" / "newer.so").open()
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s|" "$@" "$PYTHONPATH" "${SDFAST_COMMIT:-}"; echo\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "SDFAST_ROOT": str(root), "TMPDIR": str(site)}
    command = ["bash", str(folder / "run.sh"), "--call", "2", "--out", str(tmp_path / "o u t")]
    installed, ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True
    ).stdout.splitlines()
    words = installed.split("|")
    assert words[:3] == ["-m", "pip", "install"] and {"--no-index", "--no-deps"} <= set(words)
    packages = words[words.index("--target") + 1]
    assert Path(packages).parent == site and str(folder / "wheels" / "one-1-py3-none-any.whl") in words
    suite = str(root / "benchmarks" / "gpu_suite.py")
    assert ran.split("|") == [suite, "--call", "2", "--out", str(tmp_path / "o u t"), packages, "abc+", ""]
    after = {path.name: path for path in (root / "sdfast" / "lib").iterdir()}
    assert after["newer.so"].read_text() == "library"
    assert after["same.so"].stat().st_mtime_ns == before
    assert loaded.read() == "an older one"  # who has loaded it keeps it
    loaded.close()


def needed(names: list[str]) -> set[str]:
    """The named distributions and what they need, as it is installed here."""
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found or name in LACKING:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        requirements = [Requirement(line) for line in lines]
        left += [
            canonicalize_name(each.name)
            for each in requirements
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    return found


HIDING = """
import sys
sys.modules.update(dict.fromkeys({hidden}))  # None: it cannot be found
"""
IMPORTS = """
sys.path[:0] = [{benchmarks!r}, {root!r}]
from gpu_parts import plan, runner, tests
from gpu_parts.context import Context
import gpu_suite, pytest
runner.import_parts(plan.PARTS)
runner.warm_first(plan.call(1, quick=True), "cpu")
files = [str(path) for path in tests.files_of(Context("cpu", False))]
sys.exit(pytest.main(["--collect-only", "-qq", "-m", "gpu", "-p", "no:cacheprovider", *files]))
"""


def test_the_parcel_is_enough(parcel: ModuleType) -> None:
    """With all else out of sight the suite's parts, a first model and the tests that it runs can be imported."""
    pytest.importorskip("transformers")
    allowed = needed(THERE) | set(parcel.PACKAGES) | {"sdfast"}
    hidden = {
        module
        for module, names in metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & allowed
    }
    words = {"benchmarks": str(ROOT / "benchmarks"), "root": str(ROOT)}
    code = HIDING.format(hidden=hidden) + IMPORTS.format(**words)
    seen = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # pytest would look for plugins of what is hidden
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=seen, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
