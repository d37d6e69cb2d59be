# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm convert`: an encoder-decoder of transformers becomes a joint model, checked against the original."""

import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import logging

from .. import MMForConditionalGeneration, MMProcessor
from ..conversion import check_convertible
from ..converted_weights import load_original
from ..encoder_shapes import dummy_item
from ..utils import folder_beside, format_table, replace_folder

ROWS, TOKENS, NEW_TOKENS, BEAMS = 2, 16, 16, 5
TOLERANCE = 1e-5  # of the largest logit, or of 1 if all are smaller


@dataclass(frozen=True)
class Check:
    """
    Comparison of what two models made of the same inputs.

    Args:
        name: of the check
        difference: largest absolute difference of logits or scores
        limit: of it
        are_same: whether the tokens are the same
    """

    name: str
    difference: float
    limit: float
    are_same: bool = True

    @property
    def holds(self) -> bool:
        return self.are_same and self.difference <= self.limit


def run(options: Namespace) -> int:
    """Save the converted model and its processor, unless it differs from the original; return 1 if it does."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    config = check_convertible(options.source, {})
    processor = MMProcessor.from_encoder_decoder(options.source)
    model = MMForConditionalGeneration.from_encoder_decoder(options.source, tokenizer=processor)
    target = Path(options.folder)
    with folder_beside(target) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        del model
        original = load_original(options.source, config, {"dtype": torch.float32}).eval()
        checks = compare(original, MMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32))
        cells = [
            (each.name, "same" if each.are_same else "other", f"{each.difference:.1e}", f"{each.limit:.1e}")
            for each in checks
        ]
        print(format_table(("check", "tokens", "largest difference", "at most"), cells, right=(2, 3)))
        if not all(check.holds for check in checks):
            print(f"{options.source} and its conversion differ; nothing was saved.", file=sys.stderr)
            return 1
        replace_folder(folder, target)
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    print(f"Equal. Saved: {target} ({size / 1e6:.1f} MB of weights)")
    return 0


@torch.no_grad()
def compare(original: PreTrainedModel, ours: MMForConditionalGeneration) -> list[Check]:
    """
    Compare a conversion with its original, on random images or noise that are the same every time.

    Logits of given text, greedy answers and those of beam search, by `generate` with the same prompt.
    """
    generator = torch.Generator().manual_seed(0)
    modality = next(iter(ours.config.modalities))
    media = random_media(getattr(ours.model, modality.tower_attribute), generator)
    vocab_size = original.get_output_embeddings().weight.shape[0]
    text = torch.randint(vocab_size, (ROWS, TOKENS), generator=generator)
    placeholder = torch.full((ROWS, 1), getattr(ours.config, modality.token_id_field))

    def with_placeholder(ids: torch.Tensor) -> dict[str, Any]:
        mask = torch.cat([torch.zeros_like(placeholder), torch.ones_like(ids)], dim=1)
        return {"input_ids": torch.cat([placeholder, ids], dim=1), "attention_mask": mask, **media}

    expected = original(**media, decoder_input_ids=text).logits
    got = ours(**with_placeholder(text)).logits[:, 1:, :vocab_size]
    checks = [Check("logits of given text", distance(got, expected), limit(expected))]
    prompt = torch.tensor([ours.config.prompt_token_ids] * ROWS)
    for name, beams in (("greedy answers", 1), (f"{BEAMS} beams", BEAMS)):
        how: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "num_beams": beams, "do_sample": False}
        how |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        generate: Any = GenerationMixin.generate  # Whisper's adds a loop over windows around it
        theirs = generate(original, **media, decoder_input_ids=prompt, **how)
        answers: Any = ours.generate(**with_placeholder(prompt), **how)
        are_same = torch.equal(answers.sequences[:, 1:], theirs.sequences)
        if beams == 1:
            pairs = zip(answers.logits, theirs.logits, strict=False)
            far = max(distance(one[:, :vocab_size], other) for one, other in pairs)
            checks.append(Check(name, far, limit(torch.stack(theirs.logits)), are_same))
        else:
            far = distance(answers.sequences_scores, theirs.sequences_scores)
            checks.append(Check(name, far, limit(theirs.sequences_scores), are_same))
    return checks


def random_media(tower: PreTrainedModel, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return one image or one window of noise for each row, as the encoder takes it; waves have a second."""
    shape = dummy_item(tower, torch.device("cpu")).shape[1:]
    is_wave = len(shape) == 1
    return {tower.main_input_name: torch.randn(ROWS, *((16_000,) if is_wave else shape), generator=generator)}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest absolute difference."""
    return (one - other).abs().max().item()


def limit(expected: torch.Tensor) -> float:
    """Return the greatest difference that rounding may make of these values."""
    finite = expected[expected.isfinite()]
    return TOLERANCE * max(1.0, finite.abs().max().item())
