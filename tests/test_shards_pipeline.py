"""Runs on tar shards: the same as on the folder they hold; shards that change, are damaged or are gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import webdataset
from pipeline_fixtures import write_images, write_model

import sdfast
from sdfast.durable import read_json
from sdfast.errors import UserError
from sdfast.studies.store import Shared, Store

STEPS = [f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=4", "batch_size=8")]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("given")
    images = write_images(root / "images")
    shards = root / "shards"
    shards.mkdir()
    for split in ("train", "test"):
        writers = [webdataset.TarWriter(str(shards / f"{split}-{number}.tar")) for number in range(2)]
        for row, file in enumerate(sorted((images / split).rglob("*.png"))):
            key = file.relative_to(images / split).with_suffix("").as_posix()
            half = row * 2 // len(list((images / split).rglob("*.png")))
            writers[half].write({"__key__": key, "png": file.read_bytes(), "cls": file.parent.name})
        for writer in writers:
            writer.close()
    return {"model": write_model(root / "model"), "images": images, "shards": shards}


def pipeline(given: dict[str, Path], data: Path, out: Path) -> sdfast.Pipeline:
    return sdfast.Pipeline(model=given["model"], data=data, out=out, device="cpu", overrides=STEPS)


def test_a_run_on_shards_is_the_run_on_their_folder(given: dict[str, Path], tmp_path: Path) -> None:
    spec = given["shards"] / "{train,test}-{0..1}.tar"
    results = {
        data: pipeline(given, path, tmp_path / data).run()
        for data, path in {"folder": given["images"], "shards": spec}.items()
    }
    assert results["shards"].weights == results["folder"].weights
    assert results["shards"].metrics == results["folder"].metrics
    inputs = [read_json(tmp_path / data / "finetune" / "result.json")["inputs"] for data in results]
    assert inputs[0] == inputs[1]
    assert pipeline(given, given["shards"], tmp_path / "shards").run() == results["shards"]  # found done, as a folder
    store = Store(tmp_path / "study", Shared())
    with store.opened(pipeline(given, spec, tmp_path / "none").config) as context:
        assert len(context.train) == len(list((given["images"] / "train").rglob("*.png")))


def test_shards_that_are_damaged_or_gone(given: dict[str, Path], tmp_path: Path) -> None:
    shards = shutil.copytree(given["shards"], tmp_path / "shards")
    spec, out = shards / "train-{0..1}.tar", tmp_path / "run"
    pipeline(given, spec, out).pretrain()
    last = shards / "train-1.tar"
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"train-1.tar is not a whole tar shard"):
        pipeline(given, spec, out).pretrain()
    last.unlink()
    with pytest.raises(UserError, match="1 of its 2 shards do not exist"):
        pipeline(given, spec, out).pretrain()
    shutil.rmtree(shards)
    assert pipeline(given, spec, out).pretrain().steps == 4
    assert "What is finished can be shown, and nothing be trained." in (out / "log.txt").read_text()
