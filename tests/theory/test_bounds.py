"""What of Theorems 1 and 2 holds, and the counter-examples to what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sdfast.errors import UserError
from sdfast.theory import LinearModel, paper_bound, paper_drops, repaired_bound, repaired_drops
from sdfast.theory.instance import Draw, draw, survey
from sdfast.theory.verify import curves, verify

HALF = float(np.log(2))  # with one singular value of 1, half of the way to the labels
INSTANCES = [
    draw(replace(settings, targets=targets), seed)
    for settings in (Draw(), Draw(1, 2, 1), Draw(3, 12, 2, 1.0))
    for targets in ("near", "independent")
    for seed in range(10)
]


def tiny(teacher: float, label: float, ridge: float = 1.0) -> LinearModel:
    """One sample with features (1, 0) and one output: everything can be computed by hand."""
    return LinearModel(np.array([[1.0], [0.0]]), np.array([[teacher, 0.0]]), np.array([[label]]), ridge)


def squared_norm(model: LinearModel, t: int, time: float) -> float:
    return float((model.finetuned(t, time) ** 2).sum())


def test_inequality_6_fails_by_hand() -> None:
    """q = c = 1: fine-tuning starts at the solution and stays, while (6) allows 1/4 + 1/4."""
    model = tiny(teacher=1.0, label=1.0)
    assert squared_norm(model, 0, HALF) == pytest.approx(1.0)
    assert paper_bound(model, 0, HALF) ** 2 == pytest.approx(0.5)
    assert squared_norm(model, 0, HALF) > paper_bound(model, 0, HALF) ** 2
    assert repaired_bound(model, 0, HALF) ** 2 == pytest.approx(1.0)


def test_inequality_6_fails_on_the_documented_instance() -> None:
    """n = 6, d = 9, p = 3, lambda = T = 0.05, labels 1.3 times the teacher's outputs."""
    drawn, _ = draw(Draw(), 0)
    model = replace(drawn, targets=1.3 * drawn.teacher @ drawn.features)
    assert squared_norm(model, 0, 0.05) > 1.3 * paper_bound(model, 0, 0.05) ** 2
    assert squared_norm(model, 0, 0.05) == pytest.approx(repaired_bound(model, 0, 0.05) ** 2)  # the signs agree


def test_the_norm_may_rise_by_hand() -> None:
    """q = -1 and c(0) = 1 cancel after half of the way; a round later c is smaller and they no longer do."""
    model = tiny(teacher=1.0, label=-1.0)
    assert squared_norm(model, 0, HALF) == pytest.approx(0.0, abs=1e-30)
    assert squared_norm(model, 1, HALF) == pytest.approx(1 / 16)  # c(1) = 1/2, and (-1/2 + 1/4)^2
    assert paper_bound(model, 1, HALF) ** 2 == pytest.approx(1 / 4 + 1 / 16)  # no counter-example to (6)
    assert repaired_bound(model, 1, HALF) ** 2 == pytest.approx(9 / 16)


@pytest.mark.parametrize("time", [0.0, 0.05, 0.4, 2.0])
def test_the_repaired_bound_holds_decreases_and_drops_most_at_first(time: float) -> None:
    for model, start in INSTANCES:
        found = curves(model, start, 5, time)
        assert (found.norm <= found.repaired * (1 + 1e-12)).all()
        assert (found.distance <= found.repaired + found.start + 1e-12).all()
        assert (found.paper <= found.repaired * (1 + 1e-12)).all()
        for bound, drops in ((found.paper, paper_drops), (found.repaired, repaired_drops)):
            each = np.array(drops(model, 5, time))
            assert (each > 0).all()
            np.testing.assert_allclose(each, -np.diff(bound**2), atol=1e-12 * bound[0] ** 2)
            assert (np.diff(each) < 0).all()


def test_the_repaired_bound_is_attained_where_signs_agree() -> None:
    drawn, _ = draw(Draw(), 4)
    model = replace(drawn, targets=2.0 * drawn.teacher @ drawn.features)
    for t in range(4):
        final = model.finetuned(t, 0.3)
        assert np.linalg.norm(final) == pytest.approx(repaired_bound(model, t, 0.3))
        start = -1.7 * final
        psi = repaired_bound(model, t, 0.3) + np.linalg.norm(start)
        assert np.linalg.norm(start - final) == pytest.approx(psi)


def test_the_bounds_are_what_the_paper_and_the_repair_write() -> None:
    model, _ = draw(Draw(4, 6, 2, 0.3, "independent"), 8)
    basis, values, outputs = np.linalg.svd(model.features)
    left = np.concatenate([np.kron(np.eye(2), basis[:, :4]), np.kron(np.eye(2), basis[:, 4:])], axis=1)
    scales, right = np.tile(values, 2), np.kron(np.eye(2), outputs)  # together an SVD of I_p (x) Phi
    np.testing.assert_allclose((left[:, :8] * scales) @ right, np.kron(np.eye(2), model.features), atol=1e-12)
    labels, teacher = right @ model.targets.ravel(), left.T @ model.teacher.ravel()
    for t in range(3):
        paper = repaired = float((teacher[8:] ** 2).sum()) if t == 0 else 0.0
        for i, s in enumerate(scales):
            q, e = labels[i] / s, np.exp(-(s**2) * 0.2)
            c = teacher[i] / (1 + 4 * 0.3 / s**2) ** t
            paper += (q * (1 - e)) ** 2 + (c * e) ** 2
            repaired += (abs(q) * (1 - e) + abs(c) * e) ** 2
        assert paper_bound(model, t, 0.2) ** 2 == pytest.approx(paper)
        assert repaired_bound(model, t, 0.2) ** 2 == pytest.approx(repaired)


def test_verify_names_what_fails_and_nothing_else() -> None:
    for targets in ("near", "independent"):
        for seed in range(5):
            claims = verify(*draw(Draw(targets=targets), seed), rounds=4, time=0.5)
            assert all(claim.holds for claim in claims if claim.must)
            assert [claim.statement[:3] for claim in claims if not claim.must] == ["(6)", "||w"]
    claims = {claim.statement: claim for claim in verify(*draw(Draw(), 0), rounds=4, time=0.5)}
    assert not claims["(6): ||w_{t,T}|| <= paper's zeta(t)"].holds


def test_verify_finds_a_wrong_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    model, start = draw(Draw(), 0)
    right = LinearModel.distilled_range
    monkeypatch.setattr(LinearModel, "distilled_range", lambda self, t: right(self, t) * (1 + 1e-6 * t))
    broken = [claim.statement for claim in verify(model, start, 3, 0.5) if claim.must and not claim.holds]
    assert any(statement.startswith("Lemma 1") for statement in broken)


def test_without_a_ridge_no_round_after_the_first_changes_anything() -> None:
    claims = verify(*draw(Draw(ridge=0.0), 0), rounds=3, time=0.5)
    assert all(claim.holds for claim in claims if claim.must)
    assert [claim.holds for claim in claims if "strictly" in claim.statement] == [False, False]


def test_the_survey_counts_instances() -> None:
    told: list[int] = []
    found = survey(Draw(), "near", seed=0, rounds=2, time=0.5, instances=30, say=told.append)
    assert told[-1] == 30 and found.instances == 30
    assert found.paper_fails > 25 and found.repaired_fails == 0
    again = survey(Draw(), "independent", seed=0, rounds=5, time=1.0, instances=30)
    assert 5 < again.paper_fails < 28 and 2 < again.norm_rises < 25 and again.repaired_fails == 0


def test_bad_arguments_are_one_sentence() -> None:
    model, start = draw(Draw(), 0)
    for rounds, time, words in [(0, 1.0, "rounds"), (3, -1.0, "time -1"), (3, float("inf"), "time inf")]:
        with pytest.raises(UserError, match=words):
            verify(model, start, rounds, time)
    with pytest.raises(UserError, match="nothing that float64 can tell"):
        verify(model, start, 3, 1e6)
