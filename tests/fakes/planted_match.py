"""Matches of rows that one planted thing decides: a strong cell of an image, a run of audio, a word of a text.

Texts are words of no meaning but for one, which names the class; a third of the rows have neither object nor word and
match each other. Without them a model could take all that is not green for red, and then to hide the red object would
change nothing: no explanation could find it. A mixed row is an image and words, of which one alone has the class.
"""

from functools import cache

import torch
from torch.nn.utils import clip_grad_norm_

from modeling_mm import MMForRetrieval
from modeling_mm.explain import MatchSide
from tests.fakes.planted import CELL, NONE, SIDE, WORDS, plant
from tests.fakes.tiny import AUDIO, IMAGE, gpt2, joined, open_gates, vit, whisper

LETTERS = range(20, 60)  # tokens of words without meaning
LENGTH, MIXED_LENGTH = 8, 5  # words of a text, and beside an image
CALM = 0.2  # tint of cells without an object: a row of class `NONE` has no other
SCALE = 8.0  # inverse temperature of training
SIDES = ("text", "image", "audio", "mixed")
Row = tuple[dict, dict, torch.Tensor]  # text, media, and the places or words that decide


def write(labels: torch.Tensor, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts (rows, length) of the classes and the place of the word that decides (rows, 1)."""
    ids = torch.randint(LETTERS.start, LETTERS.stop, (len(labels), length), generator=generator)
    place = torch.randint(length, (len(labels), 1), generator=generator)
    words = torch.tensor([*WORDS, 0])[labels][:, None]
    return torch.where(labels[:, None].eq(NONE), ids, ids.scatter(1, place, words)), place


def rows_of(side: str, labels: torch.Tensor, generator: torch.Generator, in_text: torch.Tensor | None = None) -> Row:
    """Return rows of a side; of mixed ones `in_text` (rows,) says which have their class in the text."""
    if side == "text":
        ids, place = write(labels, LENGTH, generator)
        return {"input_ids": ids}, {}, place
    if side != "mixed":
        media, _, places = plant(side, len(labels), generator, labels, CALM)
        token = IMAGE if side == "image" else AUDIO
        return {"input_ids": torch.full((len(labels), 1), token)}, media, places
    if in_text is None:
        in_text = torch.rand(len(labels), generator=generator) < 0.5
    media, _, places = plant("image", len(labels), generator, labels.masked_fill(in_text, NONE), CALM)
    ids, _ = write(labels.masked_fill(~in_text, NONE), MIXED_LENGTH, generator)
    return {"input_ids": torch.cat([torch.full((len(labels), 1), IMAGE), ids], 1)}, media, places


def fresh_model() -> MMForRetrieval:
    vision = vit(image_size=SIDE * CELL, patch_size=CELL, num_hidden_layers=0, initializer_range=0.1)
    model = joined(
        gpt2(n_layer=2, initializer_range=0.1),
        vision,
        whisper(encoder_layers=0),
        cls=MMForRetrieval,
        projection_dim=8,
        cross_attention_layers=[1],
        cross_attention_feed_forward=False,
        cross_attention_gated=False,
    )
    model.set_attn_implementation("eager")
    return model


def random_matcher() -> MMForRetrieval:
    return open_gates(fresh_model())


@cache
def trained_matcher(steps: int = 500, rows: int = 32) -> MMForRetrieval:
    """A model in which rows of a class match, whatever their sides."""
    model = fresh_model().train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # A rate that falls ends at about the same figures on every machine; a constant one does not.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for _ in range(steps):
        labels = torch.randint(3, (rows,), generator=generator)
        batches = [rows_of(side, labels, generator) for side in SIDES]
        whole = torch.cat([model.embed(**text, **media) for text, media, _ in batches])  # (sides * rows, P)
        classes, itself = labels.repeat(len(SIDES)), torch.eye(len(whole), dtype=torch.bool)
        logs = (SCALE * whole @ whole.T).masked_fill(itself, float("-inf")).log_softmax(-1)
        is_match = (classes[:, None] == classes) & ~itself
        (-logs[is_match].mean()).backward()  # all matches, not the nearest alone, which may be of the same side
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def match_sides(model, one: str, other: str, count: int = 8, seed: int = 9, in_text: bool = False):
    """Return targets of rows of `one`, each matched with a row of its class of `other`, and what decides in each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    text, media, places = rows_of(one, labels, generator, torch.full((count,), in_text))
    compared, their_media, _ = rows_of(other, labels, generator)
    embeds = model.embed(**compared, **their_media)
    first = int(bool(media))  # placeholders stand in front
    spans = [(number, number + 1) for number in range(first, text["input_ids"].shape[1])]
    about = {"prompt_words": [str(start) for start, _ in spans], "prompt_spans": spans, "seconds": 0.4}
    targets = []
    for row in range(count):
        ids = text["input_ids"][row : row + 1]
        own = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        seen = {name: tensor[row : row + 1] for name, tensor in media.items()}
        targets.append(MatchSide(model, own, seen, [other], **about, other=embeds[row]))
    return targets, places
