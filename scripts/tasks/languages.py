# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Language of a clip, among ten.

There is about one speaker a language, so that a test of known speakers cannot tell a language from its speaker. The
second test, French and Russian by speakers that are not in training, can.
"""

from pathlib import Path

from .examples import TRAIN, Example, Sources, example
from .figures import Row, ScoredTask, nearest_neighbor
from .short_window import prepare_window
from .voices import LANGUAGES, Voice, clip_path, draw, read_voices

TUX_PAINT = ("be", "bg", "ca", "el", "es", "fr", "ro", "ru")
ASTERISK = ("en", "it")
OTHER_SPEAKERS = ("fr", "ru")  # of Asterisk; its Spanish prompts are by the speaker of the English ones
COUNTS = {"train": 40, "test": 20}  # clips of each voice
LABELS = sorted(LANGUAGES[language] for language in (*TUX_PAINT, *ASTERISK))
QUESTION = "Which language is spoken?"
CLIPS, SPEAKERS = "unseen clips", "unseen speakers"
REACH = {
    (CLIPS, "accuracy"): "0.97; above 1-NN",
    (CLIPS, "f1"): "",
    (CLIPS, "eer"): "0.05",
    (SPEAKERS, "accuracy"): "",
}


def prepare(sources: Sources, splits: dict[str, list[Example]]) -> None:
    """Write the model with the short window that the recipe starts from."""
    prepare_window()


def build(sources: Sources) -> dict[str, list[Example]]:
    """Return clips of ten voices, one a language, by split, and clips of two other speakers."""
    voices = read_voices(sources, sorted({*TUX_PAINT, *ASTERISK, *OTHER_SPEAKERS}))
    known = {("tuxpaint", language) for language in TUX_PAINT} | {("asterisk", language) for language in ASTERISK}
    splits = draw([voice for voice in voices if voice.key in known], COUNTS, sources)
    others = [voice for voice in voices if voice.key in {("asterisk", language) for language in OTHER_SPEAKERS}]
    splits["test_speakers"] = draw(others, {"test": COUNTS["test"]}, sources)["test"]
    return {name: [question(sources, voice) for voice in voices] for name, voices in splits.items()}


def question(sources: Sources, voice: Voice) -> Example:
    path = sources.media(clip_path(voice, sources))
    return example("languages", Path(path).stem, voice.text, [("audio", path)], QUESTION, LANGUAGES[voice.language])


def measure(model: Path, sources: Sources) -> list[Row]:
    """Return the figures of 1-NN on the frozen encoder."""
    task = ScoredTask("tasks-languages", model, sources.folder)
    pairs = {"test": CLIPS, "test_speakers": SPEAKERS}
    return [nearest_neighbor(task, TRAIN, split, name) for split, name in pairs.items()]
