"""Figures of test sets beside the majority's answer and the answers without media."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_mm import MMForSequenceClassification
from modeling_mm.data import ChatRow, media_parts
from modeling_mm.evaluation import Figure, evaluate, figures, figures_markdown, majority_answers
from tests.fakes.tiny import joined
from tests.fakes.tiny_chats import CHATS, chat_model, processor


def row(task: str, answer: str, question: str = "What?", media: tuple[str, ...] = ("image",)) -> ChatRow:
    content = [{"type": kind, "path": f"{kind}.x"} for kind in media] + [{"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return ChatRow(messages, task=task, id=f"{task}/{question}/{answer}")


def test_majority_is_the_most_frequent_answer_of_each_task():
    rows = [row("a", "x"), row("a", "y"), row("a", "y"), row("b", "z"), row("b", "w")]
    assert majority_answers(rows) == {"a": "y", "b": "w"}


METRICS = {"match": ["last_word"], "transcribe": ["spoken_wer"]}


@pytest.fixture
def asked(monkeypatch):
    """A model that answers with the number of its media; the prompts of each call are kept."""
    calls = []

    def answer(model, processor, prompts, batch_size, max_new_tokens, prompt_batch=None, progress=None):
        calls.append((prompts, prompt_batch))
        prompts = [prompt.prompt if isinstance(prompt, ChatRow) else prompt for prompt in prompts]
        return [str(len(media_parts(prompt))) for prompt in prompts]

    monkeypatch.setattr(figures, "generate_answers", answer)
    return calls


@pytest.fixture
def answer_with(monkeypatch):
    """Return a function that sets the answers of the next calls."""

    def set_answers(*answers):
        calls = iter(answers)
        monkeypatch.setattr(figures, "generate_answers", lambda *_, **__: list(next(calls)))

    return set_answers


def test_figures_of_each_task_with_its_own_metrics(answer_with):
    rows = [row("match/en", "cat – yes", "1"), row("match/en", "dog – no", "2"), row("caption/en", "cat", "3")]
    answer_with(["bat – yes", "dog – yes", "cat"], ["– no", "– no", "dog"])
    majority = {"match/en": "dog – no", "caption/en": "cow"}
    found, _ = evaluate(None, None, {"held out": rows}, majority, task_metrics=METRICS)
    assert found == [
        Figure("held out", "caption/en", "exact_match", 1.0, 0.0, 0.0, 1),
        Figure("held out", "match/en", "exact_match", 0.0, 0.5, 0.0, 2),
        Figure("held out", "match/en", "last_word", 0.5, 0.5, 0.5, 2),
    ]


def test_transcripts_are_scored_without_case_and_punctuation(answer_with):
    pytest.importorskip("jiwer")
    answer_with(["hello you"])
    rows = {"p": [row("transcribe/en", "Hello, you.")]}
    found, _ = evaluate(None, None, rows, {}, with_text_only=False, task_metrics=METRICS)
    assert {figure.metric: figure.model for figure in found} == {"exact_match": 0.0, "spoken_wer": 0.0}
    assert found[0].text_only is None


def test_each_question_is_asked_with_its_media_and_each_text_once_without(asked):
    rows = [row("a", "1"), row("a", "2", media=("image", "audio")), row("b", "0", question="A long one?", media=())]
    found, records = evaluate(None, None, {"set": rows}, {"a": "1"}, progress=False)
    assert [len(prompts) for prompts, _ in asked] == [3, 2]  # "What?" without media is one question
    assert [(f.task, f.model, f.majority, f.text_only, f.samples) for f in found] == [
        ("a", 1.0, 0.5, 0.0, 2),
        ("b", 1.0, 0.0, 1.0, 1),
    ]
    assert [(r["id"], r["answer"], r["text_only"], r["truth"]) for r in records] == [
        ("a/What?/1", "1", "0", "1"),
        ("a/What?/2", "2", "0", "2"),
        ("b/A long one?/0", "0", "0", "0"),
    ]


def test_videos_are_media_too(asked):
    rows = [row("a", "1", media=("video",)), row("a", "1", media=("image", "video"))]
    found, records = evaluate(None, None, {"set": rows}, {}, progress=False)
    assert [r["answer"] for r in records] == ["1", "2"] and [r["text_only"] for r in records] == ["0", "0"]
    assert found[0].model == 0.5 and found[0].text_only == 0


def test_text_only_can_be_left_out_and_prompts_made_otherwise(asked):
    options = {"with_text_only": False, "progress": False, "prompt_batch": list}
    found, _ = evaluate(None, None, {"set": [row("a", "1")]}, {}, **options)
    ((_, prompt_batch),) = asked
    assert prompt_batch is list and found[0].text_only is None


def test_a_table_for_each_held_out_set():
    found = [Figure("one", "a", "exact_match", 0.5, 0.25, None, 4), Figure("two", "b", "chrf", 31.26, 10.0, 9.0, 2)]
    text = figures_markdown(found)
    assert "**One**" in text and "| a | exact_match | 0.500 | 0.250 |  | 4 |" in text
    assert "**Two**" in text and "| b | chrf | 31.3 | 10.0 | 9.0 | 2 |" in text


def test_a_metric_of_others_has_three_decimals():
    assert "| a | recall@1 | 0.250 | 0.125 |  | 8 |" in figures_markdown(
        [Figure("one", "a", "recall@1", 0.25, 0.125, None, 8)]
    )


# ---- Classifiers ----------------------------------------------------------------------------------------------------

LABELS = ["cat", "dog"]
SCORED = {"1": (0.9, 0.1), "2": (0.4, 0.6), "3": (0.3, 0.7), "4": (0.6, 0.4), "blind": (0.5, 0.5)}


@pytest.fixture
def classified(monkeypatch):
    """A classifier of two labels whose scores stand in `SCORED`, by the text of the prompt."""

    def classify(model, processor, prompts, batch_size=64, prompt_batch=None, progress=None):
        prompts = [prompt.prompt if isinstance(prompt, ChatRow) else prompt for prompt in prompts]
        return np.array([SCORED[p[-1]["content"][-1]["text"] if media_parts(p) else "blind"] for p in prompts])

    monkeypatch.setattr(figures, "classify", classify)
    monkeypatch.setattr(figures, "is_classifier", lambda model: True)
    monkeypatch.setattr(figures, "labels_of", lambda model: LABELS)
    monkeypatch.setattr(figures, "check_truths", lambda *_: None)
    return SimpleNamespace(config=SimpleNamespace(problem_type=None, num_labels=2))


def test_scores_of_classifiers_are_ranked(classified):
    """By hand: of 2 x 2 pairs of a cat and a dog, cats have 0.9 and 0.4, dogs 0.3 and 0.6 for cat: 3 in order."""
    pytest.importorskip("torchmetrics")
    rows = [row("name", truth, number) for number, truth in zip("1234", ("cat", "cat", "dog", "dog"), strict=True)]
    found, records = evaluate(
        classified, None, {"set": rows}, {"name": "dog"}, progress=False, task_metrics={"name": ["eer"]}
    )
    by_metric = {figure.metric: (figure.model, figure.majority, figure.text_only) for figure in found}
    assert by_metric["accuracy"] == (0.5, 0.5, 0.5) and list(by_metric) == ["accuracy", "f1", "auroc", "eer"]
    assert by_metric["auroc"] == pytest.approx((3 / 4, 1 / 2, 1 / 2), abs=1e-6)
    # True claims have 0.9, 0.4, 0.7, 0.4; false ones 0.1, 0.6, 0.3, 0.6: 2 of 4 wrong each way in between.
    assert by_metric["eer"] == pytest.approx((1 / 2, 1 / 2, 1 / 2), abs=1e-6)
    assert [record["answer"] for record in records] == ["cat", "dog", "dog", "cat"]


def test_a_task_of_one_label_has_no_ranking(classified):
    rows = [row("name", "cat", "1"), row("name", "cat", "2")]
    found, _ = evaluate(classified, None, {"set": rows}, {}, progress=False)
    assert [figure.metric for figure in found] == ["accuracy", "f1"]


def test_metrics_are_checked_before_anything_is_answered(classified, asked):
    with pytest.raises(ValueError, match="Unknown metric 'err'"):
        evaluate(classified, None, {"set": [row("a", "cat", "1")]}, {}, task_metrics={"a": ["err"]})
    assert not asked


def test_a_model_that_generates_has_no_scores(asked):
    with pytest.raises(ValueError, match="Unknown metric 'auroc'"):
        evaluate(None, None, {"set": [row("a", "1")]}, {}, task_metrics={"a": ["auroc"]})
    assert not asked


def test_the_size_of_batches_changes_nothing():
    for module in ("jiwer", "sacrebleu"):
        pytest.importorskip(module)
    model, metrics = chat_model(), {"color": ["wer", "chrf"], "": ["cer", "cider"], "sound": ["spoken_wer", "bleu"]}
    sizes = [
        evaluate(model, processor(), {"set": CHATS}, {}, batch_size=size, max_new_tokens=4, progress=False,
                 task_metrics=metrics)
        for size in (1, 3, 64)
    ]  # fmt: skip
    assert sizes[0] == sizes[1] == sizes[2] and len({record["answer"] for record in sizes[0][1]}) > 3


def test_the_size_of_batches_changes_no_figure_of_a_classifier():
    pytest.importorskip("torchmetrics")
    labels = ("few", "many", "none")
    model = joined(cls=MMForSequenceClassification, num_labels=3, id2label=dict(enumerate(labels)))
    model.resize_token_embeddings(len(processor().tokenizer))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    words = ("hello", "hello there you", "a cat, a dog and a bird", "You are brief.", "a", "You see a dog and a bird")
    rows = [row("count", labels[len(text) % 3], text, media=()) for text in words]
    sizes = [
        evaluate(model, processor(), {"set": rows}, {}, batch_size=size, progress=False, with_text_only=False,
                 task_metrics={"count": ["eer"]})
        for size in (1, 4, 64)
    ]  # fmt: skip
    assert sizes[0] == sizes[1] == sizes[2] and [f.metric for f in sizes[0][0]] == ["accuracy", "f1", "auroc", "eer"]
