# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Rules of generated text and codes: inside a block only its codes, as many as its grid has, outside only text.

Each row of a batch is in a state: in text, or at a place of a block, which follows from the tokens behind its last
start token. A state allows some tokens. It is computed from the ids at each step, so that rows may be unlike, beams
may change places, and a prompt may end inside a block, which is then completed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.generation import LogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.utils import logging

from .code_tokens import INTERLEAVED, TEXT, CodeTokens, code_order, code_tokens_of

logger = logging.get_logger(__name__)

# States outside of blocks: in text; before the only block, without text; behind it.
IN_TEXT, BEFORE, BEHIND = range(3)

# Shape legend: B rows, L tokens, V vocabulary, K codebooks, T time steps of a block.


class BlockStates:
    """
    States inside the blocks of one modality, by numbers that begin at `base`.

    Number k is for a code of codebook k, the next ones for the end of the block, and for a choice between another step
    and the end, which media of any length have.

    Args:
        tokens: of the modality.
        base: number of its first state.
    """

    def __init__(self, tokens: CodeTokens, base: int):
        self.tokens, self.base = tokens, base
        self.end, self.choice = tokens.codebooks, tokens.codebooks + 1
        self.count = tokens.codebooks + 2
        self.by_place = self._by_place()

    def _by_place(self) -> torch.Tensor:
        """
        Return the state behind so many codes of a block, from 0 on.

        By a grid these are all of its codes, (K * T + 1,). Of media of any length they are the end of a delayed block,
        (K, K * K): row t, at most K - 1, is for a block of t steps, behind the last code of codebook 0.
        """
        tokens = self.tokens
        if tokens.steps is not None:
            return torch.tensor([*(k for k, _ in code_order(tokens.codebooks, tokens.steps, tokens.layout)), self.end])
        table = torch.full((tokens.codebooks, tokens.codebooks**2), self.end)
        for steps in range(1, tokens.codebooks):
            order = code_order(tokens.codebooks, steps, tokens.layout)
            late = [k for k, step in order if k + step >= steps]  # of delayed codes; they begin at step k + t
            table[steps, : len(late)] = torch.tensor(late)
        return table

    def allowed(self, vocab_size: int) -> torch.Tensor:
        """Return the tokens that each state allows, (count, V) bool."""
        tokens = self.tokens
        table = torch.zeros(self.count, vocab_size, dtype=torch.bool)
        for codebook in range(tokens.codebooks):
            table[codebook, slice(*tokens.range_of(codebook))] = True
        table[self.end, tokens.end_id] = True
        # Behind a step comes the next one, or the end; a delayed block ends with the other codebooks' last codes.
        is_delayed = tokens.layout != INTERLEAVED and tokens.codebooks > 1
        table[self.choice] = table[0] | table[1 if is_delayed else self.end]
        return table

    def after(self, ids: torch.Tensor, length: torch.Tensor, is_inside: torch.Tensor) -> torch.Tensor:
        """
        Return the state behind blocks of `length` (B,) codes, (B,).

        Args:
            ids: (B, L), of which the last `length` ones of a row are its codes.
            is_inside: (B,); other rows get any state.
        """
        tokens, by_place = self.tokens, self.by_place.to(ids.device)
        if tokens.steps is not None:
            return self.base + by_place[length.clamp(max=len(by_place) - 1)]
        if tokens.layout == INTERLEAVED or tokens.codebooks == 1:
            is_choice = (length > 0) & (length % tokens.codebooks == 0)
            return self.base + torch.where(is_choice, self.choice, length % tokens.codebooks)
        first, behind = tokens.range_of(0)
        is_code = (torch.arange(ids.shape[1], 0, -1, device=ids.device) <= length[:, None]) & is_inside[:, None]
        steps = (is_code & (ids >= first) & (ids < behind)).sum(-1)  # begun, (B,)
        ramp = steps.clamp(max=tokens.codebooks)
        full = ramp * (ramp + 1) // 2 + (steps - ramp) * tokens.codebooks  # codes of these steps, (B,)
        last = ramp  # codes of the last of them
        rest = (length - full).clamp(0, by_place.shape[1] - 1)
        ending = by_place[steps.clamp(max=tokens.codebooks - 1), rest]
        state = torch.where(length < full, length - full + last, torch.where(length > full, ending, self.choice))
        return self.base + torch.where(length == 0, 0, state)


def open_blocks(ids: torch.Tensor, written: Sequence[CodeTokens]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return which block each row of ids (B, L) ends in, and how many codes of it there are, (B,) each.

    The block is an index into `written`, or -1 outside of blocks.
    """
    place = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    block = ids.new_full((len(ids),), -1)
    length = torch.zeros_like(block)
    for number, tokens in enumerate(written):
        start = ((ids == tokens.start_id) * place).amax(-1)  # (B,), 0 for none
        is_inside = start > ((ids == tokens.end_id) * place).amax(-1)
        block = torch.where(is_inside, number, block)
        length = torch.where(is_inside, ids.shape[1] - start, length)
    return block, length


class BlockRules:
    """
    Rules of one call of `generate`.

    Args:
        known: tokens of all codes that the model has, by modality.
        outputs: what it may write: `"text"` and names of modalities.
        vocab_size: V.
        ends: ids of tokens that end an answer.

    Raises:
        ValueError: for an output that the model has no codes for, and without text if nothing ends an answer.
    """

    def __init__(self, known: Mapping[str, CodeTokens], outputs: Sequence[str], vocab_size: int, ends: list[int]):
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        if unknown := [name for name in names if name != TEXT and name not in known]:
            raise ValueError(
                f"output_modalities has {unknown[0]!r}, but this model writes {', '.join((TEXT, *known))}. Give it a "
                "codec by model.add_codec, which writes them."
            )
        if not names:
            raise ValueError(f"output_modalities is empty. Name some of {', '.join((TEXT, *known))}.")
        if TEXT not in names and not ends:
            raise ValueError("Without text in output_modalities an answer ends by eos_token_id, which is not set.")
        self.has_text, self.ends = TEXT in names, ends
        self.written = [known[name] for name in names if name != TEXT]
        self.states, base = [], BEHIND + 1
        for tokens in self.written:
            self.states.append(BlockStates(tokens, base))
            base += self.states[-1].count
        self.banned = ~self._allowed(known, vocab_size)  # (states, V)

    def _allowed(self, known: Mapping[str, CodeTokens], vocab_size: int) -> torch.Tensor:
        outside = torch.zeros(BEHIND + 1, vocab_size, dtype=torch.bool)
        outside[IN_TEXT] = True
        for tokens in known.values():
            outside[IN_TEXT, tokens.first : tokens.stop] = False
        for tokens in self.written:
            outside[[IN_TEXT, BEFORE], tokens.start_id] = True
        outside[BEHIND, self.ends] = True
        return torch.cat([outside, *(states.allowed(vocab_size) for states in self.states)])

    def state(self, ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """Return the state of each row (B, L), of which the first tokens are the prompt, (B,)."""
        block, length = open_blocks(ids, self.written)
        state = torch.zeros_like(block)
        if not self.has_text:
            ends = torch.tensor([tokens.end_id for tokens in self.written], device=ids.device)
            is_over = torch.isin(ids[:, prompt_length:], ends).any(-1)
            state = torch.where(is_over, BEHIND, BEFORE)
        for number, states in enumerate(self.states):
            is_inside = block == number
            state = torch.where(is_inside, states.after(ids, length, is_inside), state)
        return state

    def common_range(self, ids: torch.Tensor) -> tuple[int, int] | None:
        """
        Return the first id that the next tokens of all rows (B, L) can have, and the one behind the last.

        None if some of the rows, whose last tokens must be generated ones, are outside of blocks.
        """
        last = ids[:, -1]
        for tokens in self.written:
            is_inside = (last >= tokens.first_code) & (last < tokens.stop) | (last == tokens.start_id)
            if bool(is_inside.all()):
                return tokens.end_id, tokens.stop
        return None


class BlockLogitsProcessor(LogitsProcessor):
    """
    Let each row write only what its place allows.

    Args:
        rules: of this call.
        prompt_length: tokens of the prompt.
        renormalize: whether scores are log-probabilities, as those of beams are, of which the allowed ones get all.
    """

    def __init__(self, rules: BlockRules, prompt_length: int, renormalize: bool):
        self.rules, self.prompt_length, self.renormalize = rules, prompt_length, renormalize

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the scores (B, V) of other tokens to minus infinity."""
        rules = self.rules
        if rules.banned.device != scores.device:
            rules.banned = rules.banned.to(scores.device)
        scores = scores.masked_fill(rules.banned[rules.state(input_ids, self.prompt_length)], -torch.inf)
        return scores.log_softmax(-1) if self.renormalize else scores


class BlockGuidance(UnbatchedClassifierFreeGuidanceLogitsProcessor):
    """
    Classifier-free guidance that follows beams and computes only the scores of codes inside a block.

    transformers' keeps a cache for each row, but beams change places. The unconditional prompt is
    `negative_prompt_ids`, or the last token of the prompt, which of a chat begins the assistant's turn.

    Args:
        plain: transformers' processor, not yet called.
        rules: of this call.
        prompt_length: tokens of the prompt.
        has_beams: whether rows may change places.
    """

    def __init__(
        self,
        plain: UnbatchedClassifierFreeGuidanceLogitsProcessor,
        rules: BlockRules,
        prompt_length: int,
        has_beams: bool,
    ):
        given = plain.unconditional_context
        self.guidance_scale, self.model = plain.guidance_scale, plain.model
        self.prompt, self.mask = given["input_ids"], given["attention_mask"]
        self.keeps_cache = given["use_cache"] and not has_beams
        self.rules, self.prompt_length, self.cache = rules, prompt_length, None

    def get_unconditional_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 1, V) of the next tokens of rows (B, L) without their prompts."""
        if self.prompt is None:
            self.prompt = input_ids[:, self.prompt_length - 1 : self.prompt_length]
        prompt = self.prompt.repeat_interleave(len(input_ids) // len(self.prompt), dim=0)
        mask = (
            torch.ones_like(prompt)
            if self.mask is None
            else self.mask.repeat_interleave(len(input_ids) // len(self.mask), dim=0)
        )
        written = input_ids[:, self.prompt_length :]
        ids = torch.cat([prompt, written], dim=1)
        outputs = self.model(
            ids if self.cache is None else ids[:, -1:],
            attention_mask=torch.cat([mask, torch.ones_like(written)], dim=1),
            past_key_values=self.cache,
            use_cache=self.keeps_cache,
            logits_to_keep=1,
            token_range=self.rules.common_range(input_ids) if written.shape[1] else None,
        )
        self.cache = outputs.past_key_values if self.keeps_cache else None
        return outputs.logits


def block_rules(config: Any, outputs: Sequence[str] | None, eos_token_id: int | list[int] | None) -> BlockRules | None:
    """
    Return the rules of a model for these outputs, by default text alone; None for a model that writes only text.

    Raises:
        ValueError: as [`BlockRules`].
    """
    known = code_tokens_of(config)
    if not known and outputs in (None, TEXT, (TEXT,), [TEXT]):
        return None
    ends = eos_token_id if isinstance(eos_token_id, list) else [] if eos_token_id is None else [eos_token_id]
    return BlockRules(known, (TEXT,) if outputs is None else outputs, config.text_config.vocab_size, ends)


def report_cut_blocks(config: Any, outputs: Any) -> None:
    """Warn of rows that end inside a block, as `max_new_tokens` has cut it; `outputs` are those of `generate`."""
    written = list(code_tokens_of(config).values())
    if not written:
        return
    ids = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
    blocks, lengths = open_blocks(ids, written)
    for row, (block, length) in enumerate(zip(blocks.tolist(), lengths.tolist(), strict=True)):
        tokens = written[block]
        if block >= 0 and tokens.first <= int(ids[row, -1]) < tokens.stop:
            total = "" if tokens.steps is None else f" of {tokens.steps * tokens.codebooks}"
            logger.warning(
                f"Row {row} ends inside its {tokens.name}, behind {length}{total} codes; raise max_new_tokens. "
                "`decode_media` returns the part that can be decoded."
            )
