# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""One quiet progress bar for the stock `Trainer`."""

from transformers import PrinterCallback, ProgressCallback, Trainer

# What the stock `Trainer` adds to the figures of an evaluation.
NO_FIGURES = ("runtime", "samples_per_second", "steps_per_second", "preparation_time", "epoch")


class LossProgressCallback(ProgressCallback):
    """Shows the loss on the progress bar, instead of printing a dictionary below it at every logging step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Leaves one line of an evaluation above the bar."""
        super().on_evaluate(args, state, control, **kwargs)
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(f"step {state.global_step}: {describe(metrics or {})}")

    @classmethod
    def take_over(cls, trainer: Trainer) -> None:
        """Replaces a trainer's own progress bar or printer."""
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(cls)


def describe(metrics: dict[str, float]) -> str:
    """The figures of an evaluation, without how long it took."""
    shown = {name: value for name, value in metrics.items() if not name.endswith(NO_FIGURES)}
    return ", ".join(f"{name.removeprefix('eval_')} {value:.3f}" for name, value in shown.items())
