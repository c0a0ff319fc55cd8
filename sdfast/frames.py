"""Metrics as tables of pandas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from sdfast.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Per = Literal["metric", "class"]
Scores = Mapping[str, Mapping[str, float]]


def metric_frame(per: Per, metrics: Mapping[str, float], each: Scores) -> pd.DataFrame:
    """A row for each metric, or for each class or number.

    Args:
        per: which of them.
        metrics: by name; columns `metric` and `value`.
        each: scores by the name of each class or number; columns `class`, and one for each score.

    Raises:
        UserError: another word, or there are no scores of classes.
    """
    import pandas as pd

    if per == "metric":
        return pd.DataFrame({"metric": list(metrics), "value": list(metrics.values())})
    if per != "class":
        raise UserError(f"to_pandas({per!r}) is not known; use 'metric' or 'class'.")
    if not each:
        raise UserError("there are no scores of single classes here; use to_pandas('metric').")
    return pd.DataFrame([{"class": name, **scores} for name, scores in each.items()])
