"""What holds for all tests."""

import os

from hypothesis import settings

# Before torch is imported: the tiny networks are through sooner than a second thread is awake.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example may take its time: the machines that run the tests are small and shared.
settings.register_profile("atelier", deadline=None)
settings.load_profile("atelier")
