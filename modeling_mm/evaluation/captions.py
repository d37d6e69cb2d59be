# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
CIDEr of captions.

The package of COCO's evaluation needs Java and brings 100 MB, and its successors bring encoders, so the metric is
computed here. Source: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, with the
clipping and the length penalty of its variant CIDEr-D, which COCO reports as CIDEr.
"""

import math
from collections import Counter
from collections.abc import Sequence

from .wording import plain_words

LONGEST = 4  # words of an n-gram
SPREAD = 6.0  # standard deviation of the penalty for a difference in length
SCALE = 10.0

Ngram = tuple[str, ...]


def cider(answers: Sequence[str], truths: Sequence[str]) -> float:
    """
    Return the mean over captions of ten times the similarity of their n-grams of 1 to 4 words.

    An n-gram counts the less, the more truths have it; one that all truths have counts nothing. So the figure depends
    on all truths together and is 0 for a single one. A right caption of one word has n-grams of one length only, and
    thus at most 2.5; of two words 5, of three 7.5.

    Words are in lower case and without punctuation (COCO's own tokenizer needs Java and also splits "don't").
    """
    given, wanted = ([ngrams(plain_words(text)) for text in texts] for texts in (answers, truths))
    frequency = Counter(ngram for counts in wanted for ngram in counts)
    rarity = {ngram: math.log(len(truths) / count) for ngram, count in frequency.items()}
    unseen = math.log(len(truths))
    values = []
    for ours, theirs in zip(given, wanted, strict=True):
        ours_weighted, theirs_weighted = (weighted(counts, rarity, unseen) for counts in (ours, theirs))
        cosines = [clipped_cosine(*pair) for pair in zip(ours_weighted, theirs_weighted, strict=True)]
        difference = words_in(ours) - words_in(theirs)
        values.append(math.exp(-(difference**2) / (2 * SPREAD**2)) * sum(cosines) / LONGEST)
    return SCALE * sum(values) / len(values)


def ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """Return how often each n-gram of 1 to 4 words occurs."""
    lengths = range(1, LONGEST + 1)
    return Counter(tuple(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1))


def weighted(counts: Counter[Ngram], rarity: dict[Ngram, float], unseen: float) -> list[dict[Ngram, float]]:
    """Return counts times rarity, the n-grams of each length apart."""
    vectors: list[dict[Ngram, float]] = [{} for _ in range(LONGEST)]
    for ngram, count in counts.items():
        vectors[len(ngram) - 1][ngram] = count * rarity.get(ngram, unseen)
    return vectors


def clipped_cosine(ours: dict[Ngram, float], theirs: dict[Ngram, float]) -> float:
    """Return the cosine of two vectors, in which repeating a word of the truth gains nothing."""
    norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    product = sum(min(value, theirs[ngram]) * theirs[ngram] for ngram, value in ours.items() if ngram in theirs)
    return product / norms if norms else 0.0


def words_in(counts: Counter[Ngram]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 1)
