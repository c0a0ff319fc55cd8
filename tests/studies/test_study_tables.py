"""A study's tables and figures, of made-up results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import rc_context
from study_samples import Metrics, made_up, noisy

from sdfast.data.paper_sets import PAPER_SETS, PaperSet
from sdfast.studies.declared import STUDIES, Arm
from sdfast.studies.figures import _STYLE, Span, _captioned, _dots, _gaps, _lines, caption, draw, span_of
from sdfast.studies.paper_results import TABLES, paper_number
from sdfast.studies.plan import other_sizes
from sdfast.studies.results import Found
from sdfast.studies.tables import markdown, record, run_rows

CUB = PaperSet("CUB", frozenset(), {}, 200, "macro_f1")


def table(found: Sequence[Found]) -> str:
    return markdown(found[0].study, found, "paper")


def cells(text: str, first: str) -> list[str]:
    """Of the first row that begins so."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in row.split("|")][1:-1]


def test_the_comparison_is_one_table_with_differences_from_fine_tuning() -> None:
    found = made_up(STUDIES["compare"])
    text = table([found])
    header = cells(text, "method")
    assert header[:5] == ["method", "accuracy %", "difference from fine-tuning [95 %]", "p", "p (Holm)"]
    assert header[5:] == ["test loss", "train loss", "gap", "distance"]
    compared = found.compared("score")["self-distillation"]
    row = cells(text, "self-distillation")
    assert row[2] == f"{compared.mean:+.1f} [{compared.low:+.1f}, {compared.high:+.1f}]"
    assert compared.p is not None and row[3] == f"{compared.p:.3f}"
    assert cells(text, "fine-tuning")[2:5] == ["", "", ""]
    assert "fine-tuning alone" in text and "- RecAdam: model, model, model" in text


def test_the_papers_number_stands_beside_ours_on_its_data_alone() -> None:
    text = table([made_up(STUDIES["table1"], title="CUB", paper=CUB)])
    assert cells(text, "self-distillation")[2] == "58.06 ± 0.90" and "Lee et al." in text
    assert "Lee et al." not in (text := table([made_up(STUDIES["table1"], title="CUB")])) and "58.06" not in text


def test_what_the_paper_misprints_is_said_where_its_numbers_are_shown() -> None:
    sets = {paper.title: paper for paper in PAPER_SETS}
    shown = [made_up(STUDIES["table1"], title=name, paper=sets[name]) for name in ("CUB", "Dogs")]
    text = table(shown)
    assert "CUB: in the paper Table 7 prints 5,594 train, and the published split has 5,994." in text
    assert text.count("in the paper") == 1
    text = table([made_up(STUDIES["table5"], title="Flower", paper=sets["Flower"])])
    assert cells(text, "self-distillation")[2] == "90.28 ± 0.44"
    assert "Flower: in the paper Table 5 prints 79.68 for self-distillation" in text
    assert "in the paper" not in table([made_up(STUDIES["table1"], title="Flower", paper=sets["Flower"])])


def test_other_sizes_than_the_papers_are_said_with_what_the_paper_misprints() -> None:
    sets = {paper.title: paper for paper in PAPER_SETS}
    assert other_sizes(sets["CUB"], 5994, 5994, 5794, 200) is None
    said = other_sizes(sets["CUB"], 5594, 100, 5794, 200) or ""
    assert "trained on 5994 rows and was tested on 5794, in 200 classes (Table 7 prints 5,594 train, and" in said
    assert said.endswith("and these are 5594 (100 of them for fine-tuning) and 5794 in 200 classes.")
    assert "12000 rows and was tested on 8580, in 120 classes, and these are 2 and 1 in 120 classes." in (
        other_sizes(sets["Dogs"], 2, 2, 1, 120) or ""
    )


def test_two_data_sets_are_columns_of_one_table() -> None:
    text = table([made_up(STUDIES["table4"], title=name) for name in ("one", "two")])
    assert cells(text, "arm")[1:] == ["one: log train loss", "one: test loss", "two: log train loss", "two: test loss"]
    assert text.count("Paired by seed") == 2


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    text = table([made_up(STUDIES["table1"], seeds=[4])])
    assert "±" not in text and "nan" not in text and cells(text, "MARS")[3] == "one seed"


def test_arms_that_are_the_same_have_no_p_and_are_named() -> None:
    def still(arm: Arm, seed: int) -> Metrics:
        return dict.fromkeys(noisy(arm, seed), 0.5)

    found = made_up(STUDIES["table1"], metrics=still)
    assert cells(table([found]), "MARS")[2:4] == ["+0.0", "same for all seeds"]
    assert not found.coincidences()
    first = found.runs["fine-tuning"]
    found.runs["MARS"] = [replace(run, stages=first[at].stages) for at, run in enumerate(found.runs["MARS"])]
    assert "MARS gave the very weights of fine-tuning" in table([found])


def test_what_is_missing_or_refused_is_said() -> None:
    found = made_up(STUDIES["table1"])
    del found.runs["R3F"]
    found.target.unavailable["MARS"] = "it needs the weights whole."
    text = table([found])
    assert cells(text, "R3F")[1] == "-" and cells(text, "MARS")[1] == "not available"
    assert "Not available: MARS: it needs the weights whole." in text and "3 of 18 runs are missing" in text


def test_arms_with_fewer_runs_say_how_many_and_over_what_they_differ() -> None:
    found = made_up(STUDIES["compare"], seeds=[0, 1, 2, 3])
    assert "n" not in cells(table([found]), "method")
    for title, left in (("MARS", 2), ("R3F", 0)):
        found.runs[title] = found.runs[title][:left]
    del found.runs["R3F"]
    text = table([found])
    assert cells(text, "method")[:2] == ["method", "n"]
    assert {title: cells(text, title)[1] for title in ("fine-tuning", "MARS", "R3F")} == {
        "fine-tuning": "4",
        "MARS": "2",
        "R3F": "0",
    }
    pairs = [
        100 * (found.runs[title][at].result.metrics["accuracy"]) for title in ("MARS", "fine-tuning") for at in (0, 1)
    ]
    mean = (pairs[0] + pairs[1] - pairs[2] - pairs[3]) / 2
    assert cells(text, "MARS")[3].startswith(f"{mean:+.1f} [") and cells(text, "MARS")[3].endswith("], 2 pairs")
    assert "pairs" not in cells(text, "RecAdam")[3]
    assert "over 2 to 4 fine-tuning seeds" in text and "6 of 36 runs are missing" in text


def test_what_scores_are_to_be_compared_with_stands_once_below_the_table() -> None:
    def lopsided(arm: Arm, seed: int) -> Metrics:
        return noisy(arm, seed) | {"majority_class_accuracy": 87 / 90, "macro_f1_classes": 3.0 + seed % 2}

    text = table([made_up(STUDIES["compare"], metrics=lopsided)])
    assert text.count("Always answering the largest class of the test rows: accuracy 96.7 %.") == 1
    assert "Macro-F1" not in text  # which is not shown
    assert "largest class" not in table([made_up(STUDIES["compare"])])  # results of before do not say it
    assert "largest class" not in table([made_up(STUDIES["table4"], metrics=lopsided)])
    found = made_up(STUDIES["compare"], metrics=lopsided)
    found.target.modality, found.target.metric = "texts", "macro_f1"
    assert "Macro-F1: over the 3 to 4 classes that occur in the test rows or predictions." in table([found])


def test_results_of_before_show_the_metrics_that_all_have() -> None:
    found = made_up(STUDIES["compare"])
    run = found.runs["MARS"][0]
    for name in ("distance", "generalisation_gap"):
        del run.result.metrics[name]
    text = table([found])
    assert cells(text, "method")[-2:] == ["test loss", "train loss"]
    assert "Not shown, because some runs lack it: gap, distance." in text
    rows = list(csv.DictReader(io.StringIO(run_rows([found]))))
    assert next(row["distance"] for row in rows if row["arm"] == "MARS") == ""


def test_csv_has_a_row_for_each_run_and_json_everything() -> None:
    found = made_up(STUDIES["figure3"], points=[50, 100])
    rows = list(csv.DictReader(io.StringIO(run_rows([found]))))
    assert len(rows) == 2 * 3 * 3 and {row["x"] for row in rows} == {"50", "100"}
    assert float(rows[0]["accuracy"]) == found.runs["fine-tuning, n = 50"][0].result.metrics["accuracy"]
    values = json.loads(json.dumps(record(STUDIES["figure3"], [found], command="sdfast"), allow_nan=False))
    assert values["command"] == "sdfast"
    data = values["data"][0]
    assert len(data["arms"]) == 6 and data["arms"][0]["config"]["pretrain"]["steps"] == 20_000
    # every size is compared with self-distillation of that size
    assert set(data["paired"]["accuracy"]) == {
        f"{method}, n = {n}" for n in (50, 100) for method in ("fine-tuning", "further pre-training")
    }


@pytest.mark.parametrize("name", ["compare", "table4", "figure1", "figure3", "figure5"])
def test_the_figure_has_its_names_and_units(name: str) -> None:
    study = STUDIES[name]
    found = made_up(study)
    pictures = draw([found], "photos")
    assert pictures["png"].startswith(b"\x89PNG") and len(pictures["png"]) > 10_000
    words = pictures["svg"].decode()
    expected = {
        "dots": [arm.title for arm in study.arms],
        "lines": [study.axis.label.format(rows="images")] if study.axis else [],
        "gaps": ["(a) generalisation gap", "(b) distance", "(c) distance by round", "nats"],
    }[study.figure]
    for word in [*expected, "photos"]:
        assert word in words
    if study.columns[0] == "score":
        assert "test accuracy, %" in words


def test_one_seed_and_several_data_sets_can_be_drawn() -> None:
    assert "one run" in draw([made_up(STUDIES["table6"], seeds=[0])], "")["svg"].decode()
    rounds = [made_up(STUDIES["figure5"], seeds=[0], title=title, points=[1]) for title in ("cats", "dogs")]
    words = draw(rounds, "")["svg"].decode()
    assert "cats" in words and "dogs" in words and "(c)" not in words


def test_an_interval_is_of_three_runs_or_more_and_of_shares_that_can_be() -> None:
    half = 4.302652729911275 * 2.0 / 3**0.5  # Student's t for two degrees of freedom, of a deviation of 2
    assert span_of([60.0, 62.0, 64.0], percent=True) == Span(pytest.approx(62 - half), pytest.approx(62 + half))
    assert span_of([96.0, 98.0, 100.0], percent=True) == Span(pytest.approx(98 - half), 100.0, above=True)
    assert span_of([0.0, 2.0, 4.0], percent=True) == Span(0.0, pytest.approx(2 + half), below=True)
    assert span_of([0.0, 2.0, 4.0], percent=False) == Span(pytest.approx(2 - half), pytest.approx(2 + half))
    assert span_of([60.0, 62.0], percent=True) is None and span_of([60.0], percent=False) is None


def drawn(found: Found) -> list[tuple[np.ndarray, bool]]:
    """What the figure's lines and bands show of the values, and which of it are arrows."""
    figure = {"dots": _dots, "lines": _lines, "gaps": _gaps}[found.study.figure]([found])
    across = 0 if found.study.figure == "dots" else 1
    shown = []
    for place in figure.axes:
        for line in place.get_lines():
            shown.append((np.asarray(line.get_data()[across], dtype=float), "arrow" in str(line.get_marker())))
        for band in place.collections:
            shown += [(path.vertices[:, across], False) for path in band.get_paths()]
    return shown


@pytest.mark.parametrize("name", ["compare", "figure1", "figure3", "figure4"])
def test_two_runs_are_two_points_and_the_axis_is_theirs(name: str) -> None:
    found = made_up(STUDIES[name], seeds=[0, 1])
    values = [value for title in found.runs for value in found.by_place(title, "score").values()]
    figure = {"dots": _dots, "lines": _lines}[found.study.figure]([found])
    low, high = figure.axes[0].get_xlim() if name == "compare" else figure.axes[0].get_ylim()
    room = 0.1 * (max(values) - min(values))
    assert min(values) - room <= low and high <= max(values) + room
    assert "95 %" not in caption([found], "paper")


@pytest.mark.parametrize("name", ["compare", "figure3", "figure4"])
def test_nothing_is_drawn_beyond_100_percent_and_what_goes_on_is_marked(name: str) -> None:
    def high(arm: Arm, seed: int) -> Metrics:
        return noisy(arm, seed) | {"accuracy": 0.96 + 0.02 * seed}

    found = made_up(STUDIES[name], metrics=high)
    shown = drawn(found)
    assert max(values.max() for values, _ in shown) <= 100
    assert sum(arrow for _, arrow in shown) == len(found.runs)  # the interval of each is 98 ± 5
    assert "it goes on beyond 0 or 100 %" in draw([found], "photos")["svg"].decode()
    assert "goes on" not in draw([made_up(STUDIES[name])], "photos")["svg"].decode()


@pytest.mark.parametrize("name", ["compare", "table4", "figure3", "lengths"])
@pytest.mark.parametrize("words", [1, 80])
def test_no_word_is_cut_off(name: str, words: int) -> None:
    with rc_context(_STYLE):
        figure = _captioned([made_up(STUDIES[name])], " ".join(["distillation"] * words))
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height
    panels = [place.get_window_extent() for place in figure.axes]
    assert min(panel.height for panel in panels) > figure.dpi  # an inch


def test_a_mean_without_neighbours_has_a_bar_and_one_without_interval_no_band() -> None:
    found = made_up(STUDIES["figure4"])
    for title in ("t = 1", "t = 3"):
        found.runs[title] = found.runs[title][:2]
    lines = _lines([found]).axes[0].get_lines()
    bars = [line.get_ydata() for line in lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    spans = [span_of(list(found.by_place(f"t = {at}", "score").values()), percent=True) for at in (0, 2, 4)]
    assert [tuple(bar) for bar in bars] == [(span.low, span.high) for span in spans if span is not None]
    assert "(of 3 runs or more)" in caption([found], "paper")


def test_the_papers_numbers() -> None:
    titles = {found.title for found in PAPER_SETS}
    assert paper_number("table2", "Twitter-Emotion", "RecAdam", "score") == (78.26, 0.88)
    assert {"SCIERC", "ACL-ARC", "Chemprot", "Twitter-Emotion"} <= titles
    assert all(paper_number("compare", title, "R3F", "score") for title in titles - {"CIFAR-100"})
    assert paper_number("table1", "Chest-Xray", "MARS", "score") == (77.28, 1.80)
    assert paper_number("table5", "Flower", "self-distillation", "score") == (90.28, 0.44)  # not the misprint
    assert paper_number("table4", "Dogs", "further pre-training", "log_train_loss") == (-5.41, 0.13)
    assert paper_number("figure4", "Flower", "t = 0", "score") == (88.63, 0.35)
    assert paper_number("figure4", "Flower", "t = 3", "score") is None
    assert paper_number("table1", "photos", "MARS", "score") is None
    assert all(len(arms) == 6 for name in ("table1", "table2") for arms in TABLES[name].values())


def test_sizes_that_have_no_run_are_not_on_the_axis() -> None:
    found = made_up(STUDIES["figure3"], points=[1000, 2500, 50_000])
    done = {arm.title for arm in found.target.arms if arm.x != 50_000}
    place = _lines([replace(found, runs={title: found.runs[title] for title in found.runs if title in done})]).axes[0]
    assert place.get_xlim()[1] < 5000 and [label.get_text() for label in place.get_xticklabels()] == ["1k", "2.5k"]
