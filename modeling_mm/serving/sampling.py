# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Choice of an answer's next token, one row at a time, so that rows of a batch need not share any option.

    sampling = Sampling.of({"temperature": 0.7, "seed": 1})
    sampler = RowSampler(model, sampling, prompt_ids)           # (P,) ids of one prompt, without padding
    choice = sampler.choose(logits)                             # (V,) of the row's last position, at each step
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

from ..code_generation import TEXT, BlockLogitsProcessor
from ..compat import logits_processors

DEFAULT_TEMPERATURE = 1.0  # of OpenAI's protocol
# A request with one of these asks for samples, and so does one for several answers.
SAMPLING_OPTIONS = ("temperature", "top_p", "top_k", "seed")
LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")  # the first that is given counts


@dataclass(frozen=True)
class Sampling:
    """
    Options of a checked request that decide which token comes next, and when an answer ends.

    Args:
        temperature: None leaves it to the model's generation config, which is greedy unless it says otherwise
        top_p, top_k: None leaves them to the model's generation config; without any there, all tokens are candidates
        seed: None draws by chance
        frequency_penalty: subtracted from a token's score for each time it is in the answer
        presence_penalty: subtracted once from the score of each token in the answer
        logit_bias: numbers added to the scores of tokens
        stop: texts that end an answer and are left out of it
        max_tokens: requested length; None for as many as fit
        n: number of answers
        top_logprobs: likeliest tokens to report beside each token; None for no log-probabilities at all
        outputs: what the answer may hold: text, and modalities that the model writes as codes
        guidance_scale: of classifier-free guidance; None leaves it to the model's generation config
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    n: int = 1
    top_logprobs: int | None = None
    outputs: tuple[str, ...] = (TEXT,)
    guidance_scale: float | None = None

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "Sampling":
        """
        Return the options of a request whose values were checked.

        Any sampling option without a temperature gets OpenAI's default of 1. A request without any sampling option
        leaves the choice to the model's generation config: greedy, unless that says otherwise.
        """
        given = {name: value for name, value in request.items() if value is not None}
        temperature = given.get("temperature")
        if temperature is None and (any(name in given for name in SAMPLING_OPTIONS) or given.get("n", 1) > 1):
            temperature = DEFAULT_TEMPERATURE
        return cls(
            temperature=None if temperature is None else float(temperature),
            top_p=float(given["top_p"]) if "top_p" in given else None,
            top_k=given.get("top_k"),
            seed=given.get("seed"),
            frequency_penalty=float(given.get("frequency_penalty", 0)),
            presence_penalty=float(given.get("presence_penalty", 0)),
            logit_bias=dict(given.get("logit_bias", {})),
            stop=tuple(given.get("stop", ())),
            max_tokens=next((given[name] for name in LENGTHS if name in given), None),
            n=given.get("n", 1),
            top_logprobs=given.get("top_logprobs", 0) if given.get("logprobs") else None,
            guidance_scale=float(given["guidance_scale"]) if "guidance_scale" in given else None,
        )

    def config(self, default: GenerationConfig) -> GenerationConfig:
        """Return a model's generation config with these options for one row; without beams, which cannot stream."""
        config = copy.deepcopy(default)
        config.num_beams = config.num_return_sequences = 1
        config.output_modalities = list(self.outputs)
        if self.temperature is not None:
            config.do_sample = self.temperature > 0
            config.temperature = self.temperature if config.do_sample else None
        if config.do_sample:
            config.top_p = config.top_p if self.top_p is None else self.top_p
            config.top_k = config.top_k if self.top_k is None else self.top_k
            config.top_k = 0 if config.top_k is None else config.top_k  # all; transformers would leave the 50 best
        if self.guidance_scale is not None:
            config.guidance_scale = self.guidance_scale
        if self.logit_bias:
            config.sequence_bias = {(token,): bias for token, bias in self.logit_bias.items()}
        return config

    def seeds(self) -> list[int | None]:
        """Return one seed for each of the `n` answers; the first is that of a request for one answer."""
        if self.seed is None:
            return [None] * self.n
        further = torch.randint(2**62, (self.n - 1,), generator=torch.Generator().manual_seed(self.seed))
        return [self.seed, *further.tolist()]


class AnswerPenalties(LogitsProcessor):
    """
    OpenAI's frequency and presence penalties, over the tokens of the answer and never those of the prompt.

    Args:
        prompt_length: columns of the prompt, with its padding, which is on the left
    """

    def __init__(self, frequency: float, presence: float, prompt_length: int):
        self.frequency, self.presence, self.prompt_length = frequency, presence, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, V) less the penalties of the tokens (B, L) so far."""
        answer = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


class PairedGuidance(UnbatchedClassifierFreeGuidanceLogitsProcessor):
    """
    Classifier-free guidance by the logits of an unconditional row that is in the same batch.

    That of `generate` runs the model for each row itself.
    """

    def __init__(self, guidance_scale: float):
        self.guidance_scale = guidance_scale
        self.unconditional: torch.Tensor | None = None  # (V,) of the next token, set at each step

    def get_unconditional_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, 1, V) of the unconditional row."""
        assert self.unconditional is not None, "a guided row has an unconditional one beside it"
        return self.unconditional[None, None]


@dataclass(frozen=True)
class Choice:
    """
    Chosen token.

    Args:
        logprob: its log-probability by the model, before penalties, bias and temperature; None unless requested
        top: the likeliest tokens with theirs, best first
    """

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class RowSampler:
    """
    Chooser of one row's tokens. Its draws depend on its seed alone, whatever else is in the batch.

    Args:
        prompt: (P,) token ids of the prompt, without padding
        seed: of this answer, see `Sampling.seeds`
    """

    def __init__(self, model: Any, sampling: Sampling, prompt: torch.Tensor, seed: int | None = None):
        self.config, self.top_logprobs = sampling.config(model.generation_config), sampling.top_logprobs
        self.processors = logits_processors(model, self.config, len(prompt), penalties_of(sampling, len(prompt)))
        self.rules = next((each.rules for each in self.processors if isinstance(each, BlockLogitsProcessor)), None)
        self.guidance: PairedGuidance | None = None
        for place, each in enumerate(self.processors):
            if isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                self.processors[place] = self.guidance = PairedGuidance(each.guidance_scale)
        self.generator = torch.Generator(prompt.device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self.ids = prompt[None]  # (1, L), of the prompt and the answer

    def choose(self, logits: torch.Tensor, unconditional: torch.Tensor | None = None) -> Choice:
        """
        Return the next token of the row.

        Args:
            logits: (V,) of its last position.
            unconditional: likewise, (V,), of the unconditional row beside a guided one.
        """
        if self.guidance is not None:
            self.guidance.unconditional = unconditional
        logits = logits.float()[None]  # half precision has no room for small temperatures
        scores = self.processors(self.ids, logits)
        if self.config.do_sample:
            token = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
        else:
            token = scores.argmax(-1, keepdim=True)
        self.ids = torch.cat([self.ids, token], dim=1)
        if self.top_logprobs is None:
            return Choice(int(token))
        logprobs = logits[0].log_softmax(-1)
        values, tokens = logprobs.topk(min(self.top_logprobs, len(logprobs)))
        top = list(zip(tokens.tolist(), values.tolist(), strict=True))
        return Choice(int(token), float(logprobs[int(token)]), top)

    def code_range(self) -> tuple[int, int] | None:
        """Return the range of ids that the next token is in, if the last one is inside a block of codes."""
        return None if self.rules is None else self.rules.common_range(self.ids[:, -1:])


def penalties_of(sampling: Sampling, prompt_length: int) -> LogitsProcessorList:
    """Return the processors of a request's penalties; none where there are none."""
    if not (sampling.frequency_penalty or sampling.presence_penalty):
        return LogitsProcessorList()
    return LogitsProcessorList([AnswerPenalties(sampling.frequency_penalty, sampling.presence_penalty, prompt_length)])
