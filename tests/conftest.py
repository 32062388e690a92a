"""What holds for all tests."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.collector import Collector
    from tests.live.conftest import System

# Before torch is imported: the tiny networks are through sooner than a second thread is awake.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An example may take its time: the machines that run the tests are small and shared.
settings.register_profile("atelier", deadline=None)
settings.load_profile("atelier")


@pytest.fixture(scope="session")
def collector() -> "Collector":
    from tests.collector import Collector

    return Collector()


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, collector: "Collector") -> Iterator["System"]:
    """The whole system, once for all that ask it."""
    from tests.live.conftest import MODELS_FILE, started

    with collector.serve() as traced:
        settings = {"ATELIER_LOG_FORMAT": "json", "ATELIER_MODELS_FILE": str(MODELS_FILE)}
        yield from started(tmp_path_factory, {**settings, **traced})
