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
# Prompts for images, beside the one that pipelines use; those of the tests are in no training example. They are many,
# so that the words around a name come to mean nothing.
DRAW = (
    *("Draw a picture of {text}", "Paint {text}", "Show me {text}", "Draw me {text}", "Draw this: {text}"),
    *("Paint a picture of {text}", "Create a drawing of {text}", "I want to see {text}", "A picture of {text}"),
    *("An emoji of {text}", "Give me an image of {text}", "Could you paint {text}?", "Please draw {text}."),
    *("Generate an image: {text}", "An illustration of {text}", "Picture {text}", "I need an icon of {text}"),
    *("What does {text} look like?", "Design {text}", "Render {text}", "Please make a drawing of {text}", "{text}"),
    *(
        "Would you show me {text}?",
        "Let me see {text}",
        "Produce a small image of {text}",
        "How would you draw {text}?",
    ),
)
DRAW_UNSEEN = ("Make an image of {text}", "Please sketch {text}", "Can you draw {text}")
