"""Pipelines of models that write codes: drawings and speech as `generate` and `decode_media` give them."""

import json
import re
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import TextToAudioPipeline, VitsConfig, VitsModel, VitsTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mm import pipelines as ours
from modeling_mm.pipeline_codes import drawing_from
from modeling_mm.prompts import (
    DEFAULT_DRAWING_PROMPT,
    DEFAULT_SPEECH_PROMPT,
    drawing_prompt,
    set_prompts,
    speech_prompt,
)
from tests.fakes.pipeline_parts import chat, image, inputs_of, noise, text
from tests.fakes.processor_parts import RATE, picture
from tests.fakes.tiny import difference
from tests.fakes.writers import seeing, writing

TASKS = ("text-to-image", "text-to-audio", "any-to-any")
GREEDY = {"do_sample": False}
LIMIT = {"max_new_tokens": 40}
VOICE = (noise(), RATE)


@pytest.fixture(scope="module")
def folder(folders):
    return folders / "writer"


@pytest.fixture(scope="module")
def pipes(folder):
    return {task: pipeline(task, model=str(folder), device="cpu") for task in TASKS}


@pytest.fixture(scope="module")
def draw(pipes):
    return pipes["text-to-image"]


@pytest.fixture(scope="module")
def say(pipes):
    return pipes["text-to-audio"]


def direct(pipe, messages, name: str, **options) -> list:
    """The parts of the answers when model and processor are called directly."""
    inputs = inputs_of(pipe, messages)
    ids = pipe.model.generate(**inputs, output_modalities=(name,), **{**LIMIT, **options})
    rows = pipe.processor.decode_media(ids[:, inputs["input_ids"].shape[1] :])
    assert all(len(row) == 1 and row[0]["type"] == name for row in rows)
    return [row[0][name] for row in rows]


def is_same(one, other) -> bool:
    if isinstance(one, Image.Image):
        return one == other
    if isinstance(one, dict):
        return is_same(one["audio"], other["audio"]) and one["sampling_rate"] == other["sampling_rate"]
    return one.shape == other.shape and difference(torch.from_numpy(one), torch.from_numpy(other)) < 1e-5


# ---- One row --------------------------------------------------------------------------------------------------------


def test_tasks_are_ours_and_codecs_are_lent(pipes, folder):
    kinds = {"text-to-image": ours.MMTextToImagePipeline, "text-to-audio": ours.MMTextToAudioPipeline}
    for task, pipe in pipes.items():
        assert type(pipe) is kinds.get(task, ours.MMAnyToAnyPipeline)
        assert pipe.processor.written["image"].codec is pipe.model.model.image_codec
        assert pipe.model.output_modalities == ("text", "image", "audio")
    assert type(pipeline("text-to-speech", model=str(folder))) is ours.MMTextToAudioPipeline


@pytest.mark.parametrize("options", [GREEDY, {"do_sample": False, "num_beams": 2}, {"guidance_scale": 2.0, **GREEDY}])
def test_a_drawing_is_what_generate_and_decode_media_give(draw, options):
    messages = chat("Draw a red apple")
    assert draw("a red apple", **options) == direct(draw, messages, "image", **options)[0]
    assert draw(messages, **options) == draw({"text": "a red apple"}, **options) == draw("a red apple", **options)


def test_speech_is_what_generate_and_decode_media_give(say):
    spoken = say("hello there", **GREEDY)
    samples, rate = direct(say, chat("Say: hello there"), "audio", **GREEDY)[0]
    assert spoken.keys() == {"audio", "sampling_rate"} and spoken["sampling_rate"] == say.sampling_rate == rate
    assert spoken["audio"].dtype == np.float32 and np.array_equal(spoken["audio"], samples)
    by_dict = say("hello there", forward_params={"do_sample": True}, generate_kwargs=GREEDY)
    assert is_same(by_dict, spoken)


def test_prompts_are_the_ones_of_recipes_or_the_models_own(draw, say):
    assert (DEFAULT_DRAWING_PROMPT, DEFAULT_SPEECH_PROMPT) == ("Draw {text}", "Say: {text}")
    seen = []
    for pipe in (draw, say):
        ids = pipe.preprocess("{a} cat")["input_ids"][0]
        seen.append(pipe.processor.tokenizer.decode(ids))
    assert seen == [f"<|user|>{prompt}<|end|><|assistant|>" for prompt in ("Draw {a} cat", "Say: {a} cat")]
    own = draw.preprocess("a cat", prompt="{text}, please")["input_ids"][0]
    assert "a cat, please" in draw.processor.tokenizer.decode(own)
    with pytest.raises(ValueError, match=r"a prompt with \{text\} in it, got '\{name\}'"):
        draw("a cat", prompt="{name}")


def test_a_models_own_prompts_are_saved(tmp_path):
    model, processor = writing()
    set_prompts(model, drawing="Paint: {text}", speech="Speak {text}")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("text-to-image", model=str(tmp_path))
    assert (drawing_prompt(pipe.model), speech_prompt(pipe.model)) == ("Paint: {text}", "Speak {text}")
    assert "Paint: a cat" in pipe.processor.tokenizer.decode(pipe.preprocess("a cat")["input_ids"][0])


# ---- Media in the prompt --------------------------------------------------------------------------------------------


def test_media_stand_before_the_prompt_and_change_what_is_written(draw, say):
    messages = chat(image("red"), "Draw a cat")
    variation = draw("a cat", image=picture("red"), **GREEDY)
    assert variation == direct(draw, messages, "image", **GREEDY)[0]
    other = Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    drawings = [draw("a cat", **GREEDY), variation, draw("a cat", image=other, **GREEDY)]
    drawings.append(draw("a cat", audio=VOICE, **GREEDY))
    assert all(one != other for number, one in enumerate(drawings) for other in drawings[:number])
    spoken = [say("a cat", **GREEDY), say("a cat", audio=VOICE, **GREEDY), say("a cat", image=picture(), **GREEDY)]
    assert not any(is_same(one, other) for number, one in enumerate(spoken) for other in spoken[:number])
    messages = chat({"type": "audio", "audio": VOICE}, "Say: a cat")
    assert np.array_equal(spoken[1]["audio"], direct(say, messages, "audio", **GREEDY)[0][0])


def test_an_image_alone_is_a_row_of_its_own(draw):
    assert draw({"image": picture()}, **GREEDY) == direct(draw, chat(image(), "Draw"), "image", **GREEDY)[0]


# ---- Many rows ------------------------------------------------------------------------------------------------------

ROWS = [
    "a cat",
    {"text": "a dog and a bird", "image": picture("red")},
    {"text": "hello", "audio": VOICE},
    chat(image("green"), image("blue"), "Draw both of them"),
]


@pytest.mark.parametrize("task", TASKS[:2])
def test_a_batch_gives_what_its_rows_give_alone(pipes, task):
    pipe, rows = pipes[task], ROWS
    alone = [pipe(row, **GREEDY) for row in rows]
    for answers in (
        pipe(rows, batch_size=4, **GREEDY),
        pipe((row for row in rows), batch_size=3, **GREEDY),
        pipe(KeyDataset([{"x": row} for row in rows], "x"), batch_size=2, **GREEDY),
    ):
        assert all(is_same(one, other) for one, other in zip(answers, alone, strict=True))


def test_lists_of_texts_and_media_go_together(draw):
    pictures = [picture("red"), picture("blue")]
    drawn = draw(["a cat", "a dog"], image=pictures, **GREEDY)
    pairs = zip(["a cat", "a dog"], pictures, strict=True)
    assert drawn == [draw(words, image=shown, **GREEDY) for words, shown in pairs]
    with pytest.raises(ValueError, match=r"lists of one length for texts and media, got 2 \(text\), 1 \(image\)"):
        draw(["a cat", "a dog"], image=pictures[:1])


def test_several_images_of_each_prompt(draw):
    options = {"do_sample": True, "num_images_per_prompt": 3}
    assert [len(images) for images in draw(["a cat", "a dog"], batch_size=2, **options)] == [3, 3]
    torch.manual_seed(5)
    images = draw("a cat", **options)
    torch.manual_seed(5)
    assert images == direct(draw, chat("Draw a cat"), "image", do_sample=True, num_return_sequences=3)
    assert images[0] != images[1]
    with pytest.raises(ValueError, match="num_images_per_prompt or num_return_sequences"):
        draw("a cat", num_images_per_prompt=2, num_return_sequences=2)


# ---- Seeds ----------------------------------------------------------------------------------------------------------


def test_drawings_are_sampled_and_a_seed_repeats_them(draw):
    torch.manual_seed(3)
    one = draw("a cat")
    torch.manual_seed(3)
    assert one == direct(draw, chat("Draw a cat"), "image", do_sample=True)[0]
    assert one != draw("a cat")


@pytest.mark.parametrize("task", TASKS[:2])
def test_a_generator_seeds_a_call_and_leaves_other_random_numbers_alone(pipes, task):
    pipe = pipes[task]
    sampled = {"do_sample": True, "temperature": 3.0}
    torch.manual_seed(11)
    expected = pipe("a cat", **sampled)
    torch.manual_seed(4)
    untouched = torch.rand(1)
    torch.manual_seed(4)
    generator = torch.Generator().manual_seed(11)
    first = pipe("a cat", generator=generator, **sampled)
    assert torch.rand(1) == untouched
    second = pipe("a cat", generator=generator, **sampled)  # it goes on
    assert is_same(first, expected) and not is_same(second, first)
    again = pipe(["a cat"], generator=torch.Generator().manual_seed(11), **sampled)[0]
    assert is_same(again, first)


def test_a_generator_of_another_device_is_refused():
    with (
        pytest.raises(
            ValueError, match=r"the generator is on cpu, but the model on meta: pass torch\.Generator\('meta'"
        ),
        drawing_from(torch.Generator(), torch.device("meta")),
    ):
        pass


# ---- Lengths --------------------------------------------------------------------------------------------------------


def test_an_image_has_room_whatever_the_model_sets_for_texts(folder):
    pipe = pipeline("text-to-image", model=str(folder))
    pipe.model.generation_config.max_new_tokens = 5
    assert pipe("a cat", **GREEDY).size == (16, 16)
    assert pipe("a cat", max_new_tokens=11, **GREEDY).size == (16, 8)  # the start, and 10 of 4 x 4 codes
    with pytest.raises(ValueError, match=r"Row 0 has no image that can be decoded\. Raise max_new_tokens"):
        pipe("a cat", max_new_tokens=3)
    kept = pipeline("text-to-image", model=str(folder), max_new_tokens=11)
    assert kept("a cat", **GREEDY).size == (16, 8)


def test_speech_is_thirty_seconds_at_most_unless_told(say, monkeypatch):
    given = []
    generate = say.model.generate
    monkeypatch.setattr(say.model, "generate", lambda **kwargs: given.append(kwargs) or generate(**kwargs))
    say("a cat", **GREEDY)
    codec = say.processor.written["audio"].codec
    assert given[0]["max_new_tokens"] == round(30 * codec.rate) * 4 + 3
    say("a cat", max_new_tokens=15, **GREEDY)
    assert given[1]["max_new_tokens"] == 15


# ---- Chunks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS[1:])
def test_chunks_of_a_stream_are_what_a_call_gives(say, row):
    whole = say(row, **GREEDY)["audio"]
    step = 1 / say.processor.written["audio"].codec.rate
    assert is_same(np.concatenate(list(say.stream(row, chunk_seconds=step, **GREEDY))), whole)


def test_a_stream_that_nobody_reads_on_ends_and_errors_are_raised(say, monkeypatch):
    step = 1 / say.processor.written["audio"].codec.rate
    seen = []
    monkeypatch.setattr(say, "postprocess", lambda outputs: seen.append(outputs["tokens"].shape[-1]))
    tokens = say.processor.written["audio"].tokens
    endless = {"suppress_tokens": list(range(*tokens.range_of(1))), "max_new_tokens": 200, "do_sample": True}
    with pytest.raises(ValueError, match="model_kwargs"):
        list(say.stream("hello", chunk_seconds=step, nonsense=3))
    stream = say.stream("hello", chunk_seconds=step, **{**endless, "suppress_tokens": None})
    next(stream)
    stream.close()
    assert seen and seen[0] < 200


# ---- Any to any -----------------------------------------------------------------------------------------------------


def test_any_to_any_writes_one_modality(pipes):
    pipe, messages = pipes["any-to-any"], chat(image(), "Draw a cat")
    record = pipe(messages, generation_mode="image", **GREEDY)[0]
    assert record.keys() == {"input_text", "generated_image"} and record["input_text"] == messages
    assert record["generated_image"] == direct(pipe, messages, "image", **GREEDY)[0]
    record = pipe(messages, generation_mode="audio", **GREEDY)[0]
    samples, rate = direct(pipe, messages, "audio", **GREEDY)[0]
    assert record["sampling_rate"] == rate and np.array_equal(record["generated_audio"], samples)
    written = pipe(messages, generation_mode="text", max_new_tokens=5, return_full_text=False, **GREEDY)
    assert written == pipe(messages, max_new_tokens=5, return_full_text=False, **GREEDY)
    assert isinstance(written[0]["generated_text"], str)


def test_any_to_any_of_rows_and_of_several_answers(pipes):
    pipe = pipes["any-to-any"]
    rows = [chat("Draw a cat"), chat(image(), "Draw it")]
    alone = [pipe(row, generation_mode="image", **GREEDY)[0]["generated_image"] for row in rows]
    together = pipe(rows, generation_mode="image", batch_size=2, **GREEDY)
    assert [records[0]["generated_image"] for records in together] == alone
    several = pipe(rows[0], generation_mode="image", num_return_sequences=2, do_sample=True)
    assert [record["generated_image"].size for record in several] == [(16, 16)] * 2
    plain = pipe("<|image|>Draw a cat", images=picture(), generation_mode="image", **GREEDY)[0]
    assert plain["input_text"] == "<|image|>Draw a cat" and plain["generated_image"].size == (16, 16)


def test_any_to_any_writes_parts(pipes):
    pipe, messages = pipes["any-to-any"], chat(image(), "Draw a cat")
    outputs = {"output_modalities": ("image",)}
    [record] = pipe(messages, max_new_tokens=25, **outputs, **GREEDY)
    assert [part["type"] for part in record["generated_parts"]] == ["image"]
    assert record["generated_parts"][0]["image"] == direct(pipe, messages, "image", **GREEDY)[0]
    begun = [*messages, {"role": "assistant", "content": [text("a cat")]}]
    [record] = pipe(begun, output_modalities=("text",), max_new_tokens=4, min_new_tokens=4, **GREEDY)
    assert [part["type"] for part in record["generated_parts"]] == ["text"]
    with pytest.raises(ValueError, match="not both"):
        pipe(messages, output_modalities=("text",), generation_mode="text")


def test_any_to_any_keeps_what_it_was_made_with(folder):
    messages = chat(image(), "Draw a cat")
    pipe = pipeline("any-to-any", model=str(folder), generation_mode="image")
    assert pipe(messages, **GREEDY)[0].keys() == {"input_text", "generated_image"}
    assert "generated_text" in pipe(messages, generation_mode="text", max_new_tokens=2)[0]
    pipe = pipeline("any-to-any", model=str(folder), output_modalities=("image",))
    assert pipe(messages, **GREEDY)[0].keys() == {"input_text", "generated_parts"}
    with pytest.raises(ValueError, match="not both"):
        pipeline("any-to-any", model=str(folder), output_modalities=("image",), generation_mode="image")


def test_an_image_that_was_drawn_before_is_not_what_is_drawn_now(pipes):
    pipe = pipes["any-to-any"]
    first = pipe(chat("Draw a cat"), generation_mode="image", **GREEDY)[0]["generated_image"]
    answer = {"role": "assistant", "content": [{"type": "image", "image": first}]}
    messages = [*chat("Draw a cat"), answer, *chat("and a dog")]
    assert pipe(messages, generation_mode="image", **GREEDY)[0]["generated_image"] == direct(
        pipe, messages, "image", **GREEDY
    )[0]  # fmt: skip


# ---- The guide ------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_guide_run(folder, pipes, tmp_path, monkeypatch):
    guide = (Path(__file__).resolve().parents[2] / "modeling_mm" / "README.md").read_text(encoding="utf-8")
    codes = [code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "play(samples)" in code]
    monkeypatch.chdir(tmp_path)
    soundfile.write("voice.wav", *VOICE)
    played: list = []
    pipe, messages = pipes["any-to-any"], chat("Say: hello")
    names = {"folder": str(folder), "chat": messages, "play": played.append, "pipeline": pipeline, "torch": torch}
    names |= {"processor": pipe.processor, "model": pipe.model, "inputs": inputs_of(pipe, messages), "Thread": Thread}
    for code in codes:
        played.clear()
        exec(compile(code, "README.md", "exec"), names)
        assert played and all(samples.dtype == np.float32 for samples in played)
    assert len(codes) == 2 and Image.open("apple.png").size == (16, 16)
    assert names["spoken"]["sampling_rate"] == pipes["text-to-audio"].sampling_rate


# ---- What cannot be -------------------------------------------------------------------------------------------------


def test_a_model_without_the_codec_is_refused_with_the_remedy():
    model, processor = seeing()
    remedy = r"without a codec of {}: give it one by `processor\.add_codec\(codec\)` and `model\.add_codec"
    for task, name in (("text-to-image", "image"), ("text-to-audio", "audio")):
        with pytest.raises(ValueError, match=remedy.format(name)):
            pipeline(task, model=model, processor=processor, tokenizer=processor.tokenizer)
    pipe = pipeline("any-to-any", model=model, processor=processor)
    with pytest.raises(ValueError, match=remedy.format("image")):
        pipe(chat("Draw a cat"), generation_mode="image")
    with pytest.raises(ValueError, match=r"output_modalities has 'image', but this model writes text"):
        pipe(chat("Draw a cat"), output_modalities=("text", "image"))


def test_rows_and_options_of_no_meaning_are_refused(pipes):
    for task in TASKS[:2]:
        with pytest.raises(ValueError, match="expected a text, a chat, or a dict"):
            pipes[task]({"text": 3})
        with pytest.raises(ValueError, match="expected a text, a chat, or a dict"):
            pipes[task]({})
        with pytest.raises(ValueError, match="keys among text, image, audio"):
            pipes[task]({"text": "a cat", "picture": picture()})
        with pytest.raises(ValueError, match="nonsense"):
            pipes[task]("a cat", nonsense=3)
    with pytest.raises(ValueError, match="generation_mode"):
        pipes["any-to-any"](chat("a cat"), generation_mode="video")


def test_every_pipeline_runs_in_bfloat16(folder):
    for task, options in (("text-to-image", {}), ("text-to-audio", {"max_new_tokens": 20})):
        pipe = pipeline(task, model=str(folder), dtype=torch.bfloat16)
        assert pipe.model.dtype == torch.bfloat16
        one, other = pipe(["a cat", "a cat"], batch_size=2, **GREEDY, **options)
        assert is_same(one, other)


def test_other_models_get_the_stock_pipeline(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "vocab_size": 38}
    more = {"flow_size": 16, "spectrogram_bins": 9, "upsample_initial_channel": 16, "upsample_rates": [4, 4],
            "upsample_kernel_sizes": [8, 8], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]],
            "depth_separable_num_layers": 1, "prior_encoder_num_flows": 1, "wavenet_dilation_rate": 1,
            "duration_predictor_num_flows": 1, "duration_predictor_filter_channels": 16,
            "prior_encoder_num_wavenet_layers": 1, "posterior_encoder_num_wavenet_layers": 1,
            "speaker_embedding_size": 0}  # fmt: skip
    letters = "abcdefghijklmnopqrstuvwxyz ',-?.!"
    vocabulary = {character: number for number, character in enumerate(["<unk>", *letters])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = VitsTokenizer(str(tmp_path / "vocab.json"), phonemize=False, pad_token=" ")
    model = VitsModel(VitsConfig(**{**sizes, **more}))
    pipe = pipeline("text-to-audio", model=model, tokenizer=tokenizer)
    assert type(pipe) is TextToAudioPipeline
    for part in ("processor", "tokenizer", "feature_extractor", "image_processor"):  # `pipeline` asks before it knows
        assert getattr(ours.MMTextToAudioPipeline, f"_load_{part}") == getattr(TextToAudioPipeline, f"_load_{part}")
