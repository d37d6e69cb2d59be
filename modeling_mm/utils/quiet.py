# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Messages of libraries that nobody who runs a command can act on."""

import logging

# The logger, and what its messages hold. Everything else that it says is shown.
MESSAGES = {
    # transformers imports torchao if it is installed, whose kernels for other GPUs do not load on this machine.
    "torchao": "Failed to load ",
    # torchao registers its enumerations with torch, which no longer needs it.
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
}


class Unlike(logging.Filter):
    """Filter that drops the messages with a text."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or self.text not in record.getMessage()


FILTERS = {name: Unlike(text) for name, text in MESSAGES.items()}


def quiet_libraries() -> None:
    """Drop the messages above; call it before torch is imported."""
    for name, each in FILTERS.items():
        logging.getLogger(name).addFilter(each)  # once, however often it is called
