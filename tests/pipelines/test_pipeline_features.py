"""pipeline_features.py: hidden states of texts with and without media, of chats and of images."""

import pytest
import torch
from transformers import pipeline

from modeling_mm import MMModel
from modeling_mm import pipelines as ours
from tests.fakes.pipeline_parts import COLORS, audio, build, chat, image, noise
from tests.fakes.processor_parts import RATE, picture
from tests.fakes.tiny import difference


def test_features_of_texts_are_the_base_models(pipes):
    pipe = pipes("feature-extraction")
    assert type(pipe.model) is MMModel
    texts = ["hello there", "a cat"]
    alone = [pipe(words, return_tensors=True) for words in texts]
    ids = pipe.tokenizer(texts[0], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        assert difference(alone[0], pipe.model(**ids).last_hidden_state) < 1e-5
    batched = pipe(texts, batch_size=2, return_tensors=True)
    for one, other in zip(alone, batched, strict=True):  # without the padding
        assert difference(one, other) < 1e-4


def test_features_of_images_are_the_states_of_their_placeholders(pipes):
    pipe = pipes("image-feature-extraction")
    model, pixels = pipe.model, pipe.image_processor(picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[model.config.image_token_id]]), pixel_values=pixels)
    features = pipe(picture(), return_tensors=True)
    assert difference(features, expected.last_hidden_state) < 1e-6 and features.shape == (1, 1, 32)
    pooled = pipe(picture(), pool=True, return_tensors=True)
    assert difference(pooled, expected.last_hidden_state[:, -1]) < 1e-6
    pictures = [picture(color) for color in COLORS]
    batched = pipe(pictures, batch_size=2, return_tensors=True)
    alone = [pipe(p, return_tensors=True) for p in pictures]
    assert max(difference(one, other) for one, other in zip(alone, batched, strict=True)) < 1e-5
    assert difference(batched[0], batched[1]) > 1e-3


def states_of(pipe, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return pipe.model(**pipe.processor(return_tensors="pt", **inputs)).last_hidden_state


def test_media_beside_a_text_are_read(pipes):
    pipe = pipes("feature-extraction")
    assert type(pipe) is ours.MMFeatureExtractionPipeline
    plain = pipe("a cat", return_tensors=True)
    seen = pipe("a cat", images=[picture()], return_tensors=True)
    assert difference(seen, states_of(pipe, text="a cat", images=[[picture()]])) < 1e-5
    assert seen.shape[1] == plain.shape[1] + 1 and difference(seen[:, 1:], plain) > 1e-3
    both = {"text": "a cat", "images": [picture()], "audio": (noise(), RATE)}
    assert difference(pipe(both, return_tensors=True), states_of(pipe, **both)) < 1e-5
    alone = pipe(audio=(noise(), RATE), return_tensors=True)
    assert difference(alone, states_of(pipe, text="", audio=(noise(), RATE))) < 1e-5
    texts, pictures = ["a cat", "hello there"], [picture(color) for color in COLORS[:2]]
    rows = pipe(texts, images=pictures, batch_size=2, return_tensors=True)
    expected = [states_of(pipe, text=t, images=[p]) for t, p in zip(texts, pictures, strict=True)]
    assert max(difference(one, other) for one, other in zip(rows, expected, strict=True)) < 1e-4
    messages = chat(image(), audio(), "a cat?")
    inputs = pipe.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        expected = pipe.model(**inputs).last_hidden_state
    assert difference(pipe(messages, return_tensors=True), expected) < 1e-5


def test_pooled_is_the_state_that_has_seen_everything(pipes):
    pipe = pipes("feature-extraction")
    rows = ["a", {"text": "a cat, a dog", "images": picture()}]
    whole = [pipe(row, return_tensors=True) for row in rows]
    for pooled in (
        [pipe(row, pool=True, return_tensors=True) for row in rows],
        pipe(rows, pool=True, return_tensors=True, batch_size=2),
    ):
        assert [each.shape for each in pooled] == [(1, 32), (1, 32)]
        assert max(difference(one, all_[:, -1]) for one, all_ in zip(pooled, whole, strict=True)) < 1e-4
    assert len(pipe("a", pool=True)[0]) == 32


def test_options_of_the_processor_are_used(pipes):
    pipe = pipes("feature-extraction")
    for options in ({"truncation": True, "max_length": 3}, {"tokenize_kwargs": {"truncation": True, "max_length": 3}}):
        assert pipe("a cat and a dog", return_tensors=True, **options).shape == (1, 3, 32)
    with pytest.raises(ValueError, match="got tools, which this pipeline does not use for such an input"):
        pipe("a cat", tools=[])


@pytest.mark.parametrize(
    ("inputs", "media", "message"),
    [
        (["a", "b"], [picture()], "expected `images` for each of 2 texts, got 1; nest the list"),
        (["a", "b"], picture(), "expected `images` for each of 2 texts, got an object of type Image"),
        (
            chat("a"),
            [picture()],
            "expected a text or a list of texts beside `images`, .* or put the media into the chat",
        ),
        (3, None, "expected a text, a dict .* or a chat; got an object of type int"),
        ({"text": "a", "image": picture()}, None, r"got \['image'\] too"),
    ],
)
def test_wrong_inputs_are_value_errors(pipes, inputs, media, message):
    with pytest.raises(ValueError, match=message):
        pipes("feature-extraction")(inputs, images=media)


def test_a_model_with_a_head_gives_the_states_below_it():
    model, processor = build()
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    for task, row in (("feature-extraction", "a cat"), ("image-feature-extraction", picture())):
        part = (
            {"tokenizer": parts["tokenizer"]}
            if task == "feature-extraction"
            else {"image_processor": parts["image_processor"]}
        )
        pipe = pipeline(task, model=model, processor=processor, device="cpu", **part)
        assert pipe(row, return_tensors=True).shape[-1] == model.config.text_config.n_embd
    assert type(model) is not MMModel


def test_options_of_the_image_processor_are_used(pipes):
    pipe = pipes("image-feature-extraction")
    assert type(pipe) is ours.MMImageFeatureExtractionPipeline
    plain = pipe(picture(), return_tensors=True)
    changed = pipe(picture(), image_processor_kwargs={"do_normalize": False}, return_tensors=True)
    assert difference(plain, changed) > 1e-4
    with pytest.raises(ValueError, match="`timeout` is not for this processor"):
        pipe(picture(), timeout=3.0)
