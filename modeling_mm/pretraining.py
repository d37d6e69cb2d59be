# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The head that pre-trains: four objectives on one batch, whose media are encoded once.

Shape legend: B rows, L text tokens, T tokens of a text to embed, M modalities, S media tokens a row, D the decoder's
width, P the size of an embedding, K pairs of a text and the media of another row.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .configuration_mm import OBJECTIVE_WEIGHTS, MMConfig
from .contrastive import TEXT, SharedSides, contrastive_loss, shared_sides
from .encoders import is_sharded
from .joining import joint_generation_config
from .layers import Head
from .losses import causal_lm_loss, check_labels, shifted
from .modalities import MODALITIES, show_media_inputs
from .modeling_mm import MMKeywords, kept_tokens
from .outputs import MMPreTrainingOutput
from .pretraining_batch import IGNORED, PreTrainingBatch, Sum, draw_pairs, mean_losses, media_of
from .ranks import num_processes
from .retrieval import MMEmbeddingModel, last_states, real_tokens, spread_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack
else:
    from transformers.processing_utils import Unpack

# The input that each objective cannot do without.
NEEDED = {
    "causal_lm": "labels",
    "masked_lm": "masked_targets",
    "matching": "input_ids",
    "contrastive": "text_input_ids",
}


class MMForPreTraining(MMEmbeddingModel):
    """
    The model with the objectives of pre-training, weighted by `config.causal_lm_weight` and so on.

    - `causal_lm`: the next token, as [`MMForConditionalGeneration`] learns it
    - `masked_lm`: masked tokens, in the bidirectional mode. Each is predicted from the state before it, as the next
      token is, so that both have one head (arXiv:2404.05961). Modalities of a row may be hidden, so that its words are
      predicted without them
    - `matching`: if a text belongs to its media, in the bidirectional mode. Other media of the batch are drawn by
      their similarity to the text (arXiv:2107.07651); in evaluation the most similar ones are taken
    - `contrastive`: embeddings of texts and media, as [`MMForRetrieval`] learns them

    Encoders run once. Matching reads the masked texts (arXiv:2112.04482), in one pass with masked language modeling.

    Every other head loads from the folder of this one.

    ```python
    model = MMForPreTraining.from_pretrained(folder)
    output = model(**PretrainingCollator(processor)(chats))
    output.loss.backward()
    print({name: loss.item() for name, loss in output.losses.items()})
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.wte.weight"}

    def __init__(self, config: MMConfig):
        super().__init__(config)
        text = config.text_config
        self.lm_head = Head(text.n_embd, text.vocab_size, bias=False)
        self.mask_embedding = nn.Parameter(torch.zeros(text.n_embd))
        self.matching_head = nn.Linear(text.n_embd, 1)
        self.loss_type = "ForPreTraining"
        self.post_init()
        self.freeze()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.mask_embedding, std=self.config.text_config.initializer_range)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As transformers does; with the ends of answers, for the head that generates."""
        if kwargs.get("is_main_process", True):
            os.makedirs(save_directory, exist_ok=True)
            stock = GenerationConfig.from_model_config(self.config)
            joint_generation_config(self, self.config, stock).save_pretrained(save_directory)
        super().save_pretrained(save_directory, **kwargs)

    def is_on(self, *objectives: str) -> bool:
        """Return if any of these objectives has a weight."""
        return any(getattr(self.config, OBJECTIVE_WEIGHTS[name]) for name in objectives)

    def match(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """
        Return for each row a logit (B,) that is above 0 if its text belongs to its media.

        Args:
            input_ids, attention_mask, **inputs: of [`MMModel.forward`]
        """
        options = {**inputs, "is_causal": False, "use_cache": False, "return_dict": True}
        states = self.model(input_ids, attention_mask, **options).last_hidden_state  # (B, L, D)
        is_real = real_tokens(input_ids, attention_mask, self.config.text_config.pad_token_id)
        return self.matching_head(last_states(states, is_real))[:, 0]

    @show_media_inputs()
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_targets: torch.Tensor | None = None,
        hidden_modalities: torch.Tensor | None = None,
        text_input_ids: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_loss: bool | None = None,
        **inputs: Unpack[MMKeywords],
    ) -> MMPreTrainingOutput:
        """
        Compute the losses of all objectives that are on, or without targets logits and embeddings.

        [`PretrainingCollator`] makes all inputs from chats. Every process must call the model: losses are means over
        the batches of all processes together, and texts and media of all of them are compared.

        Args:
            input_ids: (B, L), with a placeholder for each media item
            attention_mask: (B, L)
            labels: (B, L), -100 for tokens that `causal_lm` does not learn; they are shifted inside
            masked_targets: (B, L), the ids of tokens that are masked, -100 for the others. The first token of a row
                has no state before it and is never masked
            hidden_modalities: (B, M) bool, in the order of `MODALITIES`: which modalities the bidirectional mode does
                not see
            text_input_ids: (B, T), the texts of `contrastive`, without placeholders, beside `text_attention_mask`
            text_attention_mask: (B, T)
            logits_to_keep: see [`MMForConditionalGeneration.forward`]
            return_loss: compute losses without `labels` and `masked_targets` too
            **inputs: media of [`~MMModel.encode_media`]

        Raises:
            ValueError: for placeholders that do not match the media, a label out of range, an objective without its
                input, and with `matching` or `contrastive` for a batch without media or of a single row.
        """
        options: dict[str, Any] = dict(inputs)
        shift_labels = options.pop("shift_labels", None)
        options.pop("num_items_in_batch", None)
        texts = (input_ids, attention_mask) if text_input_ids is None else (text_input_ids, text_attention_mask)
        is_loss = bool(return_loss) or any(each is not None for each in (labels, shift_labels, masked_targets))
        fingerprints = self.fingerprints(texts, options) if is_loss else {}
        media = self.model.encode_batch(options, input_ids, attention_mask)
        if unknown := [name for name, value in options.items() if value is not None]:
            raise TypeError(f"{type(self).__name__} got unexpected arguments: {', '.join(unknown)}.")
        batch = PreTrainingBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=shifted(labels) if shift_labels is None and labels is not None else shift_labels,
            masked_targets=masked_targets,
            hidden_modalities=hidden_modalities,
            text_input_ids=text_input_ids,
            text_attention_mask=text_attention_mask,
            media=media,
            counts={} if media is None else media.item_counts(),
            fingerprints=fingerprints,
        )
        shared = self.check_batch(batch) if is_loss else None
        found: dict[str, Any] = {}
        sums: dict[str, Sum] = {}
        if self.is_on("causal_lm") and input_ids is not None:
            found["logits"], sums = self.read_forwards(batch, logits_to_keep)
        embeds = self.embed_sides(batch)
        found |= {f"{name}_embeds": embeds[name] for name in embeds}
        if is_loss and self.is_on("masked_lm", "matching"):
            logits, more = self.read_both_ways(batch, embeds)
            found, sums = found | logits, sums | more
        if is_loss:
            losses = mean_losses(sums)
            if self.is_on("contrastive"):
                assert shared is not None
                present = batch.present(self.config.text_config.pad_token_id)
                losses["contrastive"] = contrastive_loss(embeds, present, fingerprints, shared, self.loss)
            found |= {"losses": losses, "loss": self.weighted(losses)}
        return MMPreTrainingOutput(**found)

    def fingerprints(
        self, texts: tuple[torch.Tensor | None, torch.Tensor | None], inputs: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Return those of the rows of each side, (B,), if rows are compared; see [`MMEmbeddingModel.fingerprint`]."""
        if not self.is_on("matching", "contrastive"):
            return {}
        sides = {
            name: {source: inputs[source] for source in modality.sources if inputs.get(source) is not None}
            for name, modality in MODALITIES.items()
        }
        ids, mask = texts
        sides |= {TEXT: {} if ids is None else {"input_ids": ids, "attention_mask": mask}}
        return {name: self.fingerprint(side) for name, side in sides.items() if side}

    def weighted(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of losses by the weights of the config."""
        loss = torch.stack([losses[name] * getattr(self.config, OBJECTIVE_WEIGHTS[name]) for name in losses]).sum()
        if num_processes() > 1:  # gradients are averaged over processes, those of heads that are off too
            loss = loss + 0.0 * torch.stack([parameter.float().sum() for parameter in self.idle_parameters()]).sum()
        return loss

    def idle_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the heads, of which some are off."""
        heads = (self.lm_head, self.matching_head, self.embedding_projection)
        inside = [parameter for head in heads for parameter in head.parameters()]
        own = [self.mask_embedding, self.logit_scale, self.logit_bias, *inside]
        return [parameter for parameter in own if parameter is not None]

    def check_batch(self, batch: PreTrainingBatch) -> SharedSides | None:
        """
        Check that each objective has what it learns from, in the batches of all processes together.

        Returns:
            the sides that are compared, `None` if none are

        Raises:
            ValueError: see [`forward`].
        """
        for name, field in NEEDED.items():
            if self.is_on(name) and getattr(batch, field) is None:
                raise ValueError(
                    f"config.{OBJECTIVE_WEIGHTS[name]} is {getattr(self.config, OBJECTIVE_WEIGHTS[name])}, but "
                    f"{field} is missing. PretrainingCollator makes it from chats; or set the weight to 0."
                )
        for field in ("labels", "masked_targets"):
            if (targets := getattr(batch, field)) is not None:
                check_labels(field, targets, self.config.text_config.vocab_size)
        if batch.masked_targets is not None and batch.input_ids is None:
            raise ValueError("masked_targets came without the input_ids that they are of. Pass both.")
        if not self.is_on("matching", "contrastive"):
            return None
        present = batch.present(self.config.text_config.pad_token_id)
        shared = shared_sides(present, self.device, is_sharded(self.model))
        used = " and ".join(OBJECTIVE_WEIGHTS[name] for name in ("matching", "contrastive") if self.is_on(name))
        if not set(shared.names) - {TEXT}:
            kinds = ", ".join(modality.plural for modality in MODALITIES.values())
            raise ValueError(
                f"The batch has {shared.rows} texts, but no media ({kinds}) that they could be compared with. Give "
                f"examples with media, or set {used} to 0."
            )
        if shared.rows < 2 and self.is_on("matching"):
            raise ValueError(
                "Matching and contrastive learning compare the rows of a batch, but the batch has 1 row. Use larger "
                f"batches, drop the last incomplete one (dataloader_drop_last=True), or set {used} to 0."
            )
        return shared

    # ---- The three modes of the decoder -----------------------------------------------------------------------------

    def read_forwards(
        self, batch: PreTrainingBatch, logits_to_keep: int | torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Sum]]:
        """Return the logits of the next token, and with labels the loss of `causal_lm`."""
        options: dict[str, Any] = {"use_cache": False, "return_dict": True}
        outputs = self.model(batch.input_ids, batch.attention_mask, media=batch.media, **options)
        states, targets = kept_tokens(outputs.last_hidden_state, batch.labels, logits_to_keep)
        logits = self.lm_head(states)
        return logits, {} if targets is None else {"causal_lm": self.summed_loss(logits, targets)}

    def summed_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> Sum:
        """Return the sum of the cross-entropy of tokens, and their number."""
        vocab_size = self.config.text_config.vocab_size
        total = causal_lm_loss(logits, None, vocab_size, num_items_in_batch=1, shift_labels=targets)
        return total, (targets != IGNORED).sum()

    def embed_sides(self, batch: PreTrainingBatch) -> dict[str, torch.Tensor]:
        """Return the embeddings (B, P) of texts, read alone, and of each modality, zeros for rows that lack it."""
        if not self.is_on("contrastive") or (batch.text_input_ids is None and batch.input_ids is not None):
            return {}
        present = batch.present(self.config.text_config.pad_token_id)
        embeds = {}
        for name, flags in present.items():
            rows = [row for row, is_there in enumerate(flags) if is_there]
            if not rows:
                embeds[name] = self.absent_embeds(len(flags))
            elif name == TEXT:
                embeds[name] = spread_rows(self.embed_texts(batch, rows), flags)
            else:
                embeds[name] = spread_rows(self.embed(media=media_of(batch.media, name)[rows]), flags)
        return embeds

    def embed_texts(self, batch: PreTrainingBatch, rows: list[int]) -> torch.Tensor:
        """Return the embeddings of the texts of these rows, (rows, P)."""
        ids, mask = batch.text_input_ids, batch.text_attention_mask
        assert ids is not None
        index = torch.tensor(rows, device=ids.device)
        ids, mask = ids[index], None if mask is None else mask[index]
        # The decoder is called instead of the model, which would have the encoders run for processes that wait.
        states = self.model.language_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.project(last_states(states, real_tokens(ids, mask, self.config.text_config.pad_token_id)))

    def read_both_ways(
        self, batch: PreTrainingBatch, embeds: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Sum]]:
        """Return the logits and the losses of `masked_lm` and `matching`, whose pairs are drawn by embeddings."""
        assert batch.input_ids is not None
        if self.is_on("matching"):
            rows, partners = draw_pairs(batch, embeds, is_hardest=not self.training)  # (K,) each
        else:
            rows = partners = batch.input_ids.new_zeros(0)
        every = torch.arange(len(batch.input_ids), device=rows.device)
        # One pass, so that every process makes the same number of them. Without pairs it is still made.
        own = every if self.is_on("masked_lm") or not len(rows) else rows
        states = self.read_pairs(batch, torch.cat([own, rows]), torch.cat([own, partners]))
        logits, sums = {}, {}
        if self.is_on("masked_lm") and batch.masked_targets is not None:
            targets = shifted(batch.masked_targets)
            is_masked = targets != IGNORED  # (B, L)
            logits["masked_logits"] = self.lm_head(states[: len(own)][is_masked])
            sums["masked_lm"] = self.summed_loss(logits["masked_logits"], targets[is_masked])
        if self.is_on("matching"):
            is_real = real_tokens(batch.input_ids, batch.attention_mask, self.config.text_config.pad_token_id)[rows]
            matched = states[: len(own)] if own is rows else states[rows]
            last = [last_states(matched, is_real), last_states(states[len(own) :], is_real)]  # (K, D) each
            found = self.matching_head(torch.cat(last))[:, 0].float()  # (2 K,)
            targets = torch.cat([torch.ones_like(rows), torch.zeros_like(rows)]).to(found)
            total = nn.functional.binary_cross_entropy_with_logits(found, targets, reduction="sum")
            logits["matching_logits"] = found
            sums["matching"] = total, torch.tensor(len(found), device=found.device)
        return logits, sums

    def read_pairs(self, batch: PreTrainingBatch, texts: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
        """
        Return the states (N, L, D) of masked texts that are read both ways.

        Args:
            texts: (N,) numbers of the rows whose texts are read
            partners: (N,) numbers of the rows whose media they see
        """
        assert batch.input_ids is not None
        embeds = self.model.get_input_embeddings()(batch.input_ids)  # (B, L, D)
        if batch.masked_targets is not None and self.is_on("masked_lm"):
            is_masked = (batch.masked_targets != IGNORED)[..., None]
            embeds = torch.where(is_masked, self.mask_embedding.to(embeds.dtype), embeds)
        inputs: dict[str, Any] = {"inputs_embeds": embeds[texts], "is_causal": False, "use_cache": False}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask[texts]
        if (media := batch.media) is not None:
            if self.config.max_media_items is not None:
                media, _ = self.model.number_items(media, None, 0)
            media = media.map(lambda tensor: tensor[partners])
            is_hidden = batch.hidden()[texts].gather(1, media.modality)  # (N, S)
            inputs |= {"media_states": media.states, "media_mask": media.mask & ~is_hidden}
            inputs |= {"media_index": media.position, "media_sizes": media.sizes}
        return self.model.language_model(**inputs).last_hidden_state


MMForPreTraining.register_for_auto_class("AutoModelForPreTraining")

__all__ = ["MMForPreTraining"]
