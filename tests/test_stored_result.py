"""Every change of `result.json` is noticed before anything believes it; what an earlier version wrote is believed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from changed_json import changes

from sdfast.durable import sha256_json, staged_directory
from sdfast.errors import RunError
from sdfast.rundir import Outcome, StageDirectory, StoredResult, read_result
from sdfast.store.artifact import files_in

INPUTS = {"stage": "finetune", "seed": 0, "classes": ["a", "b"], "finetune.betas": [0.9, 0.999], "nothing": None}
METRICS = {"accuracy": 0.5, "test_loss": 1.25}
NUMBERS = {"steps": 7, "seconds": 2.5, "img_per_s": 11.0, "paper_metric": "accuracy", "best_step": 4, "best_by": "loss"}
TABLES = {
    "per_class": {"test": {"a": {"precision": 0.5, "recall": 1.0, "f1": 0.75, "support": 1}}},
    "confusion_matrix": {"test": [[1, 0], [1, 0]]},
}
LIES: list[Any] = [None, True, -1, 3, 10**40, 0.75, "", "x", "../outside", [], {}, [1], {"a": "b"}]


@pytest.fixture
def original(tmp_path: Path) -> dict[str, Any]:
    """As a stage writes it, into <tmp>/finetune."""
    outcome = Outcome(
        "0" * 64, lambda folder: (folder / "config.json").write_text("{}"), dict(NUMBERS), METRICS, TABLES
    )
    result = StageDirectory(tmp_path / "finetune", "finetune").finish(INPUTS, outcome)
    stored = read_result(tmp_path / "finetune")
    assert stored is not None and stored.result(result.model) == result and stored.inputs == INPUTS
    return json.loads((tmp_path / "finetune" / "result.json").read_text())


def read(folder: Path, value: Any) -> StoredResult | None:
    (folder / "finetune" / "result.json").write_text(json.dumps(value))
    return read_result(folder / "finetune")


def test_it_has_a_digest_of_itself_and_every_change_is_noticed(original: dict[str, Any], tmp_path: Path) -> None:
    inner = {name: value for name, value in original.items() if name != "sha256"}
    canonical = json.dumps(inner, sort_keys=True, separators=(",", ":")).encode()
    assert original["sha256"] == hashlib.sha256(canonical).hexdigest()
    count = 0
    for path, value in changes(original, LIES):
        assert (read(tmp_path, value) is None) == ("sha256" in value), (path, value)
        count += 1
    assert count > 250


def test_what_is_wrong_in_one_of_an_earlier_version_has_at_least_the_right_kind(
    original: dict[str, Any], tmp_path: Path
) -> None:
    earlier = {name: value for name, value in original.items() if name != "sha256"}
    assert read(tmp_path, earlier) == read(tmp_path, original)
    taken = [stored for _, value in changes(earlier, LIES) if (stored := read(tmp_path, value)) is not None]
    assert taken
    for stored in taken:
        result = stored.result(tmp_path / "finetune" / "model")
        f"{result.steps:d} {result.seconds:.0f} {result.rate:.0f} {result.weights[:9]}"
        assert all(isinstance(value, float | int) for value in result.metrics.values())
        assert len(result.weights) == len(result.fingerprint) == 64 and isinstance(stored.inputs, dict)


def test_a_changed_score_is_no_result(original: dict[str, Any], tmp_path: Path) -> None:
    directory = StageDirectory(tmp_path / "finetune", "finetune")
    assert directory.finished(INPUTS) is not None and original["fingerprint"] == sha256_json(INPUTS)
    read(tmp_path, {**original, "metrics": {**METRICS, "accuracy": 0.99}})
    assert directory.finished(INPUTS) is None and directory.changed_input(INPUTS) == "result.json"


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a result would lack its files, and the stage would refuse them as another's when it runs again."""
    for name in ("config.json", "encoder/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "encoder")
    assert list(files_in(tmp_path)) == ["config.json", "encoder/config.json", "link"]
    assert files_in(tmp_path / "absent") == {}
    scan = os.scandir

    def refused(path: Any) -> Any:
        if str(path).endswith("encoder"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        files_in(tmp_path)
    with pytest.raises(RunError, match="permission is denied"), staged_directory(tmp_path / "made") as staging:
        (staging / "encoder").mkdir()
