# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Wordings of the corpora of chats: questions and fixed answers of each task."""

# Several wordings of each question, so that the model does not memorize one. The last words of a question, next to the
# answer, tell its task.
CAPTION = (
    *("What is this?", "What does the picture show?", "Name this.", "What do you see?"),
    *("Write a caption.", "Describe the image.", "What is in the picture?"),
)
CATEGORY = ("What is its category?", "Which category does it belong to?")
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
# The name comes last, next to the answer, and without quotes, so that it has the tokens that an answer has.
VERIFY_NAME = "Is this called {name}?"
CHOOSE_IMAGE = "Which of the two pictures is called {name}?"
MATCH_AUDIO_IMAGE = "Does the voice name the picture?"
VERDICT = "{text} – {verdict}"
YES_NO = ("yes", "no")
FIRST_SECOND = ("the first", "the second")
# Prompts for images, beside the one that pipelines use; those of the tests are in no training example.
DRAW = ("Draw a picture of {text}", "Paint {text}", "Show me {text}")
DRAW_UNSEEN = ("Make an image of {text}", "Please sketch {text}", "Can you draw {text}")
