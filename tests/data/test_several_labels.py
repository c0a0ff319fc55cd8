"""Several classes a row, and numbers: from every kind of cell to the arrays of a pack, beside pandas and numpy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from data_samples import write_image
from numpy.typing import NDArray
from pydantic import ValidationError

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.modality import IMAGES, TEXTS
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, class_counts, has_label, label_array, problem_of, strata
from sdfast.data.rows import held_out_rows, stratified_rows
from sdfast.data.sources import open_source
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.transform import Transform

CELLS: list[Any] = [["red", "round"], ["red"], [], None, ["round", "red", "old"], ["old"]]
WANTED = [{"red", "round"}, {"red"}, set(), None, {"red", "round", "old"}, {"old"}]
NAMES = ["old", "red", "round"]


def opened(path: Path, **options: Any) -> Source:
    return open_source(str(path), DataConfig(**options), TEXTS)


def sets_of(source: Source, split: str = "train") -> list[set[str] | None]:
    names = source.class_names or []
    return [None if label is None else {names[n] for n in label} for label in source.splits[split].labels]  # type: ignore[union-attr, index]


def frame_of(cells: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({"text": [f"text {row}" for row in range(len(cells))], "label": cells})


def as_json_lines(root: Path, cells: list[Any]) -> Path:
    lines = [json.dumps({"text": f"text {row}", "label": cell}) for row, cell in enumerate(cells)]
    (root / "x.jsonl").write_text("\n".join(lines))
    return root / "x.jsonl"


def as_parquet(root: Path, cells: list[Any]) -> Path:
    frame_of(cells).to_parquet(root / "x.parquet")
    return root / "x.parquet"


def as_saved(root: Path, cells: list[Any]) -> Path:
    """With a list of `ClassLabel`."""
    kind = datasets.Sequence(datasets.ClassLabel(names=NAMES))
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    datasets.Dataset.from_pandas(frame_of(cells), features=features).save_to_disk(str(root / "saved"))
    return root / "saved"


@pytest.mark.parametrize("write", [as_json_lines, as_parquet, as_saved])
def test_lists_are_several_classes_a_row(tmp_path: Path, write: Callable[[Path, list[Any]], Path]) -> None:
    source = opened(write(tmp_path, CELLS))
    assert source.problem == SEVERAL and source.class_names == NAMES and sets_of(source) == WANTED


@pytest.mark.parametrize(
    ("named", "mark"), [("semicolon", ";"), (";", ";"), ("comma", ","), ("bar", "|"), (" / ", " / ")]
)
def test_cells_with_a_separator(tmp_path: Path, named: str, mark: str) -> None:
    """An empty cell is no label, as in every table, and `[]` says that no class applies."""
    cells = [None if cell is None else mark.join(cell) or "[]" for cell in CELLS]
    frame_of(cells).to_csv(tmp_path / "x.csv", index=False)
    source = opened(tmp_path / "x.csv", label_separator=named)
    assert source.problem == SEVERAL and sets_of(source) == WANTED


def test_lists_as_pandas_writes_them_into_a_table(tmp_path: Path) -> None:
    frame_of(CELLS).to_csv(tmp_path / "x.csv", index=False)
    source = opened(tmp_path / "x.csv", problem_type=SEVERAL)
    assert source.class_names == NAMES and sets_of(source) == WANTED


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_one_column_a_class(tmp_path: Path, kind: str) -> None:
    """In the order of the columns; a row of which a cell is empty has no label, and that is counted."""
    frame = pd.DataFrame({name: [int(name in (cell or ())) for cell in CELLS] for name in ("round", "old", "red")})
    frame = frame.astype("Int64").mask([[cell is None] * 3 for cell in CELLS])
    frame.loc[5, "red"] = pd.NA
    frame.insert(0, "text", [f"text {row}" for row in range(len(CELLS))])
    path = tmp_path / f"x.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "jsonl":
        path.write_text(frame.to_json(orient="records", lines=True))
    else:
        frame.to_parquet(path)
    source = opened(path, label_key=["round", "old", "red"])
    assert source.class_names == ["round", "old", "red"] and sets_of(source) == [*WANTED[:5], None]
    assert any("is missing beside others, which count as without a label: 1." in said for said in source.warnings)
    frame["old"] = 2
    frame.to_csv(tmp_path / "y.csv", index=False)
    with pytest.raises(UserError, match=r"row 0: column 'old' holds '2', .* 0 or 1 .*data.problem_type=regression"):
        opened(tmp_path / "y.csv", label_key=["round", "old", "red"])


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            ["a,b", "a", "b,c", "c", "b"],
            "'a,b', 'b,c'); if they are several classes a row, set data.problem_type=multi",
        ),
        (["['a', 'b']", "['a']", "[]"], "look like lists, of which each is a class of its own: 3"),
        (["Smith, J", "Miller, K", "Jones"], None),  # nothing recurs
        (["a", "b", "c"], None),
    ],
)
def test_combinations_that_become_classes_are_said(tmp_path: Path, cells: list[str], said: str | None) -> None:
    frame_of(cells * 3).to_csv(tmp_path / "x.csv", index=False)
    source = opened(tmp_path / "x.csv")
    assert source.problem == SINGLE and source.class_names == sorted(cells)
    assert [said is not None and said in each for each in source.warnings] == ([] if said is None else [True])
    if said is not None and "," in cells[0][:2]:
        assert "data.label_separator=comma." in source.warnings[0]
        assert opened(tmp_path / "x.csv", label_separator="comma").class_names == ["a", "b", "c"]


def test_folders_of_classes_as_rows_of_several(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_image(tmp_path / "train" / name / "1.png", seed=len(name) + ord(name[0]))
        write_image(tmp_path / "test" / name / "1.png", seed=ord(name[0]))
    source = open_source(str(tmp_path), DataConfig(problem_type=SEVERAL), IMAGES)
    assert source.problem == SEVERAL and source.splits["train"].labels == [(0,), (1,)]
    with pytest.raises(UserError, match="'cat' is no number"):
        open_source(str(tmp_path), DataConfig(problem_type=REGRESSION), IMAGES)


def test_a_class_that_train_lacks_takes_its_rows_with_it(tmp_path: Path) -> None:
    for split, cells in {"train": [["a"], ["a", "b"]], "test": [["a"], ["b", "new"], []]}.items():
        frame_of(cells).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(
        UserError, match=r"lasses of test that train lacks: 1 \(the first: 'new'\).*leaves out the 1 doc"
    ):
        opened(tmp_path)
    source = opened(tmp_path, unseen="drop")
    assert source.class_names == ["a", "b"] and sets_of(source, "test") == [{"a"}, set()]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_of_one_column_and_of_several(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame({"text": list("abcd"), "label": [1, 2.5, np.nan, -1e3], "y": [0, 1, 2, 3]})
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    path = tmp_path / f"x.{kind}"
    assert opened(path).problem == SINGLE  # only where it is asked for
    source = opened(path, problem_type=REGRESSION)
    assert source.class_names == ["label"] and source.splits["train"].labels == [(1.0,), (2.5,), None, (-1000.0,)]
    source = opened(path, problem_type=REGRESSION, label_key=["y", "label"])
    assert source.class_names == ["y", "label"]
    assert source.splits["train"].labels == [(0.0, 1.0), (1.0, 2.5), None, (3.0, -1000.0)]
    assert any("is missing beside others, which count as without a label: 1." in said for said in source.warnings)


def test_numbers_in_lists(tmp_path: Path) -> None:
    source = opened(as_json_lines(tmp_path, [[1, 2], None, [3.5, -4]]), problem_type=REGRESSION)
    assert source.class_names == ["label_0", "label_1"]
    assert source.splits["train"].labels == [(1.0, 2.0), None, (3.5, -4.0)]
    with pytest.raises(UserError, match=r"row 0 has 2 numbers, and .*row 1 has 1; each row has as many"):
        opened(as_json_lines(tmp_path, [[1, 2], [3]]), problem_type=REGRESSION)


@pytest.mark.parametrize("cell", ["high", "1,5", "inf", "1e400", "1e39", "True"])
def test_what_is_no_number_is_named(tmp_path: Path, cell: str) -> None:
    frame_of(["1.5", cell]).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match=f"row 1: '{cell}' is no number"):
        opened(tmp_path / "x.csv", problem_type=REGRESSION)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_separator": ";", "problem_type": REGRESSION}, "label_separator parts the classes"),
        ({"label_key": ["a", "b"], "problem_type": SINGLE}, "label_key is a list of columns"),
        ({"label_key": ["a", "a"]}, "a list of different ones"),
        ({"problem_type": "several"}, "multi_label_classification"),
    ],
)
def test_settings_that_contradict_each_other(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig(**options)


def several(rows: int, seed: int) -> NDArray[np.uint8]:
    """Rows of four classes, of which one is rare; some with none, some without a label."""
    random = np.random.default_rng(seed)
    labels = (random.random((rows, 4)) < (0.5, 0.3, 0.2, 0.05)).astype(np.uint8)
    labels[random.random(rows) < 0.1] = 255
    return labels


def digests(rows: int) -> NDArray[np.uint8]:
    return np.random.default_rng(9).integers(0, 256, (rows, 32)).astype(np.uint8)


def test_strata_of_several_classes_are_the_rarest_class_of_each_row() -> None:
    labels = several(300, 1)
    counts = pd.DataFrame(labels[labels[:, 0] != 255]).sum()
    assert class_counts(labels, 4).tolist() == counts.tolist()
    for row, group in zip(labels, strata(labels), strict=True):
        own = [place for place in range(4) if row[place] == 1]
        expected = -1 if row[0] == 255 else min(own, key=lambda place: (counts[place], place)) if own else 4
        assert group == expected


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_held_out_rows_and_limits_keep_the_shares_of_the_strata(fraction: float) -> None:
    for labels in (several(400, 2), np.random.default_rng(3).normal(size=(400, 2)).astype(np.float32)):
        groups, contents = strata(labels), digests(400)
        sizes = pd.Series(groups[groups >= 0]).value_counts()
        held_out = pd.Series(groups[held_out_rows(contents, groups, fraction, 7)]).value_counts()
        assert held_out.to_dict() == {group: int(fraction * size + 0.5) for group, size in sizes.items()}
        for limit in (60, 120):
            chosen = pd.Series(groups[stratified_rows(contents, groups, limit, 7)]).value_counts()
            shares = limit * sizes / sizes.sum()
            assert ((chosen - shares).abs() <= 2).all()


def test_strata_of_numbers_are_bins_of_equally_many_rows() -> None:
    numbers = np.random.default_rng(4).exponential(size=(200, 1)).astype(np.float32)
    expected = pd.qcut(numbers[:, 0].astype(float), 10, labels=False)
    assert strata(numbers).tolist() == expected.tolist()
    numbers[::7] = np.nan
    assert (strata(numbers) == -1).tolist() == np.isnan(numbers[:, 0]).tolist()
    assert Counter(strata(numbers[:9])[1:7].tolist()) == Counter({0: 6}) or strata(numbers[:9]).max() == 0
    ties = np.repeat(np.float32([1, 2, 5]), 20)[:, None]
    assert all(len(set(strata(ties)[part : part + 20].tolist())) == 1 for part in (0, 20, 40))
    assert strata(np.full((5, 2), np.nan, np.float32)).tolist() == [-1] * 5


def test_arrays_tell_what_they_are() -> None:
    one = label_array([2, None, 0], SINGLE, 3)
    many = label_array([(0, 2), None, ()], SEVERAL, 3)
    numbers = label_array([(1.5,), None, (-2.0,)], REGRESSION, 1)
    assert [problem_of(each) for each in (one, many, numbers)] == [SINGLE, SEVERAL, REGRESSION]
    assert one.tolist() == [2, -1, 0] and many.tolist() == [[1, 0, 1], [255] * 3, [0, 0, 0]]
    assert numbers.dtype == np.float32 and np.isnan(numbers[1, 0]) and numbers[[0, 2], 0].tolist() == [1.5, -2.0]
    assert all(has_label(each).tolist() == [True, False, True] for each in (one, many, numbers))


@pytest.mark.parametrize("problem", [SEVERAL, REGRESSION])
def test_a_pack_keeps_them_and_knows_when_they_changed(tmp_path: Path, problem: Any) -> None:
    names = [f"{number}.png" for number in range(24)]
    for number, name in enumerate(names):
        write_image(tmp_path / name, seed=number)
    random = np.random.default_rng(5)
    frame = pd.DataFrame({"file_name": names, "a": random.integers(0, 2, 24), "b": random.integers(0, 2, 24)})

    def packed() -> ImagePack:
        frame.to_csv(tmp_path / "list.csv", index=False)
        options = DataConfig(label_key=["a", "b"], problem_type=problem)
        source = str(tmp_path / "list.csv")
        return ImagePack.prepare(source, tmp_path / "pack", Transform(6, 8), options, lambda said: None)

    pack = packed()
    assert pack.problem == problem == pack.manifest["problem_type"] and pack.class_names == ["a", "b"]
    by_name = frame.set_index("file_name")
    for split in pack.splits.values():
        assert split.labels.dtype == (np.uint8 if problem == SEVERAL else np.float32)
        assert split.labels.tolist() == by_name.loc[split.names].to_numpy().tolist()
    if problem == SEVERAL:
        counts = pd.DataFrame(pack.split("train").labels, columns=["a", "b"]).sum().to_dict()
        assert pack.manifest["splits"]["train"]["classes"] == counts
    made = (tmp_path / "pack" / "manifest.json").stat().st_mtime_ns
    assert packed().fingerprint == pack.fingerprint and (tmp_path / "pack/manifest.json").stat().st_mtime_ns == made
    frame.loc[3, "b"] = 1 - frame.loc[3, "b"]
    assert packed().fingerprint != pack.fingerprint
