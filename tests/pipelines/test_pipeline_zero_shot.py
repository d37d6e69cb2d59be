"""pipeline_zero_shot.py, and embeddings by `pipeline("feature-extraction")`."""

import pytest
import torch
from transformers import pipeline

from modeling_mm import MMForRetrieval, MMModel
from modeling_mm import pipelines as ours
from tests.fakes.pipeline_parts import COLORS, build, noise
from tests.fakes.processor_parts import RATE, picture
from tests.fakes.tiny import difference

LABELS = ["a cat", "a dog", "hello there"]
TASKS = {
    "zero-shot-image-classification": (picture(), "images", "This is a photo of {}."),
    "zero-shot-audio-classification": (noise(), "audio", "This is a {} in a recording."),
}


def expected_scores(pipe, task: str, template: str) -> list[float]:
    media, name, _ = TASKS[task]
    given = media if name == "images" else (media, RATE)
    model, processor = pipe.model, pipe.processor
    texts = processor(text=[template.replace("{}", label) for label in LABELS], padding=True, return_tensors="pt")
    with torch.no_grad():
        text, item = model.embed(**texts), model.embed(**processor(text="", **{name: given}, return_tensors="pt"))
        return (model.scale * item @ text.T)[0].softmax(-1).tolist()


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_the_softmax_of_the_similarities(pipes, task):
    pipe, (item, _, template) = pipes(task), TASKS[task]
    assert type(pipe.model) is MMForRetrieval and type(pipe) in (
        ours.MMZeroShotImageClassificationPipeline,
        ours.MMZeroShotAudioClassificationPipeline,
    )
    found = pipe(item, candidate_labels=LABELS)
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    scores = expected_scores(pipe, task, template)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        dict(zip(LABELS, scores, strict=True)), abs=1e-5
    )
    other = pipe(item, candidate_labels=LABELS, hypothesis_template="{}")
    scores = expected_scores(pipe, task, "{}")
    assert {row["label"]: row["score"] for row in other} == pytest.approx(
        dict(zip(LABELS, scores, strict=True)), abs=1e-5
    )
    assert other != found


def test_images_may_be_named_and_be_many(pipes):
    pipe = pipes("zero-shot-image-classification")
    images = [picture(color) for color in COLORS]
    alone = [pipe(each, LABELS) for each in images]
    assert pipe(images=images[0], candidate_labels=LABELS) == alone[0]
    for one, other in zip(alone, pipe(images, candidate_labels=LABELS, batch_size=2), strict=True):
        assert {row["label"]: row["score"] for row in one} == pytest.approx(
            {row["label"]: row["score"] for row in other}, abs=1e-5
        )


def test_a_model_of_the_sigmoid_loss_scores_each_label_by_itself():
    model, processor = build(MMForRetrieval, retrieval_loss="sigmoid")
    classify = ours.MMZeroShotImageClassificationPipeline(model, processor, device="cpu")
    alone = classify(picture(), candidate_labels=LABELS[:1])[0]["score"]
    among = {row["label"]: row["score"] for row in classify(picture(), candidate_labels=LABELS)}
    assert 0 < alone < 1 and among[LABELS[0]] == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_wrong_calls_name_what_is_expected(pipes, task):
    pipe, item = pipes(task), TASKS[task][0]
    with pytest.raises(ValueError, match="expected `candidate_labels`"):
        pipe(item, candidate_labels=[])
    with pytest.raises(ValueError, match=r"with \{\} in the place of a label"):
        pipe(item, candidate_labels=LABELS, hypothesis_template="a photo")
    with pytest.raises(ValueError, match="`timeout` is not for this processor"):
        pipe(item, candidate_labels=LABELS, timeout=3)
    model, processor = build(MMModel)
    with pytest.raises(ValueError, match="a model that embeds, MMForRetrieval, got a MMModel"):
        type(pipe)(model, processor, device="cpu")


def test_pooled_features_are_the_embeddings(folders):
    pipe = pipeline("feature-extraction", str(folders / "retriever"), device="cpu")
    assert type(pipe.model) is MMForRetrieval
    rows = [{"text": "hello", "images": picture()}, {"text": "a cat and a dog"}, "a cat", "hello there"]
    found = pipe(rows, batch_size=2, pool=True, return_tensors=True)
    for row, embedding in zip(rows, found, strict=True):
        given = {"text": row} if isinstance(row, str) else row
        with torch.no_grad():
            expected = pipe.model.embed(**pipe.processor(**given, return_tensors="pt"))
        assert embedding.shape == (1, 8) and difference(embedding, expected) < 1e-5
    assert difference(pipe("a cat", pool=True, return_tensors=True), found[2]) < 1e-5
    states = pipe(rows[0], return_tensors=True)
    assert states.shape[-1] == pipe.model.config.text_config.n_embd
