"""What every test runs under: one thread a process, no network, fixed seeds.

``RBL_TEST_TIER=full`` asks Hypothesis for many more examples, drawn afresh; the default tier draws the same few
every time.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports torch: results must not depend on the number of cores, and xdist already uses them all.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# What is ignored here would be ignored by the processes that tests start: a shell does that to what it runs behind it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile(
    "quick", max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "full", max_examples=5000, print_blob=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("RBL_TEST_TIER", "quick"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails, wherever it runs."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the repository's lock: for tests in which whoever holds it is the one who would wait."""
    monkeypatch.setattr("rblstore.storage.locks.WRITER_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("rblstore.storage.locks.MAINTENANCE_WAIT_SECONDS", 0.0)
