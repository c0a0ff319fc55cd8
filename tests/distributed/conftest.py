"""Starts several processes on this machine, as a launcher does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from launching import HERE, child_environment, torchrun


@pytest.fixture(scope="module")
def run_cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs cases of `zero_worker` in so many processes; the folder with what each ended with.

    With `dies` one of the processes is to die.
    """

    def run(world: int, cases: Sequence[dict[str, Any]], folder: Path | None = None, dies: bool = False) -> Path:
        folder = folder or tmp_path_factory.mktemp("cases")
        (folder / "cases.json").write_text(json.dumps(cases))
        command = torchrun(world, HERE / "zero_worker.py", folder)
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=300)
        assert (done.returncode != 0) == dies, done.stderr[:6000] + done.stderr[-2000:]
        return folder

    return run


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> Callable[..., list[tuple[Any, ...]]]:
    """The values that parameters of these names have in the module's tests that are to run: what a fixture makes."""

    def values(*names: str) -> list[tuple[Any, ...]]:
        own = (item for item in request.session.items if item.getparent(pytest.Module).name == request.node.name)
        given = (
            item.callspec.params for item in own if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        )
        return list(dict.fromkeys(tuple(each[n] for n in names) for each in given if set(names) <= set(each)))

    return values
