"""The section about an evaluation, and the meaning of every metric."""

from modeling_mm.evaluation import CLASS_METRICS, METRICS, Figure, evaluation_section, score
from modeling_mm.evaluation.legend import MEANINGS


def test_every_metric_has_a_meaning_and_the_better_end():
    assert set(MEANINGS) == set(METRICS) | set(CLASS_METRICS)
    for name, metric in (METRICS | CLASS_METRICS).items():
        assert (MEANINGS[name][2] == "low") == metric.is_error, name
    assert all(f"`{name}`" in score.__doc__ for name in METRICS)


def test_the_section_has_tables_and_only_the_metrics_in_them():
    found = [
        Figure("unseen", "caption/en", "exact_match", 0.5, 0.25, 0.125, 8),
        Figure("unseen", "caption/en", "cider", 1.234, 0.1, 0.2, 8),
    ]
    text = evaluation_section(found)
    assert text.startswith("## Evaluation\n") and "**Unseen**" in text and "`text only`" in text
    assert "| caption/en | cider | 1.234 | 0.100 | 0.200 | 8 |" in text
    assert "| `cider` | CIDEr-D; the ceiling is 2.5 for captions of one word" in text and "`wer`" not in text
    assert "text only` is" not in evaluation_section([Figure("a", "b", "recall@1", 0.5, 0.1, None, 8)], "Mine")
