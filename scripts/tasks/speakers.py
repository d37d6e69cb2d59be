# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Speaker of a clip, among 11 that are known; a speaker that is not known is refused by a threshold.

No text of a test is heard in training, from anybody. The threshold of the likeliest label's probability is chosen on
clips and an unknown speaker (Asterisk, Russian) that the test (Tux Paint, Danish) has not.
"""

from pathlib import Path

from .examples import TRAIN, Example, Sources, example
from .figures import Row, ScoredTask, beside, figure, nearest_neighbor
from .short_window import prepare_window
from .voices import Voice, clip_path, draw, read_voices

TUX_PAINT = ("be", "bg", "ca", "el", "es", "fr", "ro", "ru")
ASTERISK = ("en", "es", "fr", "it")
UNKNOWN = {"unknown_threshold": ("asterisk", "ru"), "unknown_test": ("tuxpaint", "da")}
COUNTS = {"train": 40, "threshold": 8, "test": 20}  # clips of each voice
UNKNOWN_COUNT = 60
LABELS = sorted({Voice(Path(), "", source, language, "").speaker
                 for source, languages in (("tuxpaint", TUX_PAINT), ("asterisk", ASTERISK))
                 for language in languages})  # fmt: skip
WITHOUT_LABEL = tuple(UNKNOWN)
QUESTION = "Who speaks?"
CLIPS, STRANGERS = "unseen clips", "unknown speakers"
REACH = {
    (CLIPS, "accuracy"): "0.97; above 1-NN",
    (CLIPS, "f1"): "",
    (CLIPS, "eer"): "0.05",
    (STRANGERS, "eer"): "0.05",
    (STRANGERS, "accuracy"): "",
}
MEASURED = (STRANGERS,)


def prepare(sources: Sources, splits: dict[str, list[Example]]) -> None:
    """Write the model with the short window that the recipe starts from."""
    prepare_window()


def build(sources: Sources) -> dict[str, list[Example]]:
    """Return clips of the known voices by split, and of unknown speakers for the threshold and for the test."""
    known = {("tuxpaint", language) for language in TUX_PAINT} | {("asterisk", language) for language in ASTERISK}
    voices = read_voices(sources, sorted({language for _, language in {*known, *UNKNOWN.values()}}))
    splits = draw([voice for voice in voices if voice.key in known], COUNTS, sources)
    for name, key in UNKNOWN.items():
        split = name.removeprefix("unknown_")
        splits[name] = draw([voice for voice in voices if voice.key == key], {split: UNKNOWN_COUNT}, sources)[split]
    return {name: [question(sources, voice) for voice in voices] for name, voices in splits.items()}


def question(sources: Sources, voice: Voice) -> Example:
    path = sources.media(clip_path(voice, sources))
    answer = voice.speaker
    return example("speakers", Path(path).stem, voice.text, [("audio", path)], QUESTION, answer)


def measure(model: Path, sources: Sources) -> list[Row]:
    """
    Return the figures of 1-NN, and those of known against unknown speakers.

    `eer` is that of the likeliest label's probability; `accuracy` the share of clips, known and unknown, that the
    chosen threshold judges right.
    """
    from modeling_mm.evaluation import equal_error_rate, equal_error_threshold

    task = ScoredTask("tasks-speakers", model, sources.folder)
    sure = {name: task.scores(name).max(-1) for name in ("threshold", "test", *UNKNOWN)}
    pairs = {split: [*sure[split], *sure[f"unknown_{split}"]] for split in ("threshold", "test")}
    truths = {split: [True] * len(sure[split]) + [False] * len(sure[f"unknown_{split}"]) for split in pairs}
    threshold = equal_error_threshold(pairs["threshold"], truths["threshold"])
    right = [(score >= threshold) == truth for score, truth in zip(pairs["test"], truths["test"], strict=True)]
    count = len(right)
    return [
        nearest_neighbor(task, TRAIN, "test", CLIPS),
        figure(STRANGERS, "eer", equal_error_rate(pairs["test"], truths["test"]), count),
        figure(STRANGERS, "accuracy", sum(right) / count, count),
        beside(STRANGERS, "accuracy", "is the threshold", threshold),
    ]
