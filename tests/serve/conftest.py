"""For all tests of the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from live_tools import wait_for


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    wait_for(
        lambda: not [t.name for t in threading.enumerate() if t.name.startswith("avis ")], 5, "the end of every thread"
    )
