"""transcripts.py: long audio in chunks, and their texts merged."""

import random

import numpy as np
import pytest

from modeling_mm.transcripts import chunk_sizes, cut_into_chunks, merge_transcripts

MERGED = {
    "an edge cut off on either side": (["the cat sat on the ma", "at on the mat"], "the cat sat on the mat"),
    "three chunks": (["one two three", "two three four five", "four five six"], "one two three four five six"),
    "case and punctuation": (["He said: hello, world", "Hello world. And left"], "He said: hello, world. And left"),
    "an error in the middle": (["a b c X d e", "b c Y d e f"], "a b c X d e f"),
    "nothing in common": (["nothing here", "something else"], "nothing here something else"),
    "no spaces": (["今天天气很好我们", "很好我们去公园"], "今天天气很好我们去公园"),
    "no spaces, nothing in common": (["今天", "公园"], "今天公园"),
    "silence": (["first", "", "second"], "first second"),
    "silence alone": (["", ""], ""),
    "one word where they meet": (["ends with the", "the beginning"], "ends with the beginning"),
    "one word elsewhere": (["ends with the", "and the beginning"], "ends with the and the beginning"),
    "said twice": (["very very", "very good"], "very very good"),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_transcripts_are_merged(name):
    transcripts, expected = MERGED[name]
    assert merge_transcripts(transcripts, [1 / 3] * len(transcripts)) == expected


def test_transcripts_of_chunks_without_overlap_are_joined():
    assert merge_transcripts(["one two", "one two"], [0.0, 0.0]) == "one two one two"


@pytest.mark.parametrize("garbled", [False, True])
def test_long_texts_cut_into_overlapping_chunks_are_restored(garbled):
    chance = random.Random(0)
    vocabulary = [f"w{i}" for i in range(40)]
    for _ in range(100):
        words = chance.choices(vocabulary, k=chance.randint(20, 120))
        overlap = chance.randint(6, 10)
        chunks = [list(chunk) for chunk in cut_into_chunks(words, 24, overlap)]
        for number, chunk in enumerate(chunks):
            if garbled and number:
                chunk[0] = "x" + chunk[0]
            if garbled and number < len(chunks) - 1:
                chunk[-1] += "x"
        shares = [overlap / len(chunk) for chunk in chunks]
        assert merge_transcripts([" ".join(chunk) for chunk in chunks], shares) == " ".join(words)


@pytest.mark.parametrize(("samples", "length", "overlap"), [(10, 4, 1), (3, 4, 1), (4, 4, 0), (9, 4, 3), (1, 1, 0)])
def test_chunks_hold_every_sample_and_overlap(samples, length, overlap):
    chunks = [list(chunk) for chunk in cut_into_chunks(np.arange(samples), length, overlap)]
    whole = chunks[0]
    for chunk in chunks[1:]:
        assert whole[len(whole) - overlap :] == chunk[:overlap] and len(chunk) > overlap
        whole = whole + chunk[overlap:]
    assert whole == list(range(samples))
    assert all(len(chunk) == length for chunk in chunks[:-1])


def test_strides_are_a_sixth_of_a_chunk_on_both_sides():
    assert chunk_sizes(30, None, 16_000) == (480_000, 160_000)
    assert chunk_sizes(2, (0.5, 0.25), 16_000) == (32_000, 12_000)
