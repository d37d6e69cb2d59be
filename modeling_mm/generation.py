# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`generate` with media: they are encoded once, before rows are repeated for beams and samples."""

from functools import wraps
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.utils import logging

from .code_generation import BlockGuidance, BlockLogitsProcessor, BlockRules, block_rules, report_cut_blocks
from .code_tokens import TEXT, code_tokens_of
from .configuration_mm import HIDDEN
from .encoders import is_sharded
from .layers import turn_weights
from .masks import check_placeholders, hide_placeholders, wrong_rows
from .media import check_media_alone, placeholder_prompt
from .media_cache import has_cached_media
from .modalities import MODALITIES, media_inputs
from .outputs import MMMediaOutput
from .suppression import suppress_by_ids

logger = logging.get_logger(__name__)

LEAST_TEMPERATURE = 0.01  # by which scores are divided as they are


class SuppressPlaceholders(LogitsProcessor):
    """
    Never generate a placeholder: media belong to it, and there are none to come.

    It replaces `suppress_tokens` of a generation config: it does not compare the whole vocabulary at every step, and
    holds whatever generation config is used.

    Args:
        token_ids: of placeholders, and of `config.suppressed_token_ids`
        renormalize: whether scores are log-probabilities, as those of beams are, of which the others get all again
    """

    def __init__(self, token_ids: list[int], renormalize: bool = False):
        self.token_ids, self.renormalize = torch.tensor(token_ids), renormalize

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the scores (B, V) of these tokens to minus infinity."""
        self.token_ids = self.token_ids.to(scores.device)
        scores = scores.index_fill(1, self.token_ids, -torch.inf)
        return scores.log_softmax(-1) if self.renormalize else scores


class SmallTemperature(LogitsProcessor):
    """
    Divide the scores by a temperature next to 0.

    transformers' own divides scores as they are, which overflows: a temperature of 1e-38 makes every score infinite.
    """

    def __init__(self, temperature: float):
        self.temperature = max(temperature, 1e-30)  # float32 has few smaller numbers, and they choose no other token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with the greatest at 0, which changes no probability."""
        return (scores - scores.max(-1, keepdim=True).values) / self.temperature


class PositionsUsedUp(StoppingCriteria):
    """
    End answers where the decoder has no position for another token, and warn if one was not complete.

    Args:
        length: tokens of prompt and answer that fit.
        positions: the decoder's number of positions.
        ends: ids of tokens after which nothing follows.
    """

    def __init__(self, length: int, positions: int, ends: list[int]):
        self.length, self.positions, self.ends = length, positions, torch.tensor(ends, dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return which of the rows (B,) are over."""
        is_over = input_ids.shape[1] >= self.length
        if is_over and not torch.isin(input_ids[:, -1], self.ends.to(input_ids.device)).all():
            logger.warning(
                f"An answer was cut off where the decoder's {self.positions} positions were used up; shorten the "
                "prompt, or use a decoder with more positions (text_position_encoding='sinusoidal' has no limit)."
            )
        return torch.full((len(input_ids),), is_over, device=input_ids.device, dtype=torch.bool)


class MMGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model with `encode_media` and a `forward` that takes `media`."""

    @property
    def output_modalities(self) -> tuple[str, ...]:  # type: ignore[override]
        """Text, and the modalities whose codes the model writes; pipelines of transformers look here."""
        return (TEXT, *code_tokens_of(self.config))

    @wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """
        Generate as transformers does, with media encoded once; see `GenerationMixin.generate`.

        `output_modalities`, by default `("text",)`, are what a model with codecs may write: `"text"`, `"image"`,
        `"audio"`. Inside the block of an image or of audio it writes only codes, and outside only text; without
        `"text"` it writes one block and ends. `processor.decode_media` makes images and audio of the ids.
        """
        turn_weights(self)  # type: ignore[arg-type]
        outputs = super().generate(*args, **kwargs)
        report_cut_blocks(self.config, outputs)
        return outputs

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        outputs = kwargs.pop("output_modalities", None)
        config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        outputs = getattr(config, "output_modalities", None) if outputs is None else outputs
        # Pipelines before 5.20 come here as well, and take whatever is added for an option of theirs.
        if outputs is not None and (rules := block_rules(self.config, outputs, config.eos_token_id)) is not None:
            model_kwargs["block_rules"] = rules
        if config.do_sample and config.temperature == 0:  # the limit of ever smaller ones, as OpenAI's clients send it
            config.do_sample, config.temperature = False, None
        config._prompt_mask = model_kwargs.get("attention_mask")  # the config is this call's own copy
        return config, model_kwargs

    def _prepare_generated_length(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> GenerationConfig:
        config = super()._prepare_generated_length(generation_config, *args, **kwargs)
        mask, length = vars(config).pop("_prompt_mask", None), kwargs["input_ids_length"]
        if self.config.text_position_encoding != "learned":
            return config
        positions = self.config.text_config.n_positions
        # The last token of an answer takes no position, but prompt lookup runs it to look one token further.
        fitting = positions + (config.prompt_lookup_num_tokens is None)
        if kwargs["model_input_name"] == "inputs_embeds" and length != kwargs["inputs_tensor"].shape[1]:
            fitting -= kwargs["inputs_tensor"].shape[1]  # lengths are those of the answer alone
        if config.max_length > fitting and mask is not None and mask.ndim == 2:
            fitting += mask.shape[1] - int(mask.sum(-1).max())  # padding takes no position
        if length < fitting < config.max_length:
            ends = [config.eos_token_id, config.pad_token_id]
            known = [end for each in ends if each is not None for end in (each if isinstance(each, list) else [each])]
            config.max_length, config._cut = fitting, PositionsUsedUp(fitting, positions, known)
            config.min_length = min(config.min_length or 0, fitting)
        return config

    def _get_stopping_criteria(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> StoppingCriteriaList:
        cut = vars(generation_config).pop("_cut", None)
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        return criteria if cut is None else StoppingCriteriaList([cut, *criteria])

    def _prepare_model_inputs(self, inputs: Any, bos_token_id: Any, model_kwargs: dict[str, Any]) -> Any:
        model_kwargs = dict(model_kwargs)
        check_tokens(inputs)
        given = {name: model_kwargs.pop(name) for name in media_inputs() if name in model_kwargs}
        given = {name: value for name, value in given.items() if value is not None}
        if given and model_kwargs.get("media") is not None:
            raise ValueError(f"Pass either media or the raw {', '.join(given)}, not both.")
        texts = (inputs, model_kwargs.get("input_ids"), model_kwargs.get("inputs_embeds"))
        text = next((text for text in texts if text is not None), None)
        if text is None and (given or model_kwargs.get("media") is not None):
            check_media_alone(
                *(model_kwargs.get(name) for name in ("attention_mask", "position_ids", "past_key_values"))
            )
            if given and is_sharded(self):
                raise ValueError(
                    "Weights are sharded and gathered within `forward` only, so media alone cannot be encoded before "
                    "it. Pass input_ids with a placeholder for each item; MMProcessor makes them."
                )
        if given and is_sharded(self):
            model_kwargs.update(given)  # the first step encodes them, with the gathered weights
        elif given:
            with torch.no_grad():
                model_kwargs["media"] = self.encode_media(text=text, **given)
            if text is not None and len(text) != len(model_kwargs["media"].mask):
                raise wrong_rows(len(text), len(model_kwargs["media"].mask))
            model_kwargs["media_inputs"] = {"text": text, **given}  # for an assistant model, which has other encoders
        if text is None and model_kwargs.get("media") is not None:
            inputs, model_kwargs["attention_mask"] = placeholder_prompt(model_kwargs["media"], self.config)
            model_kwargs.pop("input_ids", None)
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_attention_mask_for_generation(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = super()._prepare_attention_mask_for_generation(inputs, *args, **kwargs)
        if self.config.placeholders == HIDDEN and mask.ndim == 2 and mask.shape == inputs.shape[:2]:
            mask = hide_placeholders(
                mask, [self.model.placeholders(each, inputs) for each in self.config.placeholder_ids]
            )
        return mask

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        media = model_kwargs.get("media")
        if expand_size > 1 and media is not None and len(media.mask) > 1:  # one row is for all rows already
            model_kwargs["media"] = media.repeat_interleave(expand_size)
        return input_ids, model_kwargs

    def _get_logits_processor(
        self, generation_config: GenerationConfig, input_ids_seq_length: int | None = None, *args: Any, **kwargs: Any
    ) -> LogitsProcessorList:
        processors = super()._get_logits_processor(generation_config, input_ids_seq_length, *args, **kwargs)
        rules = (kwargs.get("model_kwargs") or {}).get("block_rules") or block_rules(self.config, None, None)
        if rules is not None:
            add_block_rules(processors, rules, input_ids_seq_length or 0, (generation_config.num_beams or 1) > 1)
        suppressed = self.config.suppressed_token_ids or []
        if never := sorted({*self.config.placeholder_ids, *suppressed}):
            # First, so that no filter (top-k, top-p, ...) can leave placeholders as the only choice.
            renormalize = bool(suppressed) and (generation_config.num_beams or 1) > 1
            processors.insert(0, SuppressPlaceholders(never, renormalize))
        for place, processor in enumerate(processors):
            if type(processor) is TemperatureLogitsWarper and processor.temperature < LEAST_TEMPERATURE:
                processors[place] = SmallTemperature(processor.temperature)
        suppress_by_ids(processors)
        return processors

    def _get_candidate_generator(
        self, *, model_kwargs: dict[str, Any], assistant_model: Any = None, **kwargs: Any
    ) -> Any:
        media, given = model_kwargs.get("media"), model_kwargs.get("media_inputs")
        for_this_model = ("media", "media_inputs", "block_rules")
        text_kwargs = {name: value for name, value in model_kwargs.items() if name not in for_this_model}
        if media is not None and isinstance(assistant_model, MMGenerationMixin):
            if given is not None and assistant_model is not self:
                with torch.no_grad():
                    media = assistant_model.encode_media(**given)
            text_kwargs["media"] = media
        return super()._get_candidate_generator(model_kwargs=text_kwargs, assistant_model=assistant_model, **kwargs)

    def _prefill(
        self, input_ids: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        if generation_config.prefill_chunk_size is not None and model_kwargs.get("media") is not None:
            raise ValueError(
                "prefill_chunk_size cuts a prompt apart from its media. Leave it out for prompts with media; media "
                "take no room among the text tokens."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        media: MMMediaOutput | None = None,
        media_inputs: dict[str, torch.Tensor] | None = None,
        block_rules: BlockRules | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if block_rules is not None and not is_first_iteration and kwargs.get("logits_to_keep") == 1:
            model_inputs["token_range"] = block_rules.common_range(input_ids)
        # Media are passed once, as the cache keeps them, and at every step without a cache. The first step of an
        # assistant model is not marked as such, so the cache must be looked at.
        is_unseen = is_first_iteration or not kwargs.get("use_cache", True) or not has_cached_media(past_key_values)
        if media is not None and is_unseen:
            starts_from_embeds = inputs_embeds is not None and model_inputs.get("inputs_embeds") is not None
            text = inputs_embeds if inputs_embeds is not None and starts_from_embeds else input_ids
            new = model_inputs["inputs_embeds" if starts_from_embeds else "input_ids"]
            model_inputs["media"] = self.unseen_media(media, text, new.shape[1])
        return model_inputs

    def unseen_media(self, media: MMMediaOutput, text: torch.Tensor, new_tokens: int) -> MMMediaOutput | None:
        """
        Return the media whose placeholders are among the last `new_tokens` of a text, renumbered.

        A generation that continues from an older cache may be given the media of the whole conversation or only the
        new ones: their number says which.

        Args:
            text: ids (B, L) or embeddings (B, L, D), with what is in the cache already

        Raises:
            ValueError: if the number of media is neither.
        """
        if new_tokens == text.shape[1]:
            return media
        media = media.map(lambda tensor: tensor.expand(len(text), *tensor.shape[1:]).to(text.device))
        position = media.position
        for number, (name, modality) in enumerate(MODALITIES.items()):
            token_id = getattr(self.config, modality.token_id_field)
            is_placeholder = self.model.placeholders(token_id, text)  # (B, L)
            given, total = media.count(number), is_placeholder.sum(-1)  # (B,) each
            if torch.equal(given, is_placeholder[:, -new_tokens:].sum(-1)):
                continue
            check_placeholders(name, token_id, total.tolist(), given.tolist())
            seen = is_placeholder[:, :-new_tokens].sum(-1, keepdim=True)  # (B, 1)
            position = torch.where(media.modality == number, position - seen, position)
        mask = media.mask & (position >= 0)
        if not bool(mask.any()):
            return None
        return MMMediaOutput(media.states, mask, position.masked_fill(~mask, -1), media.modality, media.sizes)


def add_block_rules(processors: LogitsProcessorList, rules: BlockRules, prompt_length: int, has_beams: bool) -> None:
    """Add the rules of generated codes to what is applied to scores, in place: behind guidance, before any filter."""
    place = 0
    for number, each in enumerate(processors):
        if isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            processors[number], place = BlockGuidance(each, rules, prompt_length, has_beams), number + 1
    processors.insert(place, BlockLogitsProcessor(rules, prompt_length, has_beams))


def check_tokens(inputs: Any) -> None:
    """
    Check that the first argument of `generate` holds tokens.

    Raises:
        ValueError: for media and for a whole batch, with the keywords that take them.
    """
    if inputs is None or (isinstance(inputs, torch.Tensor) and not inputs.is_floating_point()):
        return
    if not isinstance(inputs, torch.Tensor):
        raise ValueError(
            f"The first argument of generate takes the ids of tokens (B, L), got a {type(inputs).__name__}; pass the "
            "inputs of a processor by name: generate(**inputs)"
        )
    names = [name for each in MODALITIES.values() for name in each.inputs]
    raise ValueError(
        f"The first argument of generate takes the ids of tokens (B, L), got {inputs.dtype} of shape "
        f"{tuple(inputs.shape)}; pass media by name: generate({'=... or '.join([*names, 'inputs_embeds'])}=...)"
    )
