# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Overlapping chunks of long audio, and one text from their transcripts."""

import math
import re
from typing import Any

import numpy as np

# Thai, kana and Han are written without spaces between words: each character counts as a word.
UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}](?:[^\s{UNSPACED}]*[^\W{UNSPACED}])?")
# The cost of a word that differs in an alignment; one that agrees adds 1.
ERROR_COST = 0.5
# More than an overlap's share of a chunk's words may lie in the overlap, as speech is not even.
OVERLAP_SLACK, OVERLAP_WORDS = 2, 2


def chunk_sizes(chunk_length_s: float, stride_length_s: Any, rate: int) -> tuple[int, int]:
    """
    Return the length of a chunk and its overlap with the one before, in samples.

    Args:
        chunk_length_s: seconds.
        stride_length_s: seconds at both ends of a chunk, or a pair for the left and the right end, that its neighbors
            have too; a sixth of the chunk by default.

    Raises:
        ValueError: if a chunk would not reach beyond the one before.
    """
    strides = chunk_length_s / 6 if stride_length_s is None else stride_length_s
    strides = [strides, strides] if isinstance(strides, (int, float)) else list(strides)
    if len(strides) != 2:
        raise ValueError(f"expected one `stride_length_s` or two, for the left and the right end; got {strides}")
    left, right = strides
    length, overlap = round(chunk_length_s * rate), round(left * rate) + round(right * rate)
    if min(left, right) < 0 or not overlap < length:
        raise ValueError(
            "`chunk_length_s` must be positive and longer than its two strides together (`stride_length_s`), got "
            f"{chunk_length_s} s with strides of {left} s and {right} s; lengthen the chunk or shorten the strides"
        )
    return length, overlap


def cut_into_chunks(samples: np.ndarray, length: int, overlap: int) -> list[np.ndarray]:
    """Cut samples into pieces of `length`, each of which begins `overlap` before the end of the one before."""
    starts = range(0, max(len(samples) - overlap, 1), length - overlap)
    return [samples[start : start + length] for start in starts]


def align_overlap(left: list[str], right: list[str]) -> list[tuple[int, int]]:
    """
    Align words at the end of `left` with words at the beginning of `right`, so that most of them agree.

    Returns:
        Pairs of indices, in order; none if less than two words agree, unless one is exactly where the texts meet.
    """
    scores = [[-ERROR_COST * j for j in range(len(right) + 1)]]  # of left[?:i] and right[:j], best over all beginnings
    for word in left:
        above, row = scores[-1], [0.0]
        for j, other in enumerate(right):
            agreed = above[j] + (1.0 if word == other else -ERROR_COST)
            row.append(max(agreed, above[j + 1] - ERROR_COST, row[j] - ERROR_COST))
        scores.append(row)
    i, j = len(left), max(range(len(right) + 1), key=scores[-1].__getitem__)
    best, pairs = scores[i][j], []
    while i and j:
        if left[i - 1] == right[j - 1] and scores[i][j] == scores[i - 1][j - 1] + 1.0:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif scores[i][j] == scores[i - 1][j - 1] - ERROR_COST:
            i, j = i - 1, j - 1
        elif scores[i][j] == scores[i - 1][j] - ERROR_COST:
            i -= 1
        else:
            j -= 1
    return pairs[::-1] if len(pairs) > 1 or best == 1.0 else []


def merge_transcripts(transcripts: list[str], shares: list[float]) -> str:
    """
    Merge the texts of chunks; words that two of them have in common are written once.

    Words at both ends of a chunk may be cut off, so the texts change over in the middle of their common words. If
    nothing agrees, both are kept whole.

    Args:
        transcripts: one for each chunk.
        shares: the length of the overlap as a share of each chunk.
    """
    text, num_repeated = "", 0  # words at the end of the text that the next chunk may repeat
    for transcript, share in zip(transcripts, shares, strict=True):
        words, written = list(WORD.finditer(transcript)), list(WORD.finditer(text))
        num_overlapping = words_in_overlap(len(words), share)
        tail, head = written[max(len(written) - num_repeated, 0) :], words[:num_overlapping]
        pairs = align_overlap([word[0].casefold() for word in tail], [word[0].casefold() for word in head])
        if pairs:
            last, first = pairs[len(pairs) // 2]
            text = text[: tail[last].end()] + transcript[head[first].end() :]
        else:
            text = join_texts(text, transcript)
        num_repeated = num_overlapping
    return text


def words_in_overlap(num_words: int, share: float) -> int:
    """Return the most words of a chunk that are compared with the chunk beside it."""
    return min(math.ceil(OVERLAP_SLACK * share * num_words) + OVERLAP_WORDS, num_words) if share else 0


def join_texts(left: str, right: str) -> str:
    """Join two texts by a space, unless one is empty or they are in a script without spaces."""
    is_unspaced = re.search(rf"[{UNSPACED}]$", left) and re.match(rf"[{UNSPACED}]", right)
    return left + right if is_unspaced or not left or not right else f"{left} {right}"
