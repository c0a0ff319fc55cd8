"""Makes the case table beside this file importable and keeps the thread count of a small machine."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
