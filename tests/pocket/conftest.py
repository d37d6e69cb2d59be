"""Tiny packages, and the corpora built from them, once for all tests that only read them."""

from pathlib import Path

import pytest

from tests.pocket.tiny_packages import build_all, write_packages


@pytest.fixture(scope="session")
def packages(tmp_path_factory) -> Path:
    return write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def built(packages, tmp_path_factory) -> Path:
    """The folder of all corpora."""
    return build_all(packages, tmp_path_factory.mktemp("corpora"))
