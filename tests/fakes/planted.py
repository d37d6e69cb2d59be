"""Objects planted in known places, and tiny models that are trained for seconds to depend on them.

An image is a grid of 4 x 4 cells of weak random tints, and audio a run of 10; one cell has a strong one, red or green,
high or low, and the class (or the word) is its name. Without attention to that cell the others add up to more.
"""

from functools import cache

import torch
from torch.nn.utils import clip_grad_norm_

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from modeling_mm.explain import Target
from tests.fakes.tiny import AUDIO, IMAGE, MELS, gpt2, joined, open_gates, vit, whisper

SIDE, CELL = 4, 8  # cells in a line of an image, pixels in a line of a cell
RUNS, FRAMES = 10, 4  # cells of audio, frames of a cell; two frames are a token
PROMPT = {"image": [5, IMAGE, 6], "audio": [5, AUDIO, 6]}
WORDS = (10, 11)  # tokens that a model which writes says
NONE = 2  # class of a row without an object
TINT, STRENGTH, NOISE = 0.4, 1.5, 0.3


def plant(
    kind: str, count: int, generator: torch.Generator, labels: torch.Tensor | None = None, tint: float = TINT
) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """
    Return media inputs of `count` rows, their classes, and the places of their objects (count, places).

    Classes are drawn if none are given; a row of class `NONE` has no object.
    """
    number = SIDE**2 if kind == "image" else RUNS
    labels = torch.randint(2, (count,), generator=generator) if labels is None else labels
    cell = torch.randint(number, (count,), generator=generator)
    tints = torch.randn(count, number, generator=generator) * tint
    rows = labels.ne(NONE).nonzero().flatten()
    tints[rows, cell[rows]] = STRENGTH * (1 - 2.0 * labels[rows])
    if kind == "image":
        tints = tints.view(count, 1, SIDE, SIDE).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
        pixels = torch.cat([tints, -tints, 0 * tints], dim=1)
        noise = torch.randn(pixels.shape, generator=generator) * NOISE
        return {"pixel_values": (pixels + noise)[:, None]}, labels, cell[:, None]
    tints = tints[:, None].repeat_interleave(FRAMES, 2).repeat(1, MELS // 2, 1)
    features = torch.cat([tints, -tints], dim=1)
    features = features + torch.randn(features.shape, generator=generator) * NOISE
    mask = torch.ones(count, 1, features.shape[2], dtype=torch.long)
    media = {"input_features": features[:, None], "feature_attention_mask": mask}
    return media, labels, torch.stack([2 * cell, 2 * cell + 1], dim=1)


def planted_model(kind: str, writes: bool = False, **fields):
    """A model with random weights whose media matter; its encoder mixes no places."""
    vision = vit(image_size=SIDE * CELL, patch_size=CELL, num_hidden_layers=0, initializer_range=0.1)
    model = joined(
        gpt2(n_layer=2, initializer_range=0.1),
        vision if kind == "image" else None,
        whisper(encoder_layers=0) if kind == "audio" else None,
        cls=MMForConditionalGeneration if writes else MMForSequenceClassification,
        **({} if writes else {"num_labels": 2}),
        cross_attention_layers=[1],
        cross_attention_feed_forward=False,
        cross_attention_gated=False,
        **fields,
    )
    model.set_attn_implementation("eager")
    return model


def random_model(kind: str, writes: bool = False, **fields):
    return open_gates(planted_model(kind, writes, **fields))


@cache
def trained_model(kind: str, writes: bool = False, connector: str = "mlp", steps: int = 350, rows: int = 32):
    """A model that names the object; a second call returns the same one."""
    model = planted_model(kind, writes, **{f"{'vision' if kind == 'image' else 'audio'}_connector": connector})
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # A rate that falls ends at about the same figures on every machine; a constant one does not.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    model.train()
    for _ in range(steps):
        media, labels, _ = plant(kind, rows, generator)
        ids = torch.tensor([PROMPT[kind]]).expand(rows, -1)
        if writes:
            words = torch.tensor(WORDS)[labels][:, None]
            ids, labels = torch.cat([ids, words], 1), torch.cat([torch.full_like(ids, -100), words], 1)
        model(input_ids=ids, labels=labels, **media).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def planted_targets(model, kind: str, writes: bool = False, count: int = 8, seed: int = 9):
    """Return targets of new rows, their classes, and the places of their objects."""
    media, labels, places = plant(kind, count, torch.Generator().manual_seed(seed))
    text = {"input_ids": torch.tensor([PROMPT[kind]])}
    text["attention_mask"] = torch.ones_like(text["input_ids"])
    about = {"prompt_words": ["what"], "prompt_spans": [(0, 1)], "seconds": 0.4}
    targets = []
    for row, label in enumerate(labels.tolist()):
        own = {name: tensor[row : row + 1] for name, tensor in media.items()}
        said = {"answer_ids": [WORDS[label]], "spans": [(0, 1)]} if writes else {"label": label}
        targets.append(Target(model, text, own, ["red" if label == 0 else "green"], **about, **said))
    return targets, labels, places
