"""Parquet files, saved Hugging Face data sets and hub ids; none of these tests uses the network."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import pixels, write_classes
from PIL import Image

from sdfast.data.items import Source
from sdfast.errors import UserError

Open = Callable[..., Source]
NAMES = ["cat", "dog", "emu"]


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def hf_rows(seeds: range, column: str = "image") -> datasets.Dataset:
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {column: [{"bytes": png(seed), "path": None} for seed in seeds], "label": [seed % 3 for seed in seeds]}
    return datasets.Dataset.from_dict(rows, features=features)


def read_all(source: Source, split: str = "train") -> list[Any]:
    return [item.read() for item in source.splits[split]]


def test_parquet_written_by_datasets(tmp_path: Path, open_spec: Open) -> None:
    hf_rows(range(150), "img").to_parquet(tmp_path / "x.parquet", batch_size=40)  # several row groups
    source = open_spec(tmp_path / "x.parquet")
    assert source.kind == "parquet" and source.class_names == NAMES
    items = source.splits["train"]
    assert items.labels == [seed % 3 for seed in range(150)]
    assert read_all(source) == [png(seed) for seed in range(150)]
    assert [items[row].read() for row in (0, 39, 40, 149, -1)] == [png(seed) for seed in (0, 39, 40, 149, 149)]
    assert items[41].name == "x.parquet:41" == list(items)[41].name
    with pytest.raises(IndexError):
        items[150]


def test_parquet_folder_with_splits_and_shards(tmp_path: Path, open_spec: Open) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / ".cache").mkdir()
    hf_rows(range(3, 5)).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    hf_rows(range(3)).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    hf_rows(range(5, 7)).to_parquet(folder / "data" / "validation.parquet")
    hf_rows(range(7, 9)).to_parquet(folder / "data" / "extra.parquet")
    hf_rows(range(7, 9)).to_parquet(folder / ".cache" / "test.parquet")
    source = open_spec(folder)
    assert list(source.splits) == ["train", "val"] and source.name == "set"
    assert read_all(source) == [png(seed) for seed in range(5)]
    assert source.splits["train"][4].name == "data/train-00001-of-00002.parquet:1"
    assert source.warnings[0] == "Files that name no split and are not used: 1 (the first: data/extra.parquet)."


@pytest.mark.parametrize("labels", [[5, 7, -1, None], ["b", "a", None, ""], [2.5, 0.5, None, float("nan")]])
def test_parquet_of_raw_bytes_and_plain_labels(tmp_path: Path, open_spec: Open, labels: list[Any]) -> None:
    table = pa.table({"id": [1, 2, 3, 4], "jpeg": [png(seed) for seed in range(4)], "label": labels})
    pq.write_table(table, tmp_path / "x.parquet")
    source = open_spec(tmp_path / "x.parquet")
    names = sorted({str(label) for label in labels[:2]})
    assert source.class_names == names
    assert source.splits["train"].labels == [names.index(str(label)) for label in labels[:2]] + [None, None]
    assert read_all(source) == [png(seed) for seed in range(4)]


def test_a_label_column_of_a_less_usual_name_is_taken_and_said(tmp_path: Path, open_spec: Open) -> None:
    columns = {"image": [png(0), png(1)], "species": ["emu", "cat"], "id": [7, 8]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    source = open_spec(tmp_path / "x.parquet")
    assert source.class_names == ["cat", "emu"] and source.splits["train"].labels == [1, 0]
    assert source.warnings == ["x.parquet: 'species' is taken for the labels (data.label_key chooses another)."]
    assert open_spec(tmp_path / "x.parquet", label_key="none").class_names is None
    pq.write_table(pa.table({**columns, "category": ["p", "q"]}), tmp_path / "x.parquet")
    source = open_spec(tmp_path / "x.parquet")
    assert source.class_names is None and source.warnings == [
        "x.parquet: no column is taken for the labels; if they are one of 'species', 'id', 'category', say so by "
        "data.label_key."
    ]


def test_rows_without_an_image_are_unreadable_not_fatal(tmp_path: Path, open_spec: Open) -> None:
    pq.write_table(pa.table({"image": [png(0), None]}), tmp_path / "x.parquet")
    items = list(open_spec(tmp_path / "x.parquet").splits["train"])
    with pytest.raises(OSError, match="no image"):
        items[1].read()


def test_paths_in_a_parquet_file_are_relative_to_it(tmp_path: Path, open_spec: Open) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    cell = pa.array([{"bytes": None, "path": "a.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": cell}), tmp_path / "x.parquet")
    assert read_all(open_spec(tmp_path / "x.parquet")) == [png(3)]


def test_sounds_are_no_images(tmp_path: Path, open_spec: Open) -> None:
    sound = {"bytes": b"RIFF", "path": None}
    schema = datasets.Features({"sound": datasets.Audio(), "photo": datasets.Image()}).arrow_schema
    rows = [{"sound": sound, "photo": {"bytes": png(4), "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "x.parquet")
    assert read_all(open_spec(tmp_path / "x.parquet")) == [png(4)]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": [1]}, {}, "no column of images; its columns are 'label'"),
        ({"left": [png(0)], "right": [png(1)]}, {}, r"several such columns \('left', 'right'\); choose one by data.im"),
        ({"image": [png(0)]}, {"label_key": "kind"}, r"no column 'kind' \(data.label_key\); its columns are 'image'"),
        ({"image": [png(0)], "size": [3]}, {"image_key": "size"}, "'size' of .* holds neither images"),
        ({"image": pa.array([], pa.binary())}, {}, "has no rows"),
    ],
)
def test_parquet_columns_that_do_not_do(
    tmp_path: Path, open_spec: Open, columns: dict[str, Any], options: dict[str, str], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message):
        open_spec(tmp_path / "x.parquet", **options)


def test_two_class_columns_ask_for_one(tmp_path: Path, open_spec: Open) -> None:
    fine = hf_rows(range(4)).rename_column("label", "fine")
    both = fine.add_column("coarse", [0, 1, 0, 1]).cast_column("coarse", datasets.ClassLabel(names=["x", "y"]))
    both.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"'fine', 'coarse'.* data.label_key"):
        open_spec(tmp_path / "x.parquet")
    assert open_spec(tmp_path / "x.parquet", label_key="coarse").class_names == ["x", "y"]


@pytest.mark.parametrize("content", [b"", b"PAR1 but no more", None])
def test_damaged_parquet_is_named(tmp_path: Path, open_spec: Open, content: bytes | None) -> None:
    path = tmp_path / "x.parquet"
    hf_rows(range(20)).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(UserError, match=r"x\.parquet is not a readable parquet file"):
        open_spec(path)


def test_files_of_different_classes_are_refused(tmp_path: Path, open_spec: Open) -> None:
    hf_rows(range(3)).to_parquet(tmp_path / "train.parquet")
    other = hf_rows(range(3)).cast_column("label", datasets.ClassLabel(names=["x", "y", "z"]))
    other.to_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"test\.parquet has other columns or classes"):
        open_spec(tmp_path)


def test_saved_data_set(tmp_path: Path, open_spec: Open) -> None:
    splits = datasets.DatasetDict(
        train=hf_rows(range(70)),
        validation=hf_rows(range(70, 73)),
        test=hf_rows(range(73, 76)),
        extra=hf_rows(range(3)),
    )
    splits.save_to_disk(str(tmp_path / "saved"))
    source = open_spec(tmp_path / "saved")
    assert source.kind == "Hugging Face data set" and source.name == "saved"
    assert list(source.splits) == ["train", "val", "test"] and source.class_names == NAMES
    assert read_all(source) == [png(seed) for seed in range(70)]
    assert source.splits["val"][1].read() == png(71) and source.splits["val"][1].name == "validation:1"
    assert source.splits["test"].labels == [1, 2, 0]
    assert source.warnings == ["Splits of saved that are not used: extra."]


def test_saved_data_set_without_splits(tmp_path: Path, open_spec: Open) -> None:
    hf_rows(range(5)).save_to_disk(str(tmp_path / "saved"))
    source = open_spec(tmp_path / "saved")
    assert list(source.splits) == ["train"] and len(source.splits["train"]) == 5


def test_damaged_saved_data_set_is_named(tmp_path: Path, open_spec: Open) -> None:
    hf_rows(range(5)).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"x")
    with pytest.raises(UserError, match=r"saved cannot be read as a saved Hugging Face data set"):
        open_spec(tmp_path / "saved")


def test_the_same_rows_give_the_same_labels_in_every_container(tmp_path: Path, open_spec: Open) -> None:
    rows = hf_rows(range(9))
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(tmp_path / "x.parquet")
    sources = [open_spec(tmp_path / "saved"), open_spec(tmp_path / "x.parquet")]
    assert sources[0].splits["train"].labels == sources[1].splits["train"].labels
    assert read_all(sources[0]) == read_all(sources[1])


def test_digest_sees_the_names_of_the_classes(tmp_path: Path, open_spec: Open) -> None:
    digests = set()
    for names in (["cat", "dog", "emu"], ["cat", "dog", "owl"]):
        hf_rows(range(3)).cast_column("label", datasets.ClassLabel(names=names)).to_parquet(tmp_path / "x.parquet")
        digests.add(open_spec(tmp_path / "x.parquet").content_digest())
    assert len(digests) == 2


def test_of_a_parquet_file_some_rows_are_in_memory(tmp_path: Path, open_spec: Open) -> None:
    """20 MB in 40 row groups, of which one is read at a time."""
    with pq.ParquetWriter(tmp_path / "x.parquet", pa.schema({"image": pa.binary()}), compression="none") as writer:
        for number in range(40):
            cells = [bytes([number]) + bytes(1 << 16) for _ in range(8)]
            writer.write_table(pa.table({"image": pa.array(cells, pa.binary())}))
    before, most = pa.total_allocated_bytes(), 0
    for item in open_spec(tmp_path / "x.parquet").splits["train"]:
        most = max(most, pa.total_allocated_bytes() - before)
        assert len(item.read()) == 1 + (1 << 16)
    assert most < 5 << 20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub in place of the real one: name -> data set, or an error to raise for every name."""
    import huggingface_hub

    known: dict[str, Any] = {}

    def dataset_info(self: Any, name: str, **options: Any) -> None:
        if "error" in known:
            raise known["error"]
        if name not in known:
            error = huggingface_hub.errors.RepositoryNotFoundError
            raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration: known[name][configuration])
    return known


def test_hub_id(hub: dict[str, Any], open_spec: Open) -> None:
    hub["owner/birds"] = {None: datasets.DatasetDict(train=hf_rows(range(3)), test=hf_rows(range(3, 6)))}
    hub["owner/birds"]["small"] = datasets.DatasetDict(full=hf_rows(range(2)))
    source = open_spec("owner/birds")
    assert source.name == "owner/birds" and list(source.splits) == ["train", "test"]
    assert len(open_spec("owner/birds:small").splits["train"]) == 2


def test_a_path_comes_before_the_hub(
    hub: dict[str, Any], open_spec: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["error"] = AssertionError("the hub was asked")
    monkeypatch.chdir(tmp_path)
    write_classes(Path("owner/birds"), {"a": 1, "b": 1})
    assert open_spec("owner/birds").kind == "image folder"


def test_unreachable_hub_and_unknown_name_are_one_sentence(hub: dict[str, Any], open_spec: Open) -> None:
    with pytest.raises(UserError, match="neither a file or folder nor a public data set of the hub is called 'fotos'"):
        open_spec("fotos")
    hub["error"] = ConnectionError("[Errno -2] Name or service not known\nmore")
    with pytest.raises(UserError, match=r"no file or folder 'o/fotos', and the .* hub cannot be reached") as caught:
        open_spec("o/fotos")
    assert "\n" not in str(caught.value)


def test_hub_data_that_cannot_be_loaded(hub: dict[str, Any], open_spec: Open) -> None:
    hub["owner/birds"] = {}
    with pytest.raises(UserError, match="'owner/birds:big' could not be loaded from the Hugging Face hub"):
        open_spec("owner/birds:big")
    hub["owner/birds"] = {None: datasets.DatasetDict(left=hf_rows(range(2)), right=hf_rows(range(2)))}
    with pytest.raises(UserError, match="no split called train, val or test; its splits are left, right"):
        open_spec("owner/birds")


def test_text_data_sets_have_no_images(hub: dict[str, Any], open_spec: Open) -> None:
    hub["owner/words"] = {None: datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"], "label": [0]}))}
    with pytest.raises(
        UserError,
        match=r"owner/words \(train\) has no column of images; its columns are 'text', 'label': texts need a model of",
    ):
        open_spec("owner/words")
