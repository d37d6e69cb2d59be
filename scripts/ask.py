#!/usr/bin/env python
"""Ask a joint model about your own files, or all questions of a file.

    python scripts/ask.py model_cards/mm-whisper-tiny --image cat.png --audio hello.wav "What is this?"
    python scripts/ask.py model_cards/mm-whisper-tiny --questions processing/corpora/unseen/questions.jsonl

The second shows answers beside the truth. The shipped questions, in five languages, were drawn at random from data
that mm-whisper-tiny was not trained on: images of another hand, and speech of another voice or with other words.
`--attention looked.png` draws the places that each word of an answer looked at.
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["ask", *sys.argv[1:]]))
