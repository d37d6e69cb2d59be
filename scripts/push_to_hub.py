#!/usr/bin/env python
"""Check a model's folder, and push it to the Hub if nothing is wrong with it.

    python scripts/push_to_hub.py model_cards/mm-whisper-tiny me/mm-whisper-tiny
    python scripts/push_to_hub.py outputs/tiny-sample me/tiny --check-only    # nothing leaves this machine

The folder is that of training or `save_pretrained`: weights, configuration, processor, code and card. It is loaded
twice in separate processes, with this package and without, and must give the same logits; weights must be safetensors;
the card must be complete. All problems are listed. Links go as the files behind them, in one commit; after an
interruption run the same command again. Log in with `hf auth login`, or set HF_TOKEN.
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
