# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
OpenAI's protocol (extra `serve`) and web pages (extra `app`).

The pages are a chat (`build_page`) and a search of an index (`build_search_page`); `join_pages` makes them tabs.

    uvicorn.run(build_app("model_cards/mm-whisper-tiny", SourcePolicy()))
    build_page(model, processor, title="mm-whisper-tiny", max_new_tokens=48).launch()
    build_search_page(index, title="photos").launch()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..sources import SourcePolicy
from .limits import ServerLimits

if TYPE_CHECKING:
    from .page import build_page
    from .search_page import build_search_page, join_pages
    from .server import build_app

__all__ = ["ServerLimits", "SourcePolicy", "build_app", "build_page", "build_search_page", "join_pages"]


# Imported on first use, as each needs an extra.
PLACES = {
    "build_app": ".server",
    "build_page": ".page",
    "build_search_page": ".search_page",
    "join_pages": ".search_page",
}


def __getattr__(name: str) -> Any:
    if name in PLACES:
        return getattr(import_module(PLACES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
