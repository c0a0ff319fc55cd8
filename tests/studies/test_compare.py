"""The table of `sdfast study compare`: metrics that all runs have."""

from __future__ import annotations

from pathlib import Path

from sdfast.studies.compare import _csv, _markdown

from sdfast.rundir import Result

OLD = {"accuracy": 0.5, "macro_f1": 0.4, "test_loss": 1.5, "train_loss": 1.0}
NEW = {**OLD, "generalisation_gap": 0.5, "distance": 7.25}


def run(metrics: dict[str, float]) -> Result:
    return Result("finetune", Path("model"), 1, 2.0, "print", "weights", metrics, img_per_s=3.0)


def test_gap_and_distance_are_shown_where_every_run_has_them() -> None:
    stages = {"pretrain": run({})}
    both = {"fine-tuning": [run(NEW)], "self-distillation": [run(NEW)]}
    table = _markdown(both, stages, 1)
    assert table.count("7.250 ± 0.000") == 2 and "| gap" in table and "Distance:" in table
    assert _csv(both, 0).splitlines()[0].endswith("generalisation_gap,distance,seconds")
    mixed = {"fine-tuning": [run(NEW)], "self-distillation": [run(OLD)]}
    assert "gap" not in _markdown(mixed, stages, 1) and "1.500 ± 0.000" in _markdown(mixed, stages, 1)
    assert _csv(mixed, 0).splitlines()[1] == "fine-tuning,0,0.5,0.4,1.5,1.0,2.0"
