"""Tiny packages, and the corpora built from them, once for all tests that only read them."""

from pathlib import Path

import pytest

from tests.workshop.tiny_packages import build_all, write_packages

REAL_CORPORA = Path(__file__).resolve().parents[2] / "outputs/corpora"
has_corpora = pytest.mark.skipif(
    not (REAL_CORPORA / "chat/.built.json").is_file(), reason="needs the corpora in outputs/corpora"
)


@pytest.fixture(scope="session")
def packages(tmp_path_factory) -> Path:
    return write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def built(packages, tmp_path_factory) -> Path:
    """Return the folder of all corpora."""
    return build_all(packages, tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=[pytest.mark.slow, has_corpora])])
def corpora(request) -> Path:
    """Return the corpora that are built from tiny packages, and the ones of the released checkpoint."""
    return request.getfixturevalue("built") if request.param == "tiny" else REAL_CORPORA
