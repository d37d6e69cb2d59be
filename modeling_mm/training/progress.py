# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""One quiet progress bar for the stock `Trainer`."""

from transformers import PrinterCallback, ProgressCallback, Trainer


class LossOnBar(ProgressCallback):
    """Shows the loss on the progress bar, instead of printing a dictionary below it at every logging step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    @classmethod
    def take_over(cls, trainer: Trainer) -> None:
        """Replaces a trainer's own progress bar or printer."""
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(cls)
