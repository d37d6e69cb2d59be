# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Work that waits in the engine: media to encode, and answers with their media, options and tokens."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import GenerationConfig

from ..modalities import MODALITIES
from ..outputs import MMMediaOutput
from .sampling import Choice, RowSampler, Sampling
from .text_streamer import TokenStreamer

# Shape legend: N items (images or audio windows) of a row, M media tokens an item, S media tokens a row, D width.

# Options of a generation config that a shared batch has no place for: option -> the values that ask for nothing.
SINGLE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "cache_implementation": (None, "dynamic"),
    "dola_layers": (None,),
    "max_time": (None,),
    "penalty_alpha": (None,),
    "prefill_chunk_size": (None,),
    "prompt_lookup_num_tokens": (None,),
    "stop_strings": (None,),
    "use_cache": (None, True),
}


@dataclass(eq=False)
class MediaItem:
    """
    Image or audio window of a row.

    Args:
        modality: its name
        inputs: of the encoder, (1, 1, ...) each, with their mask
    """

    modality: str
    inputs: dict[str, torch.Tensor]
    states: torch.Tensor | None = None  # (M, D), once it is encoded
    mask: torch.Tensor | None = None  # (M,) bool

    def shape(self) -> tuple[Any, ...]:
        """Return a key that items share which can be encoded together."""
        return self.modality, *((name, tensor.shape[2:]) for name, tensor in sorted(self.inputs.items()))


@dataclass(eq=False)
class MediaRow:
    """
    Media of one row that are waiting to be encoded.

    Args:
        items: see `items_of`; answers to the same prompt share them
        done: ends with the encoded media, or has failed
    """

    items: list[MediaItem]
    done: Future = field(default_factory=Future, kw_only=True)

    def pending(self) -> list[MediaItem]:
        """Return the items that are not encoded yet."""
        return [item for item in self.items if item.states is None]

    def is_over(self) -> bool:
        """Return True if nobody waits for it any more."""
        return False

    def media(self) -> MMMediaOutput | None:
        """Return the encoded items as one row, as `encode_media` lays them out; None without any."""
        counts: dict[str, int] = {}
        sizes = dict.fromkeys(MODALITIES, 0)
        parts = []
        for item in self.items:  # in the order of the modalities
            assert item.states is not None and item.mask is not None, "encoded before"
            number = counts[item.modality] = counts.get(item.modality, -1) + 1
            position = torch.where(item.mask, number, -1)
            modality = torch.full_like(position, list(MODALITIES).index(item.modality))
            parts.append((item.states, item.mask, position, modality))
            sizes[item.modality] += len(item.mask)
        if not parts:
            return None
        return MMMediaOutput(*[torch.cat(same)[None] for same in zip(*parts, strict=True)], tuple(sizes.values()))

    def finish(self, error: BaseException | None = None) -> None:
        """End the work: it is complete, or has failed."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(self.result())
        else:
            self.done.set_exception(error)

    def result(self) -> Any:
        return self.media()


@dataclass(eq=False)
class Row(MediaRow):
    """
    Answer that is waiting or being generated.

    Args:
        inputs: of `generate`, of one row without padding
        config: of its generation, with `max_new_tokens`
        sampling: its options
        seed: of its draws; None draws by chance
        streamer: takes its tokens, and ends it
        choices: its tokens so far with their log-probabilities; empty for rows that `generate` answers
    """

    inputs: Mapping[str, torch.Tensor]
    config: GenerationConfig
    sampling: Sampling
    seed: int | None
    streamer: TokenStreamer
    choices: list[Choice] = field(default_factory=list)
    sampler: RowSampler | None = None

    @cached_property
    def ends(self) -> set[int | None]:
        """Tokens that end the answer."""
        ends = self.config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])

    @property
    def prompt(self) -> torch.Tensor:
        """Ids of the prompt, (1, P)."""
        return self.inputs["input_ids"]

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the longest answer."""
        return self.prompt.shape[1] + self.config.max_new_tokens

    @property
    def media_tokens(self) -> int:
        """Media tokens, once all items are encoded."""
        return sum(0 if item.mask is None else len(item.mask) for item in self.items)

    @cached_property
    def unconditional(self) -> "UnconditionalRow | None":
        """The row beside this one that it is guided away from; None without guidance."""
        return None if getattr(self.config, "guidance_scale", None) in (None, 1.0) else UnconditionalRow(self)

    @property
    def members(self) -> list["BatchRow"]:
        """This row, and its unconditional one: they join a batch and leave it together."""
        return [self] if self.unconditional is None else [self, self.unconditional]

    def needs_generate(self) -> bool:
        """Return True for a row that only `generate` can answer, alone."""
        return bool(single_options(self.config))

    def code_range(self) -> tuple[int, int] | None:
        """Return the first id that its next token can have and the one behind the last, inside a block of codes."""
        return None if self.sampler is None else self.sampler.code_range()

    def is_over(self) -> bool:
        return self.streamer.is_over()

    def result(self) -> None:
        """Return nothing: the streamer has it."""

    def take(self, choice: Choice) -> bool:
        """Pass on a token; return True if it was the last."""
        if not self.is_over():
            self.choices.append(choice)
            self.streamer.take(choice.token)
        is_long = len(self.streamer.tokens) >= self.config.max_new_tokens
        return choice.token in self.ends or is_long or self.is_over()


class UnconditionalRow:
    """
    Row of a batch with the answer of a guided row behind the last token of its prompt alone, without media.

    Its logits say what the answer would be without the prompt; it has no tokens or options but those of the other.

    Args:
        guided: the row beside it.
    """

    media_tokens = 0

    def __init__(self, guided: Row):
        self.guided = guided
        self.streamer, self.done = guided.streamer, guided.done

    @property
    def prompt(self) -> torch.Tensor:
        """Ids of the prompt, (1, 1): of a chat the token that begins the assistant's turn."""
        return self.guided.prompt[:, -1:]

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the longest answer."""
        return self.prompt.shape[1] + self.guided.config.max_new_tokens

    def media(self) -> None:
        """Return no media."""

    def code_range(self) -> tuple[int, int] | None:
        """Return that of the guided row."""
        return self.guided.code_range()

    def finish(self, error: BaseException | None = None) -> None:
        """End both rows."""
        self.guided.finish(error)


BatchRow = Row | UnconditionalRow


def single_options(config: GenerationConfig) -> list[str]:
    """Return the options of a config that a shared batch has no place for."""
    return [name for name, values in SINGLE_OPTIONS.items() if getattr(config, name, None) not in values]


def items_of(inputs: Mapping[str, torch.Tensor]) -> list[MediaItem]:
    """Return the real media of a row, in the order of the modalities."""
    items = []
    for modality in MODALITIES.values():
        given = {name: inputs[name] for name in modality.model_inputs if inputs.get(name) is not None}
        slots = next((tensor.shape[1] for tensor in given.values()), 0)
        for slot in range(slots):
            item = MediaItem(modality.name, {name: tensor[:, slot : slot + 1] for name, tensor in given.items()})
            mask = item.inputs.get(modality.mask)
            if mask is None or bool(mask.any()):
                items.append(item)
    return items
