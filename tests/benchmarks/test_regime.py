"""The cells' commands are those that were registered, and what they need is made once."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
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
    command = cell.command("starts/in-domain/pretrain/model", Path("regime/main"), jobs=2)
    assert sorted(command) == sorted(registered)


def test_a_start_is_the_registered_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(regime, "COMMITTED", tmp_path)
    monkeypatch.setattr(regime, "sdfast", lambda command: ran.append(list(command)))
    model = regime.start_of("in-domain", Path("."))
    block = re.search(r"^    sdfast (train .*\n.*)$", REGISTERED, re.MULTILINE)
    assert block is not None
    assert [sorted(command) for command in ran] == [sorted(shlex.split(block[1].replace("\\\n", " ")))]
    assert model == "starts/in-domain/pretrain/model"
    assert regime.start_of("", Path(".")) == "" and regime.start_of("bundled-text", Path(".")) == "bundled-text"
    (tmp_path / "in-domain").mkdir()
    monkeypatch.chdir(tmp_path.parent)
    assert regime.start_of("in-domain", Path(".")) == f"{tmp_path.name}/in-domain"
    assert len(ran) == 1


@pytest.mark.parametrize("name", regime.CELLS)
def test_a_cell_is_a_study_with_keys_that_there_are_and_as_many_chains_as_were_registered(name: str) -> None:
    cell = regime.CELLS[name]
    command = replace(cell, rates=cell.rates or regime.REGISTERED).command("", Path("out"), jobs=1)
    Config().changed(part for part in command if re.match(r"[a-z]+\.[a-z_]+=", part))
    written = {"main-more": "`main`, more arms"}.get(name, f"`{name.split('-')[0]}`")
    row = next(line for line in REGISTERED.splitlines() if line.startswith(f"| {written} |")).split("|")
    assert row[2].split()[0].rstrip(",") == cell.study
    assert int(row[-2].split(":")[0]) == cell.chains
    start = row[3].split(",")[0].strip()
    assert {"general": "", "bundled BERT": "bundled-text"}.get(start, start.lower()) == cell.start


def test_a_cell_whose_rates_are_not_chosen_says_how_they_are_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(regime.CELLS, "dinov2", replace(regime.CELLS["dinov2"], rates=None))
    monkeypatch.delattr(regime, "succeed")
    with pytest.raises(SystemExit, match=r"dinov2 are not chosen yet: python benchmarks/regime_rates\.py dinov2 says"):
        regime.main(["dinov2"])


def test_rates_that_had_to_be_chosen_have_rows_of_their_own() -> None:
    assert {name for name, cell in regime.CELLS.items() if cell.validation} == {
        *re.findall(r"`(\w+)`", REGISTERED.split("**Rates of the cells that `C` is not for** (")[1].split(")")[0])
    }
    assert all(cell.validation != cell.data for cell in regime.CELLS.values())


def test_fashion_mnist_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"has no Fashion-MNIST: name the folder of its four \.gz files"):
        regime.main([HEADLINE, "--fashion", str(tmp_path)])
