"""For all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _trust_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what tests agree to away from what the user has agreed to."""
    folder = tmp_path_factory.mktemp("trust")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATDYN_TRUST", str(folder))
        yield folder
