"""pipeline_classification.py: texts, chats, images and audio through the real `pipeline`."""

import numpy as np
import pytest
import torch
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mm import MMForSequenceClassification, MMProcessor
from modeling_mm import pipelines as ours
from modeling_mm.data import ChatRow
from modeling_mm.training import ClassificationCollator
from tests.fakes.pipeline_parts import CLASSIFIED, audio, build, chat, image, noise
from tests.fakes.processor_parts import RATE, picture


def logits_of(pipe, inputs) -> torch.Tensor:
    inputs = {"text": inputs} if isinstance(inputs, str) else dict(inputs)
    images = inputs.get("images", inputs.get("image"))
    row = pipe.processor(text=inputs.get("text", ""), images=images, audio=inputs.get("audio"), return_tensors="pt")
    with torch.no_grad():
        return pipe.model(**row).logits[0]


@pytest.mark.parametrize("name", CLASSIFIED)
def test_texts_are_classified_with_the_media_beside_them(pipes, name):
    pipe = pipes("text-classification")
    assert type(pipe) is ours.MMTextClassificationPipeline
    scores = logits_of(pipe, CLASSIFIED[name]).softmax(-1).tolist()
    found = pipe(CLASSIFIED[name], top_k=None)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        {f"LABEL_{i}": score for i, score in enumerate(scores)}, abs=1e-5
    )


def test_media_change_the_class_scores(pipes):
    pipe = pipes("text-classification")
    plain, seen, heard = (
        pipe(row, top_k=None)
        for row in ({"text": "hello"}, {"text": "hello", "images": picture()}, CLASSIFIED["sound"])
    )
    assert plain != seen and plain != heard


def test_classified_rows_of_all_kinds_go_into_one_batch(pipes):
    pipe, rows = pipes("text-classification"), list(CLASSIFIED.values())
    alone = [pipe(row, top_k=1)[0] for row in rows]
    batched = pipe(rows, batch_size=4, top_k=1)
    assert [row[0]["label"] for row in batched] == [row["label"] for row in alone]
    assert [row[0]["score"] for row in batched] == pytest.approx([row["score"] for row in alone], abs=1e-5)
    streamed = list(pipe(KeyDataset([{"x": row} for row in rows], "x"), batch_size=3, top_k=1))
    assert [row[0]["label"] for row in streamed] == [row["label"] for row in alone]


def test_chats_are_classified_as_recipes_train_them(pipes):
    pipe, messages = pipes("text-classification"), chat(image(), "a dog?")
    answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    row = dict(ClassificationCollator(pipe.processor, ["yes", "no"])([ChatRow(answered)]))
    del row["labels"]
    with torch.no_grad():
        scores = pipe.model(**row).logits[0].softmax(-1)
    found = pipe(messages)
    assert found["label"] == f"LABEL_{scores.argmax()}" and found["score"] == pytest.approx(
        scores.max().item(), abs=1e-5
    )


def test_what_the_stock_text_classification_takes_is_still_taken(pipes):
    pipe = pipes("text-classification")
    assert set(pipe("hello")[0]) == {"label", "score"}  # a list for a string, as ever
    assert set(pipe({"text": "hello", "text_pair": "there"})) == {"label", "score"}
    assert len(pipe("hello " * 20, truncation=True, max_length=4)) == 1


WRONG_TO_CLASSIFY = {
    "a number": (3, {}, "expected a text, a dict .* or a chat; got an object of type int"),
    "another key": ({"text": "a", "video": 1}, {}, r"got \['video'\] too"),
    "nothing": ({}, {}, "nothing to read"),
    "a pair with media": ({"text": "a", "text_pair": "b", "images": picture()}, {}, "pair of texts"),
    "too few pictures": ({"text": "<|image|><|image|>", "images": picture()}, {}, "(?s)2.*1"),
}


@pytest.mark.parametrize("name", WRONG_TO_CLASSIFY)
def test_what_cannot_be_classified_is_a_value_error(pipes, name):
    inputs, options, message = WRONG_TO_CLASSIFY[name]
    with pytest.raises(ValueError, match=message):
        pipes("text-classification")(inputs, **options)


def test_a_pair_in_a_list_of_its_own_is_the_pair(pipes):
    pipe = pipes("text-classification")
    expected = pipe({"text": "hello", "text_pair": "there"}, top_k=None)
    assert pipe([[["hello", "there"]]], top_k=None) == [expected]
    other = pipe({"text": "a", "text_pair": "cat"}, top_k=None)
    assert pipe([[["hello", "there"]], [["a", "cat"]]], top_k=None) == [expected, other]


# ---- One image, one audio -------------------------------------------------------------------------------------------

ONE = {
    "image-classification": (lambda: picture("red"), lambda: image("red"), lambda: {"images": picture("red")}),
    "audio-classification": (noise, audio, lambda: {"audio": (noise(), RATE)}),
}


@pytest.mark.parametrize("task", ONE)
def test_media_are_classified_as_text_classification_does(pipes, task):
    row, part, beside = (make() for make in ONE[task])
    pipe, reference = pipes(task), pipes("text-classification")
    assert type(pipe.model) is MMForSequenceClassification and type(pipe.processor) is MMProcessor
    assert type(pipe) is getattr(
        ours, "MMImageClassificationPipeline" if "image" in task else "MMAudioClassificationPipeline"
    )
    for options, same in (({}, beside), ({"prompt": "a dog?"}, chat(part, "a dog?"))):
        found, expected = pipe(row, **options), reference(same, top_k=None)
        assert [each["label"] for each in found] == [each["label"] for each in expected]
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-5)
    assert pipe(row, top_k=1) == pipe(row)[:1]
    assert sum(each["score"] for each in pipe(row, function_to_apply="softmax")) == pytest.approx(1)
    assert pipe(row, function_to_apply="none") != pipe(row)


def test_audio_of_every_form_is_classified_alike(pipes):
    pipe, samples = pipes("audio-classification"), noise()
    expected = pipe(samples)
    forms = [
        {"raw": samples, "sampling_rate": RATE},
        {"array": samples, "sampling_rate": RATE},
        {"array": np.stack([samples, samples]), "sampling_rate": RATE},
        torch.from_numpy(samples),
    ]
    for found in map(pipe, forms):
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=1e-4)
    assert pipe(noise(2.5))  # three windows


def test_what_a_processor_lacks_is_named():
    model, processor = build(MMForSequenceClassification, num_labels=3)
    half = MMProcessor(tokenizer=processor.tokenizer)
    with pytest.raises(ValueError, match="join a model with an audio encoder to classify audio"):
        ours.MMAudioClassificationPipeline(model, half, device="cpu")(noise())
    with pytest.raises(ValueError, match="this processor has no `image_processor`"):
        ours.MMImageClassificationPipeline(model, half, device="cpu")(picture())
    with pytest.raises(ValueError, match="`timeout` is not for this processor"):
        ours.MMImageClassificationPipeline(model, processor, device="cpu")(picture(), timeout=3)
