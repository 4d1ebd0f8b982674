"""For all tests: one CPU thread per process, because several run at once and small models gain nothing from more."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.register_assert_rewrite("jobs", "sites")  # their helpers assert, and shall say what they saw
