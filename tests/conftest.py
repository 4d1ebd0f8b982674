"""For all tests: one CPU thread per process, because several run at once and small models gain nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
