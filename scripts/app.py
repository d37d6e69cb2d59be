#!/usr/bin/env python
"""Open a web page to chat with a model about an image and audio, and to see the places that each word looked at.

    python scripts/app.py model_cards/mm-whisper-tiny
    python scripts/app.py MODEL --port 9000 --host 0.0.0.0     # for other machines, too

It needs the extra: pip install "modeling_mm[app]". Nothing leaves this machine.
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
