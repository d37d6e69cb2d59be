# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Section of a model card about an evaluation: its tables, and the meaning of their columns and metrics."""

from collections.abc import Sequence

from ..utils.tables import markdown_table
from .figures import Figure, figures_markdown

# Meaning, range, and which end of it is better.
MEANINGS = {
    "exact_match": ("share of answers that equal the truth", "0 to 1", "high"),
    "accuracy": ("share of right labels", "0 to 1", "high"),
    "f1": ("F1 of each class, on average over the classes", "0 to 1", "high"),
    "auroc": (
        "area under the ROC curve of each label against the others, on average; chance is 0.5",
        "0 to 1",
        "high",
    ),
    "eer": ("errors of verifying labels where false accepts are as frequent as false rejects", "0 to 1", "low"),
    "wer": ("wrong, missing and added words, divided by the words of the truths", "0 up", "low"),
    "cer": ("wrong, missing and added characters, divided by those of the truths", "0 up", "low"),
    "spoken_wer": ("word error rate without case and punctuation", "0 up", "low"),
    "last_word": ("share of answers with the truth's last word", "0 to 1", "high"),
    "bleu": ("BLEU of the corpus (sacrebleu, 13a); 0 if no answer has four words in common", "0 to 100", "high"),
    "chrf": ("chrF of the corpus (sacrebleu)", "0 to 100", "high"),
    "rouge1": ("F1 of words, on average", "0 to 1", "high"),
    "rouge2": ("F1 of pairs of words, on average; 0 for texts of one word", "0 to 1", "high"),
    "rougeL": ("F1 of the longest common sequence of words, on average", "0 to 1", "high"),
    "cider": ("CIDEr-D; the ceiling is 2.5 for captions of one word, 5 for two, 7.5 for three", "0 to 10", "high"),
}


def evaluation_section(figures: Sequence[Figure], title: str = "Evaluation") -> str:
    """
    Return a section in Markdown: a table for each test set, and one of the metrics in them.

    Example:
        >>> print(evaluation_section([Figure("test", "caption/en", "cider", 1.2, 0.1, 0.2, 50)]))
        ## Evaluation
        ...
    """
    used = [metric for metric in dict.fromkeys(figure.metric for figure in figures) if metric in MEANINGS]
    has_text_only = any(figure.text_only is not None for figure in figures)
    columns = "`majority` is the most frequent answer in training, given to every question."
    if has_text_only:
        columns += " `text only` is the same model without the images and the audio of the questions."
    parts = [f"## {title}", f"{columns} All answers of a task are scored together.", figures_markdown(figures)]
    if used:
        header = ("metric", "meaning", "range", "better")
        parts.append(markdown_table(header, [(f"`{metric}`", *MEANINGS[metric]) for metric in used]))
    return "\n\n".join(parts) + "\n"
