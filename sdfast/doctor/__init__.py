"""Whether an installation works: each part is tried, and what is broken comes with what to do."""

from __future__ import annotations
