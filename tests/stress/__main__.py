"""`python -m stress [quick|full|all]`: the attacks, their counts, and a line for every fault that shows it again."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported: what forks has one thread

if __name__ == "__main__":
    from stress.campaign import main

    sys.exit(main(sys.argv[1:]))
