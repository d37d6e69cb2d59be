"""Tiny packages, and the corpora built from them, once for all tests that only read them."""

from tests.workshop.conftest import built, packages

__all__ = ["built", "packages"]
