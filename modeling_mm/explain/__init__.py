# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Origins of answers, classes and matches: places in images and audio, words of the prompt, and modalities; boxes."""

from .contributions import Contributions, modality_contributions
from .explanation import (
    METHODS,
    Explanation,
    answer_attention,
    check_method,
    explain,
    explain_target,
    explanation_steps,
)
from .faithfulness import Curves, compare_methods, faithfulness, methods_markdown, weights_of
from .figure import Band, draw, read_band, save
from .match import Match, MatchSide, explain_match, make_match
from .objects import draw_objects
from .page import NOTES, overlay, write_page
from .perturbation import occlusion_runs
from .places import Places, blank_media, places_of
from .target import Target, make_target

__all__ = [
    "METHODS",
    "NOTES",
    "Band",
    "Contributions",
    "Curves",
    "Explanation",
    "Match",
    "MatchSide",
    "Places",
    "Target",
    "answer_attention",
    "blank_media",
    "check_method",
    "compare_methods",
    "draw",
    "draw_objects",
    "explain",
    "explain_match",
    "explain_target",
    "explanation_steps",
    "faithfulness",
    "make_match",
    "make_target",
    "methods_markdown",
    "modality_contributions",
    "occlusion_runs",
    "overlay",
    "places_of",
    "read_band",
    "save",
    "weights_of",
    "write_page",
]
