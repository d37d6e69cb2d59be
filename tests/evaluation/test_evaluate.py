"""evaluation.py: held-out figures beside the majority's answer and the answers without media."""

import pytest
import torch

from modeling_mm.data import ChatRow, media_parts
from modeling_mm.evaluation import evaluate as evaluation
from modeling_mm.evaluation.evaluate import (
    Figure,
    evaluate,
    figures_markdown,
    majority_answers,
    score_rows,
    without_media,
)


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


def test_without_media_the_text_stays():
    silent = without_media(row("a", "x", media=("image", "audio")))
    assert media_parts(silent.messages) == []
    assert silent.prompt[0]["content"] == [{"type": "text", "text": "What?"}] and silent.answer == "x"
    assert (silent.task, silent.id) == ("a", "a/What?/x")


def test_figures_of_each_task_with_its_own_metrics():
    rows = [row("match/en", "cat – yes"), row("match/en", "dog – no"), row("caption/en", "cat")]
    answers, blind = ["bat – yes", "dog – yes", "cat"], ["– no", "– no", "dog"]
    figures = score_rows("held out", rows, answers, blind, {"match/en": "dog – no", "caption/en": "cow"})
    assert figures == [
        Figure("held out", "caption/en", "exact_match", 1.0, 0.0, 0.0, 1),
        Figure("held out", "match/en", "exact_match", 0.0, 0.5, 0.0, 2),
        Figure("held out", "match/en", "last_word", 0.5, 0.5, 0.5, 2),
    ]


def test_transcripts_are_scored_without_case_and_punctuation():
    figures = score_rows("p", [row("transcribe/en", "Hello, you.")], ["hello you"], None, {})
    assert {figure.metric: figure.model for figure in figures} == {"exact_match": 0.0, "spoken_wer": 0.0}
    assert figures[0].text_only is None


@pytest.fixture
def asked(monkeypatch):
    """A model that answers with the number of its media; what it is asked is kept."""
    batches = []
    monkeypatch.setattr(evaluation, "prompt_inputs", lambda processor, prompts: prompts)

    def answer(model, processor, prompts, max_new_tokens):
        batches.append(prompts)
        return [str(len(media_parts(prompt))) for prompt in prompts]

    monkeypatch.setattr(evaluation, "answer_batch", answer)
    return batches


def test_each_question_is_asked_with_its_media_and_each_text_once_without(asked):
    rows = [row("a", "1"), row("a", "2", media=("image", "audio")), row("b", "0", question="A long one?", media=())]
    figures, records = evaluate(torch.nn.Linear(1, 1), None, {"set": rows}, {"a": "1"}, batch_size=2, progress=False)
    assert [len(batch) for batch in asked] == [2, 1, 2]  # "What?" without media is one question
    assert [(f.task, f.model, f.majority, f.text_only, f.samples) for f in figures] == [
        ("a", 1.0, 0.5, 0.0, 2),
        ("b", 1.0, 0.0, 1.0, 1),
    ]
    assert [(r["id"], r["answer"], r["text_only"], r["truth"]) for r in records] == [
        ("a/What?/1", "1", "0", "1"),
        ("a/What?/2", "2", "0", "2"),
        ("b/A long one?/0", "0", "0", "0"),
    ]


def test_text_only_can_be_left_out_and_prompts_made_otherwise(asked):
    made = []

    def prompt_batch(rows):
        made.append(len(rows))
        return [each.prompt for each in rows]

    figures, _ = evaluate(
        torch.nn.Linear(1, 1), None, {"set": [row("a", "1")]}, {}, prompt_batch, with_text_only=False, progress=False
    )
    assert made == [1] and len(asked) == 1 and figures[0].text_only is None


def test_a_table_for_each_held_out_set():
    figures = [Figure("one", "a", "exact_match", 0.5, 0.25, None, 4), Figure("two", "b", "chrf", 31.26, 10.0, 9.0, 2)]
    text = figures_markdown(figures)
    assert "**One**" in text and "| a | exact_match | 0.500 | 0.250 |  | 4 |" in text
    assert "**Two**" in text and "| b | chrf | 31.3 | 10.0 | 9.0 | 2 |" in text
