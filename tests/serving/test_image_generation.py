"""`/v1/images/generations` and `/v1/images/edits` with OpenAI's own client: images equal to those of `generate`."""

import base64
import io
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from modeling_mm import MMForConditionalGeneration, MMProcessor
from tests.fakes.processor_parts import picture
from tests.fakes.serving_parts import needs_extra, png, run_here, text_part, user

pytestmark = needs_extra
RequestQueue = pytest.importorskip("modeling_mm.serving.handlers", exc_type=ImportError).RequestQueue
BadRequest = pytest.importorskip("modeling_mm.serving.limits", exc_type=ImportError).BadRequest
RED, BLUE = picture("red", (9, 8)), picture("blue", (8, 8))
TOKENS = 16 + 2  # of an image


@cache
def served(folder) -> tuple[MMForConditionalGeneration, MMProcessor]:
    processor = MMProcessor.from_pretrained(folder)
    model = MMForConditionalGeneration.from_pretrained(folder).eval()
    processor.use_codecs(model)
    return model, processor


def drawn(folder, prompt: str, *shown) -> Image.Image:
    """The image that `generate` draws in this process."""
    model, processor = served(folder)
    content = [*({"type": "image", "image": each} for each in shown), {"type": "text", "text": f"Draw {prompt}"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    ids = model.generate(**inputs, output_modalities=("image",), max_new_tokens=TOKENS, do_sample=False)
    (part,) = processor.decode_media(ids[0, inputs["input_ids"].shape[1] :])
    assert "is_cut" not in part
    return part["image"]


def images(response) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(each.b64_json))) for each in response.data]


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and np.array_equal(np.asarray(one), np.asarray(other))


GREEDY = {"extra_body": {"temperature": 0}}


def generate(server, prompt="hello", **options):
    return server.client.images.generate(model=server.folder, prompt=prompt, **options)


def edit(server, *files, prompt="hello", **options):
    named = [("image.png", png(each)) for each in files]
    return server.client.images.edit(
        model=server.folder, image=named[0] if len(named) == 1 else named, prompt=prompt, **options
    )


def test_an_image_is_that_of_generate_and_depends_on_the_prompt(writer_server, writer_folder):
    prompts = ("a red square", "What do you see?")
    drawings = [drawn(writer_folder, prompt) for prompt in prompts]
    assert not same(*drawings)
    for prompt, expected in zip(prompts, drawings, strict=True):
        response = generate(writer_server, prompt, **GREEDY)
        (image,) = images(response)
        assert same(image, expected) and image.format == "PNG"
    assert response.size == "16x16" and response.output_format == "png"
    assert response.usage.output_tokens == TOKENS
    assert response.usage.total_tokens == response.usage.input_tokens + TOKENS


def test_an_edit_is_that_of_generate_and_depends_on_the_images(writer_server, writer_folder):
    drawings = [drawn(writer_folder, "a red square", *shown) for shown in ((RED,), (BLUE,), (RED, BLUE), ())]
    assert not any(same(*pair) for pair in itertools.pairwise(drawings))
    for shown, expected in zip(((RED,), (BLUE,), (RED, BLUE)), drawings, strict=False):
        response = edit(writer_server, *shown, prompt="a red square", **GREEDY)
        assert same(images(response)[0], expected)
        assert response.usage.input_tokens_details.image_tokens == len(shown)


def test_several_images_and_seeds(writer_server):
    options = {"n": 3, "size": "16x16", "response_format": "b64_json", "extra_body": {"seed": 7}}
    three = images(generate(writer_server, **options))
    assert len(three) == 3 and not same(three[0], three[1]) and not same(three[1], three[2])
    again = images(generate(writer_server, **options))
    assert all(map(same, three, again))
    assert same(images(generate(writer_server, extra_body={"seed": 7}))[0], three[0])
    edited = images(edit(writer_server, RED, n=2, size="auto", extra_body={"seed": 7, "temperature": 0.9}))
    assert len(edited) == 2 and not same(*edited)
    assert any(not same(*images(generate(writer_server, n=2))) for _ in range(3)), "by default they are sampled"
    assert any(not same(images(generate(writer_server))[0], edited[0]) for _ in range(3))


def test_rows_that_draw_share_the_batch_with_rows_that_talk(writer_server, writer_folder, monkeypatch):
    """Both are what they are alone, chats hold no codes, and codes alone get only their range of the head."""
    tokens = served(writer_folder)[1].written["image"].tokens
    ranges, forward = set(), MMForConditionalGeneration.forward

    @wraps(forward)
    def spied(self, *args, **kwargs):
        ranges.add(kwargs.get("token_range"))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MMForConditionalGeneration, "forward", spied)
    chat = user(text_part("hello there"))
    alone = writer_server.says(chat, max_tokens=40)
    with ThreadPoolExecutor(4) as pool:
        talks = [pool.submit(writer_server.says, chat, max_tokens=40) for _ in range(2)]
        paintings = [pool.submit(generate, writer_server, "What do you see?", **GREEDY) for _ in range(2)]
        assert [each.result() for each in talks] == [alone] * 2
        expected = drawn(writer_folder, "What do you see?")
        assert all(same(images(each.result())[0], expected) for each in paintings)
    assert None in ranges
    ranges.clear()
    generate(writer_server)
    assert ranges == {None, (tokens.end_id, tokens.stop)}, "of a row that draws alone only the codes' logits"
    assert "code" not in alone


def test_guidance_of_the_generation_config(writer_folder, tmp_path):
    """Options that only `generate` has are applied too."""
    processor = served(writer_folder)[1]
    guided = MMForConditionalGeneration.from_pretrained(writer_folder)
    guided.generation_config.guidance_scale = 3.0
    guided.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = drawn(tmp_path, "What do you see?")
    assert not same(expected, drawn(writer_folder, "What do you see?"))
    with run_here(tmp_path) as server:
        assert same(images(generate(server, "What do you see?", **GREEDY))[0], expected)


# ---- Errors ---------------------------------------------------------------------------------------------------------


BAD = [
    ({"prompt": ""}, "`prompt`: expected 1 to 200000 characters, got 0"),
    ({"prompt": "hello there " * 120}, r"`prompt`: it takes \d+ tokens and an image 18, but the model has 256 pos"),
    ({"prompt": "a " * 5000}, r"The prompt has 1000\d characters"),
    ({"size": "1024x1024"}, "`size`: expected auto or 16x16, got '1024x1024'"),
    ({"response_format": "url"}, "`response_format`: this server keeps no files; expected b64_json, got 'url'"),
    ({"n": 99}, "`n`: expected a whole number of at least 1 and at most 16"),
    ({"extra_body": {"seed": "x"}}, "`seed`: expected a whole number"),
    ({"extra_body": {"temperature": 9}}, "`temperature`: expected a number of at least 0"),
    ({"quality": "high"}, "`quality`: 'high' is not served here: the model has one; leave it out"),
    ({"background": "transparent"}, "`background`: 'transparent' is not served here: images have no transparency"),
    ({"output_format": "webp"}, "`output_format`: 'webp' is not served here: images are PNG files"),
    ({"stream": True}, "`stream`: .*rue.? is not served here: an image comes when it is complete"),
    ({"extra_body": {"partial_images": 2}}, "`partial_images`: .*2.* is not served here"),
]


@pytest.mark.parametrize("call", [generate, edit])
@pytest.mark.parametrize(("options", "word"), BAD)
def test_a_bad_request_gets_400_and_the_reason(writer_server, call, options, word):
    import openai

    shown = (RED,) if call is edit else ()
    with pytest.raises(openai.BadRequestError, match=word) as caught:
        call(writer_server, *shown, **options)
    assert caught.value.type == "invalid_request_error" and caught.value.code == "400"
    named = re.match("`([^`]+)`", caught.value.body["message"])
    assert caught.value.param == (named and named[1])


def test_bad_edits_get_400_and_the_reason(writer_server):
    import openai

    for options, word in (
        ({"mask": ("mask.png", png(RED))}, "`mask`: .*is not served here: say in the `prompt` what to change"),
        ({"image": ("image.png", b"no image")}, "`image`: .*no format that Pillow knows"),
        ({"image": ("image.png", png(RED)[:40])}, "`image`: .*(damaged|cut short|no format)"),
        ({"image": [("image.png", png(RED))] * 17}, "`image`: expected 16 files at most, got 17"),
        ({"image": []}, "`image`: expected a file as multipart/form-data"),
    ):
        given = {"image": ("image.png", png(RED)), "prompt": "hello", **options}
        with pytest.raises(openai.BadRequestError, match=word):
            writer_server.client.images.edit(model=writer_server.folder, **given)
    status, text = writer_server.post("/v1/images/edits", b"{}")
    assert status == 400 and "`image`: expected a file as multipart/form-data" in text
    status, text = writer_server.post("/v1/images/edits", b"--x", "multipart/form-data")
    assert status == 400 and "Send multipart/form-data with its boundary" in text


def test_unknown_fields_and_models(writer_server):
    import openai

    with pytest.raises(openai.UnprocessableEntityError, match="`sise`: this route has no such field"):
        generate(writer_server, extra_body={"sise": "16x16"})
    with pytest.raises(openai.NotFoundError, match="there is no 'gpt-image-2' here"):
        writer_server.client.images.generate(model="gpt-image-2", prompt="hello")


def test_a_model_that_writes_no_images(server_here):
    import openai

    for call in (generate, lambda server: edit(server, RED)):
        with pytest.raises(
            openai.BadRequestError, match="`model`: it writes no images; use a model with a codec of i"
        ):
            call(server_here)


def test_a_model_without_an_end_token_draws_nothing():
    config = SimpleNamespace(eos_token_id=None)
    engine = SimpleNamespace(model=SimpleNamespace(generation_config=config))
    queue = SimpleNamespace(writer=SimpleNamespace(written={"image": None}), engine=engine)
    with pytest.raises(
        BadRequest, match="an answer of images alone ends by eos_token_id, which its generation config"
    ):
        RequestQueue.check_writes(queue, "image")
    config.eos_token_id = 0
    RequestQueue.check_writes(queue, "image")


def test_a_server_whose_answers_are_shorter_than_an_image(writer_folder):
    import openai

    with run_here(writer_folder, tokens=17) as server:
        with pytest.raises(
            openai.BadRequestError, match=r"An image takes 18 tokens, .* start it with --max-tokens 18"
        ):
            generate(server)


def test_a_model_that_sees_nothing_edits_nothing(writer_folder, tmp_path):
    import openai

    model, processor = served(writer_folder)
    model.save_pretrained(tmp_path)
    MMProcessor(None, processor.feature_extractor, processor.tokenizer).save_pretrained(tmp_path)
    with run_here(tmp_path) as server:
        assert len(images(generate(server))) == 1
        with pytest.raises(openai.BadRequestError, match="`model`: it has no image encoder; use /v1/images/generat"):
            edit(server, RED)


def test_workers_get_no_copy_of_the_codecs(writer_folder):
    """Their processor stays as it is; that with the codecs is another."""
    from modeling_mm.serving import ServerLimits, SourcePolicy
    from modeling_mm.serving.handlers import RequestQueue

    class Manager:
        def served(self):
            return model, plain

    model, plain = served(writer_folder)[0], MMProcessor.from_pretrained(writer_folder)
    queue = RequestQueue(Manager(), SourcePolicy(), ServerLimits(workers=1))
    try:
        assert queue.workers.processor is plain and not plain.written
        assert set(queue.writer.written) == {"image", "audio"}
    finally:
        queue.stop()
