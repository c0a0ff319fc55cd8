"""The counts, as a table, and the faults, each with the command that shows it again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stress.judge import Case, Verdict

_HEAD = ("attack", "command", "tried", "the same bits", "refused in a sentence", "faults")


@dataclass
class Report:
    """What was found."""

    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    faults: list[tuple[Case, Verdict]] = field(default_factory=list)
    missed: int = 0
    seconds: float = 0.0

    def add(self, case: Case, verdicts: list[Verdict]) -> None:
        """Count a case; one that hit nothing is no attack."""
        self.missed += not verdicts
        for verdict in verdicts:
            self.counts.setdefault((case.attack, verdict.command), Counter())[verdict.kind] += 1
            if verdict.kind == "wrong":
                self.faults.append((case, verdict))
                print(f"FAULT {case.name}\n      {verdict.command}: {verdict.why}", flush=True)

    def markdown(self) -> str:
        """The table, with a line for the sum."""
        lines = [_HEAD, ("---", "---", "---:", "---:", "---:", "---:")]
        total: Counter[str] = Counter()
        for (attack, command), count in self.counts.items():
            lines.append((attack, command, *self._numbers(count)))
            total += count
        lines.append(("all", "", *self._numbers(total)))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _numbers(self, count: Counter[str]) -> tuple[str, ...]:
        return tuple(f"{number:,}" for number in (count.total(), count["right"], count["refused"], count["wrong"]))

    def write(self, path: Path, size: str) -> None:
        """Put the table between the marks of a Markdown file."""
        begin, end = "<!-- counts -->\n", "<!-- end of counts -->\n"
        before, _, rest = path.read_text(encoding="utf-8").partition(begin)
        _, _, after = rest.partition(end)
        minutes = f"`make stress STRESS={size}`, {self.seconds / 60:.0f} minutes"
        path.write_text(f"{before}{begin}{minutes}:\n\n{self.markdown()}\n{end}{after}", encoding="utf-8")
