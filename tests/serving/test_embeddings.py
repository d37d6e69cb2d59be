"""`/v1/embeddings` with OpenAI's own client: the state of the model where an answer would begin."""

import base64
import math

import numpy as np
import pytest
import torch

from modeling_mm.serving.embeddings import check_embeddings
from tests.fakes.processor_parts import picture, sound
from tests.fakes.serving_parts import audio_part, data_url, image_part, model, needs_extra, png, text_part, user, wav
from tests.fakes.tiny_chats import processor


def expected(content) -> np.ndarray:
    inputs = processor().apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        state = model().eval().model(**inputs).last_hidden_state[0, -1]
    return (state / state.norm()).numpy()


def embeddings(server, given, **options) -> list[np.ndarray]:
    created = server.client.embeddings.create(model=server.folder, input=given, **options)
    assert [each.index for each in created.data] == [*range(len(created.data))]
    assert created.usage.prompt_tokens == created.usage.total_tokens > 0
    return [np.array(each.embedding, np.float32) for each in created.data]


@needs_extra
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_texts_become_the_states_of_the_model(server, options):
    """The client asks for base64 unless told otherwise, and decodes it."""
    texts = ["hello", "a dog", "hello there"]
    vectors = embeddings(server, texts, **options)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(vector, expected([text_part(text)]), atol=1e-5)
        assert math.isclose(float(np.linalg.norm(vector)), 1.0, abs_tol=1e-4)
    np.testing.assert_allclose(embeddings(server, "a dog", **options)[0], vectors[1], atol=1e-6)


@needs_extra
def test_base64_is_of_the_values_as_float32(server):
    created = server.client.embeddings.create(model=server.folder, input="hello", encoding_format="base64")
    values = np.frombuffer(base64.b64decode(created.data[0].embedding), "<f4")
    np.testing.assert_allclose(values, expected([text_part("hello")]), atol=1e-5)


@needs_extra
def test_content_parts_become_one_embedding(server):
    red, blue = (image_part(data_url(png(picture(color)))) for color in ("red", "blue"))
    noise = audio_part(wav())
    (alone,) = embeddings(server, [red, text_part("hello")])
    first, second, third = embeddings(server, [[red, text_part("hello")], [blue, text_part("hello")], [noise]])
    np.testing.assert_allclose(first, alone, atol=1e-6)
    np.testing.assert_allclose(
        first, expected([{"type": "image", "image": picture("red")}, text_part("hello")]), atol=1e-5
    )
    heard = {"type": "audio", "audio": sound()[0], "sampling_rate": sound()[1]}
    np.testing.assert_allclose(third, expected([heard]), atol=1e-5)
    assert np.abs(first - second).max() > 1e-4, "the image is seen"


@needs_extra
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"input": []}, "`input`: expected a text, a list of texts, or content parts"),
        ({"input": ""}, "`input`: expected a text that is not empty"),
        ({"input": ["a", ""]}, r"`input\[1\]`: expected a text that is not empty"),
        ({"input": [1, 2]}, r"`input\[0\]`: token ids are not taken.*send texts"),
        ({"input": [[1, 2]]}, r"`input\[0\]`: token ids are not taken"),
        ({"input": ["a", None]}, r"`input\[1\]`: expected a text or a list of content parts, got None"),
        ({"input": [[{"type": "file_url"}]]}, r"`input\[0\]\[0\]`: expected a part of type text"),
        ({"input": "a dog " * 500}, "the model has 128 positions; shorten it"),
        ({"input": ["a"] * 2000}, "`input`: expected 1024 messages and parts at most"),
        ({"dimensions": 3}, "`dimensions`: this model has 32, got 3"),
        ({"encoding_format": "int8"}, "`encoding_format`: expected float or base64, got 'int8'"),
    ],
)
def test_a_bad_request_gets_400_and_the_reason(server, options, word):
    import openai

    with pytest.raises(openai.BadRequestError, match=word):
        server.client.embeddings.create(**{"model": server.folder, "input": "hello", **options})


def test_the_width_of_the_model_and_fields_that_change_nothing_pass():
    body = {"input": "a", "dimensions": 16, "user": "me", "encoding_format": None}
    assert check_embeddings(body, 16) == ([{"role": "user", "content": "a"}], [])
    assert check_embeddings({"input": [text_part("a")]}, 16) == (user(text_part("a")), [])
