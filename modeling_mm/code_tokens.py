# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Codes of a codec as tokens: their ids in a vocabulary, their order in a text, and back. Pure functions of lists.

A codec turns an image or an audio clip into K rows of T codes, one row for each of its codebooks. In a text they are a
block: the start token, all codes, the end token. The tokens have one range of ids, in this order:

    <|image_start|> <|image_end|> <image_code_0> ... <image_code_{K * codebook_size - 1}>

Code c of codebook k is `<image_code_{k * codebook_size + c}>`. The codes of a block are `interleaved`, all codebooks
of a time step before the next one, or `delayed`, where codebook k is k steps late, as in MusicGen, so that a code is
predicted behind those of the codebooks before it at its time and behind a later code of each of these:

    interleaved  a0 b0 c0  a1 b1 c1  a2 b2 c2
    delayed      a0  a1 b0  a2 b1 c0  b2 c1  c2
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .modalities import MODALITIES

INTERLEAVED, DELAYED = "interleaved", "delayed"
CODE_LAYOUTS = (INTERLEAVED, DELAYED)
TEXT = "text"  # the modality of all other tokens
EDGES = 2  # the start and the end token, which stand before the codes in a range

Codes = list[list[int]]  # K rows of T codes


def code_order(codebooks: int, steps: int, layout: str) -> list[tuple[int, int]]:
    """Return the codebook and the time step of each code of a block, in the order of its tokens."""
    if layout == INTERLEAVED:
        return [(k, t) for t in range(steps) for k in range(codebooks)]
    late = range(steps + codebooks - 1) if steps else range(0)
    return [(k, step - k) for step in late for k in range(codebooks) if 0 <= step - k < steps]


def edge_tokens(name: str) -> tuple[str, str]:
    """Return the start and the end token of a modality's blocks."""
    return f"<|{name}_start|>", f"<|{name}_end|>"


@dataclass(frozen=True)
class CodeTokens:
    """
    Tokens of the codes of one modality.

    Args:
        name: of the modality, `"image"` or `"audio"`.
        first: id of the start token, the first of the range.
        codebook_size: codes of each codebook.
        codebooks: K.
        grid: rows and columns of an image's codes, T = rows * columns; None for media of any length.
        layout: `"interleaved"` or `"delayed"`.

    Example:
        >>> tokens = CodeTokens("audio", first=100, codebook_size=10, codebooks=2)
        >>> tokens.to_ids([[3, 4], [5, 6]])
        [100, 105, 117, 106, 118, 101]
        >>> tokens.to_codes([105, 117, 106])
        ([[3], [5]], True)
    """

    name: str
    first: int
    codebook_size: int
    codebooks: int = 1
    grid: tuple[int, int] | None = None
    layout: str = INTERLEAVED

    @property
    def start_id(self) -> int:
        return self.first

    @property
    def end_id(self) -> int:
        return self.first + 1

    @property
    def first_code(self) -> int:
        return self.first + EDGES

    @property
    def stop(self) -> int:
        """The first id behind the range."""
        return self.first_code + self.codebooks * self.codebook_size

    @property
    def steps(self) -> int | None:
        """T, if every item has as many."""
        return None if self.grid is None else self.grid[0] * self.grid[1]

    @property
    def token_strings(self) -> list[str]:
        """The tokens of the range, in order."""
        codes = range(self.codebooks * self.codebook_size)
        return [*edge_tokens(self.name), *(f"<{self.name}_code_{number}>" for number in codes)]

    def range_of(self, codebook: int) -> tuple[int, int]:
        """Return the first id of a codebook's codes, and the first behind them."""
        first = self.first_code + codebook * self.codebook_size
        return first, first + self.codebook_size

    def to_ids(self, codes: Sequence[Sequence[int]]) -> list[int]:
        """
        Return the block of K rows of T codes: start token, codes, end token.

        Raises:
            ValueError: for another number of codebooks or of steps, and for codes outside their codebook.
        """
        lengths = [len(row) for row in codes]
        if len(lengths) != self.codebooks or len(set(lengths)) > 1:
            raise ValueError(
                f"Codes of {self.name}: expected {self.codebooks} rows of equal length, one for each codebook, got "
                f"rows of {lengths}. Is it the codec that the vocabulary was extended for?"
            )
        if lengths[0] == 0 or self.steps not in (None, lengths[0]):
            expected = "at least 1" if self.grid is None else f"{self.grid[0]}x{self.grid[1]} = {self.steps}"
            raise ValueError(f"Codes of {self.name}: expected {expected} in each codebook, got {lengths[0]}.")
        for number, row in enumerate(codes):
            for code in row:
                if not 0 <= code < self.codebook_size:
                    raise ValueError(
                        f"Codes of {self.name}: codebook {number} has codes from 0 to {self.codebook_size - 1}, got "
                        f"{code}. Is it the codec that the vocabulary was extended for?"
                    )
        order = code_order(self.codebooks, lengths[0], self.layout)
        inside = [self.range_of(k)[0] + codes[k][t] for k, t in order]
        return [self.start_id, *inside, self.end_id]

    def to_codes(self, ids: Sequence[int]) -> tuple[Codes, bool]:
        """
        Return the codes (K, T) of a block without its start and end tokens, and True if the block was cut.

        Of a block that was cut these are the steps whose codes are all there.

        Raises:
            ValueError: for an id that is not a code's, for codes in another order, and for more than the grid holds.
        """
        codes: Codes = [[] for _ in range(self.codebooks)]
        for place, token in enumerate(ids):
            if not self.first_code <= token < self.stop:
                raise ValueError(
                    f"Token {place} of a block of {self.name} codes has id {token}; codes have ids from "
                    f"{self.first_code} to {self.stop - 1}. Generate with `output_modalities`, which keeps to them."
                )
            codebook, code = divmod(token - self.first_code, self.codebook_size)
            codes[codebook].append(code)
        lengths = [len(row) for row in codes]
        found = [(token - self.first_code) // self.codebook_size for token in ids]
        # A block of any length that ends too early has the order of one that goes on, or of one that ends.
        likely = {self.steps} if self.steps is not None else {lengths[0], lengths[0] + self.codebooks}
        orders = [[k for k, _ in code_order(self.codebooks, steps, self.layout)] for steps in likely]
        if not any(order[: len(found)] == found for order in orders):
            raise ValueError(
                f"A block of {len(found)} {self.name} codes has codes of the codebooks {found[:8]}... in this order, "
                f"which is not {self.layout!r}. Decode with the layout that it was written in."
            )
        whole = min(lengths)
        is_cut = len(set(lengths)) > 1 or whole == 0 or self.steps not in (None, whole)
        return [row[:whole] for row in codes], is_cut


@dataclass(frozen=True)
class Block:
    """
    A stretch of generated tokens: text, or a modality's codes.

    Args:
        tokens: of the codes; None for text.
        ids: of the text, or of the codes without start and end token.
        is_ended: whether the end token is there.
    """

    tokens: CodeTokens | None
    ids: list[int]
    is_ended: bool = True


def split_blocks(ids: Sequence[int], known: Mapping[str, CodeTokens]) -> list[Block]:
    """Return the stretches of a row of ids (L,): text and blocks in turn, empty texts left out."""
    starts = {tokens.start_id: tokens for tokens in known.values()}
    blocks, text, place = [], list[int](), 0
    while place < len(ids):
        tokens = starts.get(ids[place])
        if tokens is None:
            text.append(ids[place])
            place += 1
            continue
        if text:
            blocks.append(Block(None, text))
            text = []
        place += 1
        begin = place
        while place < len(ids) and tokens.first_code <= ids[place] < tokens.stop:
            place += 1
        is_ended = place < len(ids) and ids[place] == tokens.end_id
        blocks.append(Block(tokens, list(ids[begin:place]), is_ended))
        place += is_ended
    return [*blocks, Block(None, text)] if text else blocks


# ---- Configs --------------------------------------------------------------------------------------------------------


def code_tokens_of(config: Any) -> dict[str, CodeTokens]:
    """Return the tokens of all modalities that a model of this config can write, by name."""
    found = {}
    for name in MODALITIES:
        if (span := getattr(config, f"{name}_code_range", None)) is not None:
            codebooks, grid = getattr(config, f"{name}_codebooks"), getattr(config, f"{name}_code_grid", None)
            size = (span[1] - span[0] - EDGES) // codebooks
            layout = getattr(config, f"{name}_code_layout")
            found[name] = CodeTokens(name, span[0], size, codebooks, None if grid is None else tuple(grid), layout)
    return found


def check_code_ranges(config: Any, taken: Mapping[str, tuple[int, int]]) -> None:
    """
    Check the fields of a config about codes.

    Args:
        taken: the first id of the config's other tokens, and the one behind the last, by field.

    Raises:
        ValueError: for a range without a codec or a codec without one, a range that does not fit the codebooks, that
            leaves the vocabulary or overlaps with other tokens, and for a grid, codebooks or a layout of no meaning.
    """
    taken = dict(taken)
    for name in MODALITIES:
        field, codec = f"{name}_code_range", f"{name}_codec_config"
        span = getattr(config, field, None)
        if (span is None) != (getattr(config, codec, None) is None):
            raise ValueError(f"{field} and {codec} belong together, but only one is set. `add_codec` sets both.")
        if span is None:
            continue
        layout, codebooks = getattr(config, f"{name}_code_layout"), getattr(config, f"{name}_codebooks")
        grid, vocab_size = getattr(config, f"{name}_code_grid", None), config.text_config.vocab_size
        if layout not in CODE_LAYOUTS:
            choices = ", ".join(map(repr, CODE_LAYOUTS))
            raise ValueError(f"{name}_code_layout must be one of {choices}, got {layout!r}.")
        if codebooks < 1:
            raise ValueError(f"{name}_codebooks must be at least 1, got {codebooks}.")
        if grid is not None and (len(grid) != 2 or min(grid) < 1):
            raise ValueError(f"{name}_code_grid must be a number of rows and one of columns, got {grid}.")
        if len(span) != 2 or not 0 <= span[0] < span[1] <= vocab_size:
            raise ValueError(
                f"{field} must be the first id of a range and the one behind its last, within the vocabulary of "
                f"{vocab_size} tokens, got {span}. Let `add_codec` of the model set it."
            )
        codes = span[1] - span[0] - EDGES
        if codes < codebooks or codes % codebooks:
            raise ValueError(
                f"{field} is {span}: a start token, an end token and {codes} codes, which {codebooks} codebooks "
                "cannot share equally."
            )
        for other, (first, stop) in taken.items():
            if first < span[1] and span[0] < stop:
                raise ValueError(f"{field}, {span}, has ids of {other}, {[first, stop]}. Each token needs an id.")
        taken[field] = (span[0], span[1])


def code_tokens_in(vocabulary: Mapping[str, int], name: str) -> tuple[int, int] | None:
    """
    Return the range of a modality's code tokens in a vocabulary: the first id and the one behind the last.

    None if it has no such tokens.

    Raises:
        ValueError: if the tokens do not follow each other.
    """
    first = vocabulary.get(edge_tokens(name)[0])
    if first is None:
        return None
    count = sum(token.startswith(f"<{name}_code_") for token in vocabulary)
    expected = CodeTokens(name, first, count).token_strings
    if [vocabulary.get(token) for token in expected] != list(range(first, first + len(expected))):
        raise ValueError(
            f"The vocabulary has {count} codes of {name}, but {expected[0]}, {expected[1]}, {expected[2]}, ... do not "
            "follow each other. Use a tokenizer without them, and let `add_codec` of the processor add them."
        )
    return first, first + len(expected)
