"""What a report shows that needs models and pictures: made once after a stage, kept, and shown from files alone.

`make_evidence(context, out, results, umap=False)` computes what is missing for some finished stages and keeps it in
`<out>/report/`; `panels(out)` shows what is there and still true. Neither raises where something cannot be made.
"""

from __future__ import annotations

from sdfast.report.evidence.make import make_evidence
from sdfast.report.evidence.panels import panels
from sdfast.report.evidence.stages import finished_stages

__all__ = ["finished_stages", "make_evidence", "panels"]
