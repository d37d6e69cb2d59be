"""Tiny packages, and the corpora built from them, once for all tests that only read them."""

from pathlib import Path

import pytest

from tests.tasks.tiny_voices import write_voices
from tests.workshop.conftest import built, packages

__all__ = ["built", "packages", "voices"]


@pytest.fixture(scope="session")
def voices(tmp_path_factory) -> Path:
    """Return the folder of packages with voices."""
    return write_voices(tmp_path_factory.mktemp("voices"))
