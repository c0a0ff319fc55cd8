"""The cells' commands are those that were registered, and what they need is made once."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import regime
from regime_table import HEADLINE, RESULTS

from sdfast.config import Config

REGISTERED = (RESULTS.parent / "regime.md").read_text(encoding="utf-8")


def test_the_headline_is_the_registered_command() -> None:
    block = re.search(r"^    sdfast (study compare .*\n.*) C$", REGISTERED, re.MULTILINE)
    settings = re.search(r"`C` is `(.*?)`", REGISTERED, re.DOTALL)
    assert block is not None and settings is not None
    registered = shlex.split(block[1].replace("\\\n", " ") + " " + settings[1])
    cell = regime.CELLS[HEADLINE]
    start = Path("starts/in-domain/pretrain/model")
    command = cell.command(Path("study-images"), start, Path("regime/main"), jobs=2)
    assert sorted(command) == sorted(registered)


def test_a_start_is_the_registered_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(regime, "COMMITTED", tmp_path)
    monkeypatch.setattr(regime, "sdfast", lambda command: ran.append(list(command)))
    model = regime.start_of("in-domain", Path("study-images"), Path("."))
    block = re.search(r"^    sdfast (train .*\n.*)$", REGISTERED, re.MULTILINE)
    assert block is not None and ran == [shlex.split(block[1].replace("\\\n", " "))]
    assert model == Path("starts/in-domain/pretrain/model")
    (tmp_path / "in-domain").mkdir()
    monkeypatch.chdir(tmp_path.parent)
    assert regime.start_of("in-domain", Path("study-images"), Path(".")) == Path(tmp_path.name, "in-domain")
    assert len(ran) == 1


@pytest.mark.parametrize("name", regime.CELLS)
def test_a_cell_is_a_study_with_keys_that_there_are_and_as_many_chains_as_were_registered(name: str) -> None:
    cell = regime.CELLS[name]
    command = cell.command(Path("data"), None, Path("out"), jobs=1)
    Config().changed(part for part in command if re.match(r"[a-z]+\.[a-z_]+=", part))
    written = {"main-more": "`main`, more arms"}.get(name, f"`{name.split('-')[0]}`")
    row = next(line for line in REGISTERED.splitlines() if line.startswith(f"| {written} |")).split("|")
    assert row[2].split()[0] == cell.study
    assert int(row[-2].split(":")[0]) == cell.chains
    assert (row[3].strip() if row[3].strip() != "general" else "") == cell.start


def test_fashion_mnist_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no Fashion-MNIST: name the folder of its four \.gz files"):
        regime.main([HEADLINE, "--data", str(tmp_path / "images"), "--fashion", str(tmp_path)])
