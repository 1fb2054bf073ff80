"""Several test processes share the cores, so each computes with one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
