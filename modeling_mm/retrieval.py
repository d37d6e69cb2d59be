# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The head that embeds texts, images, audio and any mix of them into one space, for search and matching."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.utils import can_return_tuple, is_torchdynamo_compiling

from .configuration_mm import HIDDEN, INITIAL_TEMPERATURES, LOWEST_TEMPERATURE, SIGMOID, MMConfig
from .contrastive import TEXT, RetrievalLoss, contrastive_loss, shared_sides, shortened
from .device_reads import read_once
from .encoders import is_sharded
from .fingerprints import media_fingerprints, mix, text_fingerprints
from .losses import scaled_similarities
from .modalities import MODALITIES, show_media_inputs
from .modeling_mm import MMKeywords, MMModel, MMPreTrainedModel
from .outputs import MMModelOutput, MMRetrievalOutput

if TYPE_CHECKING:
    from typing_extensions import Unpack
else:
    from transformers.processing_utils import Unpack

# Shape legend: B rows of this process, N rows of all processes, L text tokens, D the decoder's width, P the size of an
# embedding. A side is all texts, all images or all audio of a batch.

INITIAL_BIAS = -10.0  # SigLIP's: nearly all pairs do not match
Inputs = dict[str, Any]  # tensors by the name of the argument


class MMEmbeddingModel(MMPreTrainedModel):
    """
    Base of the heads that embed texts, images, audio and rows that mix them into one space.

    An embedding is a projection of the state of a row's last real token, which sees all of the row, at unit length.
    """

    accepts_loss_kwargs = False  # a batch has no sum of losses: its rows are each other's alternatives

    def __init__(self, config: MMConfig):
        super().__init__(config)
        self.model = MMModel(config)
        size = config.projection_dim or config.text_config.n_embd
        self.embedding_projection = nn.Linear(config.text_config.n_embd, size, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.retrieval_loss == SIGMOID else None

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            temperature = self.config.initial_temperature or INITIAL_TEMPERATURES[self.config.retrieval_loss]
            init.constant_(self.logit_scale, -math.log(temperature))
            if self.logit_bias is not None:
                init.constant_(self.logit_bias, INITIAL_BIAS)

    @property
    def scale(self) -> torch.Tensor:
        """The inverse temperature, at most 100 as CLIP's."""
        return self.logit_scale.float().exp().clamp(max=1 / LOWEST_TEMPERATURE)

    @property
    def loss(self) -> RetrievalLoss:
        """The loss that the config names, on all dimensions and on the leading ones of `config.matryoshka_dims`."""
        sizes: dict[int | None, float] = {None: 1.0}
        dims = self.config.matryoshka_dims or []
        sizes |= zip(dims, self.config.matryoshka_weights or [1.0] * len(dims), strict=True)
        return RetrievalLoss(self.config.retrieval_loss, self.scale, self.logit_bias, sizes)

    def embed(self, truncate_dim: int | None = None, **inputs: Any) -> torch.Tensor:
        """
        Return an embedding of each row, (B, P), of unit length.

        Args:
            truncate_dim: keep so many leading dimensions, (B, truncate_dim), at unit length. They find nearly what
                all of them find if the model was trained with `config.matryoshka_dims`
            inputs: of [`MMModel.forward`]: a text, media with their placeholders in the text, or media alone

        Raises:
            ValueError: for a row with nothing in it, and for more dimensions than there are.
        """
        size = self.embedding_projection.out_features
        if truncate_dim is not None and not 1 <= truncate_dim <= size:
            raise ValueError(f"truncate_dim must be from 1 to {size}, the size of an embedding, got {truncate_dim}.")
        embeds = self.features(**inputs).pooler_output
        assert embeds is not None
        return shortened(embeds, truncate_dim)

    def features(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> MMModelOutput:
        """Return the base model's output with the embeddings of rows as `pooler_output` (B, P); see [`embed`]."""
        input_ids, attention_mask = with_prompt(input_ids, attention_mask, self.config)
        text = input_ids if input_ids is not None else inputs.get("inputs_embeds")
        if text is not None and not is_torchdynamo_compiling():
            check_rows(text, attention_mask, self.config.text_config.pad_token_id)
        options = {**inputs, "use_cache": False, "return_dict": True}
        outputs: MMModelOutput = self.model(input_ids, attention_mask, **options)
        state = outputs.pooler_output  # (B, D), of media alone
        if state is None:
            assert text is not None
            is_real = real_tokens(text, attention_mask, self.config.text_config.pad_token_id)  # (B, L)
            state = last_states(outputs.last_hidden_state, is_real)
        outputs.pooler_output = self.project(state)
        return outputs

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (B, P) of the states of last tokens (B, D)."""
        projected = self.embedding_projection(states)
        return nn.functional.normalize(projected.float(), dim=-1).to(projected.dtype)

    def fingerprint(self, side: Inputs) -> torch.Tensor:
        """Return a number of each row of a side, (B,), the same for rows with the same texts and media."""
        found = []
        if (tokens := side.get("input_ids")) is not None:
            is_real = real_tokens(tokens, side.get("attention_mask"), self.config.text_config.pad_token_id)
            found.append(text_fingerprints(tokens, is_real))
        sources = ["inputs_embeds", *(name for modality in MODALITIES.values() for name in modality.sources)]
        for number, name in enumerate(sources, 1):
            if (values := side.get(name)) is not None:
                found.append(mix(media_fingerprints(values) + number))
        return torch.stack([each.to(found[0].device) for each in found]).sum(0)

    def absent_embeds(self, rows: int) -> torch.Tensor:
        """Return the embeddings of rows that lack a side: zeros, (rows, P)."""
        return self.embedding_projection.weight.new_zeros(rows, self.embedding_projection.out_features)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> MMModelOutput:
        """Return the embeddings of texts (B, L) as `pooler_output` (B, P), of unit length."""
        return self.features(input_ids, attention_mask, **kwargs)

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> MMModelOutput:
        """
        Return the embedding of each row's images, alone, as `pooler_output` (B, P), of unit length.

        Args:
            pixel_values: (B, 3, H, W), or (B, I, 3, H, W) with an `image_mask` (B, I)
        """
        return self.features(pixel_values=pixel_values, **kwargs)

    @can_return_tuple
    def get_audio_features(
        self, input_features: torch.Tensor | None = None, input_values: torch.Tensor | None = None, **kwargs: Any
    ) -> MMModelOutput:
        """
        Return the embedding of each row's audio, alone, as `pooler_output` (B, P), of unit length.

        Args:
            input_features: (B, n_mels, T), or (B, A, n_mels, T) with a `feature_attention_mask` (B, A, T)
            input_values: (B, T) or (B, A, T) for raw-wave encoders
        """
        return self.features(input_features=input_features, input_values=input_values, **kwargs)


class MMForRetrieval(MMEmbeddingModel):
    """
    The model with one embedding space for texts, images, audio and rows that mix them; see [`MMEmbeddingModel`].

    ```python
    model, processor = MMForRetrieval.from_pretrained(folder), MMProcessor.from_pretrained(folder)
    texts = model.embed(**processor(["a dog", "a cat"], padding=True, return_tensors="pt"))  # (2, P)
    mixed = model.embed(**processor(text="<|image|> at night", images=[image], return_tensors="pt"))  # (1, P)
    mixed @ texts.T
    ```
    """

    gradient_cache_rows: int | None = None

    def __init__(self, config: MMConfig):
        super().__init__(config)
        self.post_init()

    def set_gradient_cache(self, rows: int | None) -> None:
        """
        Encode batches in chunks of so many rows, each once more in the backward pass; `None` for whole batches.

        The memory of a step is then that of a chunk, with the loss and the gradients of the whole batch
        (arXiv:2101.06983).
        """
        if rows is not None and rows < 1:
            raise ValueError(f"The gradient cache needs chunks of at least 1 row, got {rows}.")
        self.gradient_cache_rows = rows

    @show_media_inputs()
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **inputs: Unpack[MMKeywords],
    ) -> MMRetrievalOutput:
        """
        Embed the sides of a batch, and compare each row of one side with all rows of the others.

        Media whose placeholders are in the texts belong to them, and are embedded with them. Other media are sides.

        Args:
            input_ids: (B, L), or `inputs_embeds` (B, L, D)
            attention_mask: (B, L)
            position_ids: (B, L)
            return_loss: compute the loss; rows of the same number are then each other's matches, in the batches of all
                processes together, and rows with the same text, images or audio are not each other's alternatives. A
                row may lack sides. Every process must call the model.
            **inputs: media of [`~MMModel.encode_media`]

        Raises:
            ValueError: for a row with nothing in it. With a loss, for sides of different numbers of rows, for one side
                alone, and with InfoNCE for a single row.
        """
        input_ids, attention_mask = with_prompt(input_ids, attention_mask, self.config)
        text = {"input_ids": input_ids, "attention_mask": attention_mask}
        text |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        sides = self.split_sides({name: value for name, value in text.items() if value is not None}, dict(inputs))
        present = {name: self.rows_with(name, side) for name, side in sides.items()}
        check_sides(present, bool(return_loss))
        shared = shared_sides(present, self.device, is_sharded(self.model)) if return_loss else None
        embeds = {name: self.embed_side(side, present[name]) for name, side in sides.items()}
        loss = None
        if shared is not None:
            fingerprints = {name: self.fingerprint(side) for name, side in sides.items()}
            loss = contrastive_loss(embeds, present, fingerprints, shared, self.loss)
        return self.compare(embeds, loss)

    # ---- Sides ------------------------------------------------------------------------------------------------------

    def split_sides(self, text: Inputs, inputs: dict[str, Any]) -> dict[str, Inputs]:
        """Return the inputs of each side. Media belong to the texts if these hold placeholders of their modality."""
        tokens = text.get("input_ids", text.get("inputs_embeds"))
        sides: dict[str, Inputs] = {}
        for name, modality in MODALITIES.items():
            given = {key: inputs[key] for key in modality.model_inputs if inputs.get(key) is not None}
            if not any(source in given for source in modality.sources):
                continue
            if tokens is not None and any(self.model.count_placeholders(modality, tokens)):
                text |= given
            else:
                sides[name] = given
        return ({TEXT: text} if tokens is not None else {}) | sides

    def rows_with(self, name: str, side: Inputs) -> list[bool]:
        """Return which rows of a batch have something on a side, read from the device once."""
        if name in MODALITIES:
            return [count > 0 for count in self.model.read_media(dict(side))[name].counts]
        text, mask = side.get("input_ids", side.get("inputs_embeds")), side.get("attention_mask")
        assert text is not None
        return rows_with_text(text, mask, self.config.text_config.pad_token_id)

    def embed_side(self, side: Inputs, present: list[bool]) -> torch.Tensor:
        """Return the embeddings of a side, (B, P), zeros for rows that lack it; in chunks if gradients are cached."""
        device = next(iter(side.values())).device
        rows = [row for row, is_there in enumerate(present) if is_there]
        if not rows:
            return self.absent_embeds(len(present))
        if len(rows) < len(present):
            index = torch.tensor(rows, device=device)
            side = {name: value[index] for name, value in side.items()}
        chunk = self.gradient_cache_rows if torch.is_grad_enabled() else None
        if chunk is None:
            embeds = self.embed(**side)
        else:
            chunks = zip(*(value.split(chunk) for value in side.values()), strict=True)
            parts = [dict(zip(side, values, strict=True)) for values in chunks]
            embeds = torch.cat([checkpoint(self.embed, **part, use_reentrant=False) for part in parts])
        return spread_rows(embeds, present)

    def compare(self, embeds: dict[str, torch.Tensor], loss: torch.Tensor | None) -> MMRetrievalOutput:
        """Return the embeddings of all sides with the logits of media and texts."""
        text, logits = embeds.get(TEXT), {}
        for name in embeds:
            if text is not None and name != TEXT:
                logits[name] = scaled_similarities(embeds[name], text, self.scale, self.logit_bias)
        of_text = logits.get("image", logits.get("audio"))
        return MMRetrievalOutput(
            loss=loss,
            logits_per_image=logits.get("image"),
            logits_per_audio=logits.get("audio"),
            logits_per_text=None if of_text is None else of_text.T,
            text_embeds=text,
            image_embeds=embeds.get("image"),
            audio_embeds=embeds.get("audio"),
        )


def with_prompt(
    input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, config: MMConfig
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Append `config.prompt_token_ids` to texts (B, L) whose hidden placeholders leave nothing else to read."""
    if config.placeholders != HIDDEN or not config.prompt_token_ids or input_ids is None or attention_mask is None:
        return input_ids, attention_mask
    placeholders = torch.tensor(config.placeholder_ids, device=input_ids.device)
    is_alone = torch.isin(input_ids, placeholders).any(-1) & ~attention_mask.to(input_ids.device).any(-1)  # (B,)
    if not any(read_once("hidden alone", is_alone, input_ids, attention_mask)):
        return input_ids, attention_mask
    prompt = torch.tensor(config.prompt_token_ids, device=input_ids.device).expand(len(input_ids), -1)
    mask = is_alone[:, None].expand_as(prompt).to(attention_mask)
    return torch.cat([input_ids, prompt], 1), torch.cat([attention_mask, mask], 1)


def real_tokens(text: torch.Tensor, attention_mask: torch.Tensor | None, pad_token_id: int | None) -> torch.Tensor:
    """Return which tokens are real, (B, L) bool: by the mask, or without one those that are no padding by their id."""
    if attention_mask is not None and attention_mask.ndim == 2:
        return attention_mask[:, -text.shape[1] :].to(text.device).bool()
    if text.ndim == 2 and pad_token_id is not None:
        return text != pad_token_id
    return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)


def last_states(states: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """Return the state (B, D) of each row's last real token, from states (B, L, D) and real tokens (B, L) bool."""
    last = (torch.arange(is_real.shape[1], device=is_real.device) * is_real).argmax(-1)  # (B,)
    return states[torch.arange(len(states), device=states.device), last.to(states.device)]


def spread_rows(embeds: torch.Tensor, present: list[bool]) -> torch.Tensor:
    """Return the embeddings (B, P) of all rows from those of the rows that are present, zeros for the others."""
    if all(present):
        return embeds
    rows = torch.tensor([row for row, is_there in enumerate(present) if is_there], device=embeds.device)
    return embeds.new_zeros(len(present), embeds.shape[1]).index_copy(0, rows, embeds)


def rows_with_text(text: torch.Tensor, attention_mask: torch.Tensor | None, pad_token_id: int | None) -> list[bool]:
    """Return which rows have a real token."""
    if not text.shape[1]:
        return [False] * len(text)
    read_from = [text] if attention_mask is None else [text, attention_mask]
    return read_once("has text", real_tokens(text, attention_mask, pad_token_id).any(-1), *read_from)


def check_rows(text: torch.Tensor, attention_mask: torch.Tensor | None, pad_token_id: int | None) -> None:
    """
    Check that no row is empty.

    Raises:
        ValueError: for the first row without a real token.
    """
    found = rows_with_text(text, attention_mask, pad_token_id)
    if False in found:
        raise empty_row(found.index(False))


def empty_row(row: int) -> ValueError:
    return ValueError(
        f"Row {row} has nothing in it: neither a text token nor media. An embedding needs something to embed; leave "
        "the row out, or give it a text, an image or audio."
    )


def check_sides(present: dict[str, list[bool]], is_paired: bool) -> None:
    """
    Check that sides fit each other.

    Args:
        present: which rows each side has
        is_paired: rows of the same number belong together

    Raises:
        ValueError: if there is no side, if sides that belong together have different numbers of rows, and for a row
            with nothing in it.
    """
    if not present:
        raise ValueError(
            "There is nothing to embed. Pass input_ids, pixel_values, input_features, or several of them."
        )
    sizes = {name: len(rows) for name, rows in present.items()}
    if len(set(sizes.values())) > 1:
        if is_paired:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"A loss needs sides of as many rows as match each other, got {listed}. Give each row its text, "
                "images and audio, or leave `return_loss` out."
            )
        for rows in present.values():
            if False in rows:
                raise empty_row(rows.index(False))
        return
    for row, flags in enumerate(zip(*present.values(), strict=True)):
        if not any(flags):
            raise empty_row(row)


MMForRetrieval.register_for_auto_class("AutoModelForZeroShotImageClassification")

__all__ = ["MMForRetrieval"]
