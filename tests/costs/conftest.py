"""What tests of costs share with the benchmarks: the bytes that torch's allocator gave."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
