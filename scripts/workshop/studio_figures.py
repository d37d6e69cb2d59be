# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Measure a model that draws and speaks, on prompts that training has not seen, and keep what it made.

    python -m scripts.workshop.studio_figures outputs/mm-studio

Drawings of known concepts are looked up among all images of training by the features of a frozen EfficientNet-Lite2:
how often one of the five nearest concepts is theirs, beside the same for images by a hand that is not there. Drawings
of unseen concepts: how often most of the five nearest images are of their category. Speech: the word error rate of
Whisper tiny.en beside that on the synthesizer's own recordings, and the time a second of speech takes.
`images.png` is a sheet of the first 36 drawings, `sounds` has the first six sentences.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/studio-figures"))
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    parser.add_argument("--transcriber", default="model_cards/mm-whisper-tiny", help="model that hears")
    parser.add_argument("--drawings", type=int, default=600, help="number of drawings of each kind")
    parser.add_argument("--sentences", type=int, default=100, help="number of sentences, which take longer to hear")
    parser.add_argument("--gallery", type=int, help="number of images to look drawings up in; all by default")
    parser.add_argument("--guidance-scale", type=float, help="of drawings; those of the model by default")
    arguments = parser.parse_args()
    from .studio_measures import measure  # after the arguments, as it imports torch

    for name, value in measure(arguments).items():
        print(f"{name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
