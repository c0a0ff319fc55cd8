"""The numbers of Lee et al. (2023), as printed but for `MISPRINTS`: mean and deviation of five runs.

The figures have no numbers; their points that are rows of Table 1 are taken from there.
"""

from __future__ import annotations

import re

Number = tuple[float, float]  # mean and deviation

_TABLES = """
table1                  aircraft     cub          xray         dtd          dogs         flower
fine-tuning             72.33 1.13   55.55 0.54   77.15 0.52   67.56 0.52   62.53 0.57   88.78 0.65
RecAdam                 70.76 1.25   55.22 1.29   77.29 1.32   67.59 1.03   61.65 0.92   88.97 0.44
MARS                    72.74 0.57   55.35 0.73   77.28 1.80   66.79 0.90   62.24 0.96   87.93 1.21
R3F                     72.95 0.46   55.91 0.79   76.86 0.97   65.32 1.25   62.15 0.48   88.92 0.78
further pre-training    73.38 0.64   55.72 0.46   77.79 2.06   65.55 1.12   62.34 0.39   88.63 0.35
self-distillation       74.37 0.43   58.06 0.90   79.68 1.05   68.51 0.51   63.55 0.39   90.28 0.44

table2                  scierc       aclarc       chemprot     twitteremotion
fine-tuning             76.63 2.06   64.09 4.13   80.59 1.15   77.61 0.83
RecAdam                 79.45 1.92   59.70 2.68   82.73 0.28   78.26 0.88
MARS                    74.69 1.25   53.57 6.64   80.18 0.92   77.48 1.69
R3F                     75.61 2.49   60.13 2.55   79.25 2.16   77.79 0.81
further pre-training    80.32 1.25   69.73 2.40   82.33 0.46   78.71 0.40
self-distillation       81.79 0.75   73.17 2.19   82.87 0.35   79.77 0.79

table3                  cub          scierc
full model              58.06 0.90   81.79 0.75
without L_MAE           57.60 0.81   80.66 0.62
without L_distill       55.72 0.46   80.32 1.25
further pre-train x2    53.41 0.75   80.52 0.98
prediction matching     55.27 1.07   81.09 1.07
weight matching (l2)    53.70 0.91   80.54 1.21
weight matching (MARS)  54.82 0.60   80.95 0.71

log_train_loss          aircraft     cub          xray         dtd          dogs         flower
further pre-training    -9.13 0.09   -8.58 0.05   -8.10 1.90   -3.70 0.37   -5.41 0.13   -9.70 0.32
self-distillation       -9.17 0.08   -8.16 0.31   -6.08 0.50   -4.08 0.30   -5.50 0.06   -7.98 1.28

test_loss               aircraft     cub          xray         dtd          dogs         flower
further pre-training    1.44 0.03    2.44 0.02    2.26 0.22    2.49 0.08    1.96 0.02    0.63 0.04
self-distillation       1.36 0.01    2.26 0.04    2.08 0.17    2.15 0.06    1.90 0.01    0.50 0.03

table5                  xray         flower
supervised contrastive  75.30 1.03   76.70 1.76
fine-tuning             77.15 0.52   88.78 0.65
further pre-training    77.79 2.06   88.63 0.35
self-distillation       79.68 1.05   90.28 0.44

table6                  cub
weight 1.0              58.06 0.90
weight 0.5              57.76 0.17
weight 0.3              58.21 0.42
weight 0.1              57.76 0.33
"""
MISPRINTS = {  # of numbers above that are corrected, by table and data set
    ("table5", "flower"): "Table 5 prints 79.68 for self-distillation, which is Chest-Xray's; Table 1 has 90.28",
}
COST_SECONDS = {"finetune": 32 * 60 + 18, "pretrain": 89 * 60 + 33, "distill": 5 * 3600 + 13 * 60 + 22}  # CUB, RTX 3090
_POINTS = {"t = 0": "further pre-training", "t = 1": "self-distillation", "0 steps": "fine-tuning"}  # of figures


def _parsed(text: str) -> dict[str, dict[str, dict[str, Number]]]:
    """{table: {data set: {arm: number}}}; there are two blanks or more between columns."""
    found: dict[str, dict[str, dict[str, Number]]] = {}
    for block in text.strip().split("\n\n"):
        (table, *names), *rows = (re.split(r" {2,}", line) for line in block.splitlines())
        found[table] = {name: {} for name in names}
        for arm, *cells in rows:
            for name, cell in zip(names, cells, strict=True):
                mean, deviation = cell.split()
                found[table][name][arm] = (float(mean), float(deviation))
    return found


TABLES = _parsed(_TABLES)
_BOTH = TABLES["table1"] | TABLES["table2"]


def paper_number(study: str, data: str, arm: str, column: str) -> Number | None:
    """What the paper has, in percent where it is an accuracy or F1.

    Args:
        study: its name.
        data: title of the paper's data set.
        arm: its title.
        column: of the study.
    """
    name = _plain(data)
    if column == "score":
        table = TABLES.get(study, _BOTH)
    else:  # table 4 is of losses
        table = TABLES.get(column, {}) if study == "table4" else {}
    return table.get(name, {}).get(_POINTS.get(arm, arm))


def paper_misprint(study: str, data: str) -> str | None:
    """In a clause, what the paper prints instead of a number that `paper_number` gives; None where it is as printed."""
    return MISPRINTS.get((study, _plain(data)))


def _plain(data: str) -> str:
    """The name of a data set as the tables here have it."""
    return re.sub(r"[^a-z0-9]", "", data.lower()).removeprefix("chest")
