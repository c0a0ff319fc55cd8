"""Write constraints.txt: the exact version of every package, for every Python that sdfast supports.

Usage: ``python scripts/lock.py python3.10 python3.11 python3.12 python3.13``. Each interpreter's own pip
resolves what ``pyproject.toml`` names (build requirements, dependencies, every extra) without installing
anything; the answers are merged, with an environment marker where one version does not serve all of them.
This script itself needs Python 3.11 or newer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent

# The versions that were tried together and that the rest is resolved around.
CHOSEN = [
    "torch==2.14.1",
    "torchvision==0.29.1",
    "triton==3.8.0",
    'transformers==5.23.0; python_version >= "3.11"',
    "timm==1.0.31",
    "deepspeed==0.19.8",
    "xformers==0.0.35",
    "ninja==1.13.2",
]

HEADER = """\
# The lock: every package that sdfast, its extras, its build and its tests install, at one exact version.
# Made on Linux x86-64 by `python scripts/lock.py {interpreters}`.
# `make` installs through it. Do not edit by hand.
"""


def wanted() -> list[str]:
    """Everything that pyproject.toml names, the project's own extras flattened."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        config = tomllib.load(file)
    project = config["project"]
    groups = [
        config["build-system"]["requires"],
        project["dependencies"],
        *project["optional-dependencies"].values(),
    ]
    return sorted({name for group in groups for name in group if not name.startswith("sdfast[")})


def resolve(python: str, requirements: list[str]) -> tuple[str, dict[str, str]]:
    """Ask one interpreter's pip; returns its "major.minor" and {normalised name: version}."""
    with tempfile.TemporaryDirectory() as folder:
        names, chosen, report = (Path(folder) / name for name in ("wanted.txt", "chosen.txt", "report.json"))
        names.write_text("\n".join(requirements) + "\n")
        chosen.write_text("\n".join(CHOSEN) + "\n")
        command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), "-r", str(names), "-c", str(chosen)]
        subprocess.run(command, check=True)
        answer = json.loads(report.read_text())
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in answer["install"]}
    version = answer["environment"]["python_version"]
    return version, {re.sub(r"[-_.]+", "-", name).lower(): number for name, number in found.items()}


def markers(versions: list[str], all_versions: list[str]) -> str:
    """The marker that selects a run of neighbouring Python versions; empty when it selects all."""
    if len(versions) == 1 and versions != [all_versions[0]] and versions != [all_versions[-1]]:
        return f'python_version == "{versions[0]}"'
    parts = []
    if versions[0] != all_versions[0]:
        parts.append(f'python_version >= "{versions[0]}"')
    if versions[-1] != all_versions[-1]:
        parts.append(f'python_version <= "{versions[-1]}"')
    return " and ".join(parts)


def lines(answers: dict[str, dict[str, str]]) -> list[str]:
    """Merge the interpreters' answers into constraint lines, sorted by name."""
    pythons = sorted(answers, key=lambda text: tuple(map(int, text.split("."))))
    runs: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for python in pythons:
        for name, version in answers[python].items():
            last = runs[name][-1] if runs[name] else None
            if last is not None and last[0] == version:
                last[1].append(python)
            else:
                runs[name].append((version, [python]))
    merged = []
    for name in sorted(runs):
        for version, group in runs[name]:
            # A single version needs no marker, even if only some interpreters use it.
            marker = markers(group, pythons) if len(runs[name]) > 1 else ""
            merged.append(f"{name}=={version}" + (f" ; {marker}" if marker else ""))
    return merged


def main(interpreters: list[str]) -> None:
    """Resolve with every interpreter and write the lock."""
    if not interpreters:
        raise SystemExit("usage: python scripts/lock.py python3.10 python3.11 ...")
    requirements = wanted()
    answers = dict(resolve(python, requirements) for python in interpreters)
    names = " ".join(f"python{version}" for version in sorted(answers, key=lambda text: int(text.split(".")[1])))
    text = HEADER.format(interpreters=names) + "\n".join(lines(answers)) + "\n"
    (ROOT / "constraints.txt").write_text(text)
    print(f"constraints.txt: {text.count('==')} versions for Python {', '.join(answers)}")


if __name__ == "__main__":
    main(sys.argv[1:])
