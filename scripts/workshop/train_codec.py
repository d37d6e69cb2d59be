# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Train a codec of images or of speech on the built corpora.

    python -m scripts.workshop.train_codec image outputs/codecs/image
    python -m scripts.workshop.train_codec audio outputs/codecs/speech --bottleneck vq
    python -m scripts.workshop.train_codec image outputs/codecs/vae --bottleneck kl

Images are 64 pixels a side and have 64 codes; speech has 50 codes a second, and its vocoder is trained last. Run
again, it resumes from its last checkpoint. `codec_figures` measures the result.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modality", choices=("image", "audio"))
    parser.add_argument("folder", type=Path, help="where checkpoints and the codec go")
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--bottleneck", choices=("fsq", "vq", "kl"), default="fsq")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--vocoder-steps", type=int, default=1000, help="that follow, for speech")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, for CPUs and GPUs that have them")
    parser.add_argument("--limit", type=int, help="number of files to train on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from .codec_training import train_codec  # after the arguments, as it imports torch

    print(train_codec(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
