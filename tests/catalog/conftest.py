"""A Hub on the loopback interface with an empty cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer, private_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with private_hub(monkeypatch, tmp_path) as server:
        yield server
