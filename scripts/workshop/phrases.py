# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Wordings of the chat corpus: questions and fixed answers of each task."""

# Several wordings of each question, so that the model does not memorize one.
CAPTION = ("What is this?", "What does the picture show?", "Name this.")
CATEGORY = ("What kind of thing is this?", "Which category does the picture belong to?")
KINDS = {
    "faces": "faces",
    "people": "people",
    "nature": "animals and plants",
    "food": "food",
    "places": "places and vehicles",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
    "flags": "flags",
}
TRANSCRIBE = ("What is said?", "Transcribe the speech.")
# The name comes last, next to the answer.
VERIFY_NAME = "Is this called “{name}”?"
CHOOSE_IMAGE = "Which of the two pictures is “{name}”?"
MATCH_AUDIO_IMAGE = "Does the voice name the picture?"
VERDICT = "{text} – {verdict}"
YES_NO = ("yes", "no")
FIRST_SECOND = ("the first", "the second")
