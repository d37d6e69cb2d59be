# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Measure a trained codec on held-out media of the corpora, and draw what it makes of them.

    python -m scripts.workshop.codec_figures outputs/codecs/image
    python -m scripts.workshop.codec_figures outputs/codecs/speech

Images: PSNR, the share of the codes that are used, and for the bottleneck `kl` the ELBO beside the log-likelihood
of probabilistic PCA with as many dimensions. `images.png` in the codec's folder has reconstructions under their
originals, interpolations, and for `kl` samples of the prior. Speech: the word error rate of a transcriber on the
decoded waves beside that on the originals, and the share of codes.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the codec")
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, help="number of files")
    parser.add_argument("--transcriber", default="model_cards/mm-whisper-tiny", help="model that hears")
    arguments = parser.parse_args()
    from .codec_measures import measure  # after the arguments, as it imports torch

    for name, value in measure(arguments).items():
        print(f"{name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
