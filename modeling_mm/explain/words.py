# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Words of a text and the tokens that each of them consists of."""

import itertools
from collections.abc import Sequence
from typing import Any

from ..utils.decoding import IncrementalDecoder


def without_special_tokens(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Return the ids up to the first special token, which ends an answer."""
    special = set(tokenizer.all_special_ids)
    return list(itertools.takewhile(lambda token: token not in special, ids))


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text that each token completes; joined they are the whole text."""
    decoder = IncrementalDecoder(tokenizer)
    texts = [decoder.add(token) for token in ids]
    return [*texts[:-1], texts[-1] + decoder.finish()] if texts else []


def group_words(texts: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the words, which white space separates, and the tokens (start, stop) of each."""
    starts = [i for i, text in enumerate(texts) if i == 0 or text[:1].isspace()]
    spans = list(zip(starts, [*starts[1:], len(texts)], strict=False))
    words = [("".join(texts[start:stop]).strip(), (start, stop)) for start, stop in spans]
    return [word for word, _ in words if word], [span for word, span in words if word]
