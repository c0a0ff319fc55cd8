"""A study that is done, read from its directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast.durable import load_json
from sdfast.errors import UserError, said

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """What `sdfast study` found.

    Attributes:
        name: of the study: `compare`, `table1`, ...
        directory: of it.
        record: what `<name>.json` holds: settings, arms, runs, comparisons.
    """

    name: str
    directory: Path
    record: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study.

        Args:
            path: its directory, or the `<name>.json` in it, where there are several.

        Raises:
            UserError: there is none, there are several, or the file cannot be read.
        """
        path = Path(path)
        found = [path] if path.is_file() else _studies(path)
        if not found:
            raise UserError(f"{path} holds no study that is done (<name>.json beside <name>.csv).")
        if len(found) > 1:
            names = ", ".join(each.name for each in found)
            raise UserError(f"{path} holds several studies ({names}); give the file of one.")
        try:
            record = load_json(found[0])
        except (OSError, ValueError) as error:
            reason = said(error) if isinstance(error, OSError) else str(error)
            raise UserError(f"{found[0]} cannot be read: {reason}.") from error
        if not isinstance(record, dict) or not found[0].with_suffix(".csv").is_file():
            raise UserError(f"{found[0]} is no study: it is a <name>.json with <name>.csv beside it.")
        return cls(found[0].stem, found[0].parent, record)

    @property
    def table(self) -> str:
        """The study's table as it was shown, in Markdown; empty where it is not there."""
        path = self.directory / f"{self.name}.md"
        return path.read_text("utf-8") if path.is_file() else ""

    def to_pandas(self) -> pd.DataFrame:
        """A row for each run, with its arm, its fold or chain where there are any, its seed and metrics."""
        import pandas as pd

        return pd.read_csv(self.directory / f"{self.name}.csv")


def _studies(folder: Path) -> list[Path]:
    """The records of the studies in a folder."""
    return [path for path in sorted(folder.glob("*.json")) if path.with_suffix(".csv").is_file()]
