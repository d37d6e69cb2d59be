"""Figures of test sets beside the majority's answer and the answers without media."""

import pytest

from modeling_mm.data import ChatRow, media_parts
from modeling_mm.evaluation import Figure, evaluate, figures, figures_markdown, majority_answers


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
