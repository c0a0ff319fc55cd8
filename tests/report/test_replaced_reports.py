"""What a run that takes the place of another leaves of its report."""

from __future__ import annotations

from pathlib import Path

from report.fake_runs import write_run

from sdfast.durable import write_json
from sdfast.occupant import is_replaced, sweep_replaced
from sdfast.report.live import LiveReport


def test_what_was_made_of_the_other_run_goes_and_what_a_person_put_there_stays(tmp_path: Path) -> None:
    out = write_run(tmp_path)
    (out / "report").mkdir()
    for name in ("masked.json", "map.png", "test-predictions.npz", "sessions.json", "mine.png"):
        (out / "report" / name).write_text("x")
    write_json(out / ".replaced.json", ["distill", "finetune"])
    sweep_replaced(out, out / "pretrain")
    assert sorted(path.name for path in (out / "report").iterdir()) == ["mine.png", "sessions.json"]


def test_the_commands_of_the_other_run_are_forgotten(tmp_path: Path) -> None:
    follower = LiveReport(tmp_path, "cpu", 1)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "sessions.json").write_text('[{"command": "that of the other"}]')
    (tmp_path / ".replaced.json").write_text("[]")
    assert is_replaced(tmp_path)
    follower.begin("pretrain", tmp_path / "pretrain", 3, 0)
    assert "of the other" not in (tmp_path / "report" / "sessions.json").read_text()
