# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
OpenAI's protocol (`build_app`, extra `serve`) and a web page (`build_page`, extra `app`) for one model.

    uvicorn.run(build_app("model_cards/mm-whisper-tiny", SourcePolicy()))
    build_page(model, processor, title="mm-whisper-tiny", max_new_tokens=48).launch()
"""

from typing import TYPE_CHECKING, Any

from ..sources import SourcePolicy
from .limits import ServerLimits

if TYPE_CHECKING:
    from .page import build_page
    from .server import build_app

__all__ = ["ServerLimits", "SourcePolicy", "build_app", "build_page"]


def __getattr__(name: str) -> Any:
    # On first use, as each of the two needs its own extra.
    if name == "build_app":
        from .server import build_app

        return build_app
    if name == "build_page":
        from .page import build_page

        return build_page
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
