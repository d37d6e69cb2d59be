"""MMProcessor: what comes out for every form of input, what is refused and how, the chat template, saving."""

import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # not guarded in any version
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_mm.audio import count_frames
from modeling_mm.batching import pad_rows
from modeling_mm.configuration_mm import SPECIAL_TOKENS
from modeling_mm.modalities import MODALITIES
from modeling_mm.processing_mm import MMProcessor
from tests.fakes.processor_parts import (
    RATE,
    ids,
    make,
    make_bpe,
    make_vit,
    make_whisper,
    make_wordpiece,
    picture,
    sound,
)
from tests.fakes.quick_python import BARE_PYTHON
from tests.fakes.radar import RADAR

ROOT = Path(__file__).resolve().parents[1]
PAIR = " tokens in the prompts should be the same as the number of "


@pytest.fixture(scope="module")
def processor() -> MMProcessor:
    return make()


# What comes out


def test_shapes_masks_and_order(processor):
    """Rows with two images and no audio, none of either, and an image with audio of 2.5 windows."""
    out = processor(
        text=["<|image|> and <|image|>", "hello", "<|audio|>hello<|image|>"],
        images=[[picture("red"), picture("blue", (1, 1))], [], [picture("lime")]],
        audio=[None, None, [sound(2.5)]],
        return_tensors="pt",
    )
    assert list(out) == processor.model_input_names == [
        "input_ids", "attention_mask", "pixel_values", "image_mask", "input_features", "feature_attention_mask",
    ]  # fmt: skip
    assert out.pixel_values.shape == (3, 2, 3, 8, 8) and out.input_features.shape == (3, 3, 8, 100)
    assert out.image_mask.tolist() == [[True, True], [False, False], [True, False]]
    assert out.feature_attention_mask.sum(-1).tolist() == [[0, 0, 0], [0, 0, 0], [100, 100, 50]]
    assert out.pixel_values[~out.image_mask].abs().sum() == 0 and out.input_features[:2].abs().sum() == 0
    # Normalised to [-1, 1]: red, blue, lime in their places.
    assert out.pixel_values[0, 0, :, 0, 0].tolist() == [1, -1, -1]
    assert out.pixel_values[0, 1, :, 0, 0].tolist() == [-1, -1, 1]
    assert out.pixel_values[2, 0, :, 0, 0].tolist() == [-1, 1, -1]
    for row, text in enumerate(["<|image|> and <|image|>", "hello", "<|audio|><|audio|><|audio|>hello<|image|>"]):
        expected = ids(processor, text)
        assert out.input_ids[row][out.attention_mask[row].bool()].tolist() == expected


def test_values_equal_those_of_the_parts(processor):
    samples, _ = sound(0.7)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8))
    out = processor(text="hello", images=image, audio=(samples, RATE), return_tensors="pt")
    expected = processor.image_processor(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(out.pixel_values, expected[None])
    expected = processor.feature_extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
    torch.testing.assert_close(out.input_features, expected[None])


@pytest.mark.parametrize("kind, container", [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_return_tensors(processor, kind, container):
    text, images = ["<|image|>hello", "<|image|>a"], [[picture()], [picture()]]
    out = processor(text=text, images=images, audio=None, return_tensors=kind)
    assert {name: type(value) for name, value in out.items()} == dict.fromkeys(out, container)
    assert [tuple(np.shape(row)) for row in out["pixel_values"]] == [(1, 3, 8, 8)] * 2


def test_keys_of_absent_modalities_are_absent(processor):
    assert list(processor(text=["a", "a cat"], images=[[], None], audio=[], return_tensors="pt")) == [
        "input_ids",
        "attention_mask",
    ]


def test_raw_waves_and_ast():
    samples = [[sound(0.5)], [sound(0.25), sound(0.1)]]
    raw = MMProcessor(None, Wav2Vec2FeatureExtractor(), make_bpe())
    out = raw(text=["a", "a"], audio=samples, return_tensors="pt")
    assert list(out) == raw.model_input_names and out.input_values.shape == (2, 2, 8000)
    assert out.feature_attention_mask.sum(-1).tolist() == [[8000, 0], [4000, 1600]]
    ast = MMProcessor(None, ASTFeatureExtractor(num_mel_bins=16, max_length=30), make_bpe())
    out = ast(text=["a", "a"], audio=samples, return_tensors="pt")
    assert list(out) == ast.model_input_names and out.input_values.shape == (2, 2, 30, 16)
    frames = [[30, count_frames(8000 - 5040, RATE)], [count_frames(4000, RATE), count_frames(1600, RATE)]]
    assert out.feature_attention_mask.sum(-1).tolist() == frames  # half a second takes two windows of 30 frames
    assert out.input_ids.tolist() == [ids(ast, "<|audio|><|audio|>a")] * 2


def test_audio_window_seconds():
    raw = MMProcessor(None, Wav2Vec2FeatureExtractor(), make_bpe(), audio_window_seconds=0.2)
    out = raw(text="<|audio|>", audio=sound(0.5), return_tensors="pt")
    assert out.input_values.shape == (1, 3, 3200) and out.feature_attention_mask.sum(-1).tolist() == [
        [3200, 3200, 1600]
    ]
    with pytest.raises(ValueError, match=r"`audio_window_seconds` must be at least 0.025, got 0"):
        make(audio_window_seconds=0)


# Placeholders and rows


def test_placeholders_go_in_front_of_a_text_without_any(processor):
    out = processor(text="hello", images=[picture(), picture()], audio=[sound(1.5), sound()], return_tensors="pt")
    assert out.input_ids.tolist() == [ids(processor, "<|image|><|image|><|audio|><|audio|><|audio|>hello")]
    assert out.feature_attention_mask.sum(-1).tolist() == [[100, 50, 50]]


def test_placeholders_alone_are_the_text_of_media_without_any(processor):
    out = processor(images=[picture(), picture()], audio=[[sound()], []], return_tensors="pt")
    assert [processor.decode(row) for row in out.input_ids] == ["<|image|><|audio|>", "<|pad|><|image|>"]
    assert out.pixel_values.shape == (2, 1, 3, 8, 8)
    assert processor(images=[[picture(), picture()]]).input_ids == [[processor.image_token_id] * 2]
    assert processor(audio=sound(2)).input_ids == [[processor.audio_token_id] * 2]


def test_flat_lists_follow_the_placeholders(processor):
    colors = [picture("red"), picture("lime"), picture("blue")]
    out = processor(text=["<|image|>", "a", "<|image|>a<|image|>"], images=colors, return_tensors="pt")
    assert out.image_mask.sum(-1).tolist() == [1, 0, 2]
    assert out.pixel_values[2, 1, :, 0, 0].tolist() == [-1, -1, 1]
    one_each = processor(text=["a", "a", "a"], images=colors, return_tensors="pt")
    assert one_each.image_mask.sum(-1).tolist() == [1, 1, 1]
    out = processor(text=["<|audio|>", "a", "<|audio|>"], audio=[sound(), sound(2)], return_tensors="pt")
    assert out.feature_attention_mask.sum(-1).tolist() == [[50, 0], [0, 0], [100, 100]]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"text": "a<|image|>"}, "Row 0: .*has 1 and 0 were given. Write one <|image|>"),
        ({"text": ["a", "a <|audio|>"]}, "Row 1: .*<|audio|>.* the text has 1 and 0 were given"),
        ({"text": ["a", "<|image|>"], "images": [[], [1, 2]]}, "Row 1: .*the text has 1 and 2 were given"),
        (
            {"text": ["<|image|>", "a"], "images": [[1], []], "audio": [[2], []]},
            "Row 0: .*audio.* has 0 and 1 was given",
        ),
        (
            {"text": ["a", "b"], "images": [[1], [1], [1]]},
            "has 2 rows and the images are given for 3; .*one list for each",
        ),
        (
            {"text": ["a", "b"], "images": [1, 2, 3]},
            "not clear which of the 2 rows .* 3 were given in a flat list. Nest",
        ),
        ({"text": ["<|image|>", "b"], "images": [1, 2]}, r"not clear which.*has \[1, 0\] and 2 were given"),
        ({"images": [1, 2], "audio": ["a"]}, "{'images': 2, 'audio inputs': 1}; nest all lists"),
        ({"text": ["a", 5]}, "row 1 is of type int"),
        ({"text": [["a"]]}, "row 0 is of type list"),
        ({}, "nothing to process: pass `text`, `images` or `audio`"),
        ({"text": []}, "nothing to process"),
        ({"text": "a", "videos": [1]}, "Row 0, item 0 of its videos: expected a path, .* got an object of type int"),
        ({"text": "a", "audios": [1]}, "takes `audio`, not `audios`"),
        ({"text": "a", "audio": "x", "audio_kwargs": {"max_length": 5}}, "`max_length` in `audio_kwargs` would cut"),
    ],
)
def test_what_does_not_fit_together_is_refused(processor, inputs, message):
    with pytest.raises(ValueError, match=message.replace("<|", r"<\|").replace("|>", r"\|>")):
        processor(**inputs, return_tensors="pt")


def test_mismatches_are_worded_as_transformers_words_them(processor):
    for inputs in ({"text": ["a"], "images": [[picture()], []]}, {"text": ["<|image|>", "a"], "images": [1, 2, 3]}):
        with pytest.raises(ValueError, match=PAIR):
            processor(**inputs)


def test_a_modality_that_the_processor_lacks_is_refused():
    text_only = make(vision=False, audio=False)
    with pytest.raises(ValueError, match="Row 1 has 1 images, but this processor has no `image_processor`"):
        text_only(text=["a", "a"], images=[[], [picture()]])
    with pytest.raises(ValueError, match="Row 0 has 2 audio inputs, but this processor has no `feature_extractor`"):
        text_only(text="a", audio=[sound(), sound()])
    with pytest.raises(ValueError, match="the text has 1 and 0 were given"):
        text_only(text="<|audio|>")
    assert text_only(text="hello").input_ids == [ids(text_only, "hello")]


def test_broken_media_are_refused_with_their_row(processor, tmp_path):
    half = tmp_path / "half.png"
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
    half.write_bytes(buffer.getvalue()[:4000])
    with pytest.raises(
        ValueError, match=r"Row 1, item 0 of its images: .*half.png': the image is damaged or cut short"
    ):
        processor(text=["a", "a"], images=[[picture()], [half]])
    with pytest.raises(ValueError, match="Row 0, item 1 of its audio inputs: the audio holds no samples"):
        processor(text="a", audio=[sound(), (np.zeros(0), RATE)])
    with pytest.raises(ValueError, match="Row 2, item 0 of its audio inputs: 1 of 2 samples are NaN or infinite"):
        processor(text=["a"] * 3, audio=[None, [], [(np.array([0, np.inf]), RATE)]])


def test_decompression_bomb_names_row_and_limit(processor, monkeypatch):
    buffer = io.BytesIO()
    picture(size=(40, 40)).save(buffer, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"Row 0, item 0 of its images: .*MAX_IMAGE_PIXELS` \(now 100\)"):
        processor(text="a", images=buffer.getvalue())


def test_an_image_processor_that_makes_no_single_array_is_refused(processor):
    class Tiles(ViTImageProcessorPil):
        def __call__(self, images, **kwargs):
            return {"pixel_values": torch.zeros(len(images), 5, 3, 8, 8)}

    with pytest.raises(ValueError, match=r"Tiles makes pixel values of shape \(1, 5, 3, 8, 8\) of 1 images"):
        MMProcessor(Tiles(), None, make_bpe())(text="a", images=picture())


def test_a_modality_of_another_table_is_laid_out_expanded_and_padded(monkeypatch):
    """It needs its row in the table, and of a processor the method that makes its tensors."""
    monkeypatch.setitem(MODALITIES, "radar", RADAR)

    class RadarProcessor(MMProcessor):
        radar_processor = SimpleNamespace(model_input_names=["echoes"])

        def _process_radar(self, rows, options):
            echoes = torch.stack([item for items in rows for item in items])
            return {"echoes": pad_rows(echoes, list(map(len, rows)))}, [[2] * len(items) for items in rows]

    processor = RadarProcessor(make_vit(), None, make_bpe())
    assert "echoes" in processor.model_input_names and processor.tokenizer.radar_token == "<|radar|>"
    text = ["a<|radar|><|image|>", "b<|radar|>"]
    out = processor(text=text, images=[picture()], radars=[torch.ones(3, 2), torch.zeros(3, 2)], return_tensors="pt")
    assert out.echoes.shape == (2, 1, 3, 2) and out.echoes.sum((1, 2, 3)).tolist() == [6, 0]
    assert processor.decode(out.input_ids[0]) == "a<|radar|><|radar|><|image|>"
    rows = [{name: values[row] for name, values in out.items()} for row in range(2)]
    assert processor.pad(rows).echo_mask.sum(-1).tolist() == [[3], [3]]
    with pytest.raises(ValueError, match="the text has 1 and 0 were given"):
        processor(text="<|radar|>")


# Sampling rates


def test_rates_are_converted(processor):
    """A rate of 8 kHz, however it is said, doubles the samples: half a second is 50 frames."""
    samples = np.zeros(4000, np.float32)
    for call in (
        {"audio": (samples, 8000)},
        {"audio": {"array": samples, "sampling_rate": 8000}},
        {"audio": samples, "sampling_rate": 8000},
        {"audio": [samples], "audio_kwargs": {"sampling_rate": 8000}},
    ):
        assert processor(text="a", **call, return_tensors="pt").feature_attention_mask.sum() == 50
    assert processor(text="a", audio=samples, return_tensors="pt").feature_attention_mask.sum() == 25
    with pytest.raises(ValueError, match="expected a positive sampling rate in Hz, got -1"):
        processor(text="a", audio=samples, audio_kwargs={"sampling_rate": -1})


def test_text_options_do_not_reach_the_sound(processor):
    out = processor(text="a", audio=sound(), padding="max_length", max_length=20, truncation=True, return_tensors="pt")
    assert out.input_ids.shape == (1, 20) and out.feature_attention_mask.sum() == 50


# Options of the parts


def test_scaled_floats_and_other_image_options(processor):
    array = np.full((8, 8, 3), -0.25, np.float32)
    out = processor(
        text="a", images=[array], do_rescale=False, do_normalize=False, do_resize=False, return_tensors="pt"
    )
    assert (out.pixel_values == -0.25).all()
    out = processor(text="a", images=picture(), images_kwargs={"do_normalize": False}, return_tensors="pt")
    assert out.pixel_values[0, 0, :, 0, 0].tolist() == [1, 0, 0]
    ambiguous = np.zeros((3, 8, 3), np.uint8)
    ambiguous[0] = 255
    out = processor(text="a", images=[ambiguous], input_data_format="channels_first", return_tensors="pt")
    assert out.pixel_values[0, 0, :, 0, 0].tolist() == [1, -1, -1]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 9), (9, 3)])
def test_thin_images_keep_their_channels(processor, size):
    out = processor(text="a", images=picture("red", size), return_tensors="pt")
    assert out.pixel_values[0, 0].flatten(1).unique(dim=1).tolist() == [[1], [-1], [-1]]


def test_padding(processor):
    text = ["a", "a cat, a dog and a bird"]
    lengths = [len(ids(processor, sample)) for sample in text]
    assert [len(row) for row in processor(text=text).input_ids] == lengths
    left = [0] * (lengths[1] - lengths[0]) + [1] * lengths[0]
    assert processor(text=text, return_tensors="pt").attention_mask[0].tolist() == left
    out = processor(text=text, return_tensors="pt", padding_side="right")
    assert out.attention_mask[0].tolist() == left[::-1]
    assert processor(text=text, padding="max_length", max_length=40, return_tensors="pt").input_ids.shape == (2, 40)


def test_the_tokenizers_own_side_wins_and_is_kept(tmp_path):
    tokenizer = make_bpe()
    assert MMProcessor(tokenizer=tokenizer).tokenizer.padding_side == "left"  # for generation, as it was told nothing
    tokenizer.padding_side = "right"
    MMProcessor(tokenizer=tokenizer).save_pretrained(tmp_path)
    assert MMProcessor.from_pretrained(tmp_path).tokenizer.padding_side == "right"


def test_truncation_must_not_cut_placeholders_away(processor):
    text = ["hello", "a cat, a dog <|image|>"]
    call = {"images": [[], [picture()]], "truncation": True, "return_tensors": "pt"}
    with pytest.raises(ValueError, match=r"Row 1: its text has 1 <\|image\|> tokens, of which truncation left 0"):
        processor(text=text, max_length=4, **call)
    assert processor(text=["hello", "<|image|>a cat, a dog"], max_length=4, **call).input_ids.shape == (2, 4)
    long = [(np.zeros(5 * RATE), RATE)]
    with pytest.raises(ValueError, match=r"Row 0: its text has 5 <\|audio\|> tokens, of which truncation left 3"):
        processor(text="<|audio|>", audio=long, truncation=True, max_length=3, return_tensors="pt")


# Tokenizers


def test_special_tokens_have_fixed_order_and_names(processor):
    size = len(make_bpe())
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(size, size + 7))
    assert (tokenizer.image_token, tokenizer.audio_token, tokenizer.end_token) == ("<|image|>", "<|audio|>", "<|end|>")
    assert (tokenizer.image_token_id, tokenizer.pad_token) == (size, "<|pad|>")
    assert (processor.image_token, processor.image_token_id) == ("<|image|>", size)
    assert (processor.audio_token, processor.audio_token_id) == ("<|audio|>", size + 1)
    assert tokenizer.decode(range(size, size + 7), skip_special_tokens=True) == ""
    MMProcessor(tokenizer=tokenizer)  # adds nothing to a tokenizer that has them
    assert len(tokenizer) == size + 7


def test_a_padding_token_is_kept():
    tokenizer = make_wordpiece()
    size = len(tokenizer)
    MMProcessor(tokenizer=tokenizer)
    assert (len(tokenizer), tokenizer.pad_token) == (size + 6, "[PAD]")


def test_a_tokenizer_without_a_token_for_the_end_gets_ours(tmp_path):
    """TRL masks what follows it; folders that were saved without it get it when they are loaded."""
    assert make().tokenizer.eos_token == "<|endoftext|>"
    processor = MMProcessor(tokenizer=make_wordpiece())
    assert processor.tokenizer.eos_token_id == processor.tokenizer.end_token_id
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings.pop("eos_token") == "<|end|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert MMProcessor.from_pretrained(tmp_path).tokenizer.eos_token == "<|end|>"
    released = json.loads((ROOT / "model_cards/mm-whisper-tiny/tokenizer_config.json").read_text())
    assert released["eos_token"] == "<|endoftext|>"  # Whisper's


# Parts, saving, decoding


@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("audio", [True, False])
def test_round_trip(tmp_path, vision, audio):
    saved = make(vision, audio, audio_window_seconds=7.5)
    saved.save_pretrained(tmp_path)
    loaded = MMProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved.to_dict() and loaded.audio_window_seconds == 7.5
    assert loaded.chat_template == saved.chat_template and (tmp_path / "chat_template.jinja").is_file()
    assert (loaded.image_processor is None, loaded.feature_extractor is None) == (not vision, not audio)
    assert loaded.model_input_names == saved.model_input_names
    assert loaded.tokenizer.get_vocab() == saved.tokenizer.get_vocab()
    assert (loaded.tokenizer.image_token_id, loaded.image_token_id) == (saved.image_token_id, saved.image_token_id)
    content = [*[{"type": "image", "image": picture()}] * vision, *[{"type": "audio", "audio": sound()}] * audio]
    turns = [{"role": "user", "content": [*content, {"type": "text", "text": "hello"}]}]
    before, after = (
        each.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
        for each in (saved, loaded)
    )
    assert set(before) == set(after)
    for name in before:
        assert torch.equal(before[name], after[name]), name
    repr(loaded)


def test_a_changed_template_is_saved(tmp_path):
    make(chat_template="{{ messages[0].content }}").save_pretrained(tmp_path)
    assert MMProcessor.from_pretrained(tmp_path).chat_template == "{{ messages[0].content }}"


def test_parts_can_be_given_while_loading(tmp_path):
    make(vision=False).save_pretrained(tmp_path)
    loaded = MMProcessor.from_pretrained(tmp_path, image_processor=make_vit())
    assert loaded(text="a", images=picture(), return_tensors="pt").pixel_values.shape == (1, 1, 3, 8, 8)


def test_from_text_vision_audio_pretrained(tmp_path):
    tokenizer, vision, audio = make_bpe(), CLIPImageProcessorPil(size=8, crop_size=8), make_whisper()
    for name, part in (("text", tokenizer), ("vision", vision), ("audio", audio)):
        part.save_pretrained(tmp_path / name)
    by_path = MMProcessor.from_text_vision_audio_pretrained(
        str(tmp_path / "text"), tmp_path / "vision", str(tmp_path / "audio"), audio_window_seconds=3
    )
    in_memory = MMProcessor.from_text_vision_audio_pretrained(make_bpe(), vision, audio, audio_window_seconds=3)
    assert by_path.to_dict() == in_memory.to_dict() and by_path.audio_window_seconds == 3
    assert by_path.tokenizer.get_vocab() == in_memory.tokenizer.get_vocab()
    assert type(by_path.image_processor) is CLIPImageProcessorPil  # torchvision is not needed
    whole = MMProcessor.from_text_vision_audio_pretrained(in_memory, in_memory, in_memory)
    assert (whole.image_processor, whole.feature_extractor, whole.tokenizer) == (vision, audio, in_memory.tokenizer)
    text_only = MMProcessor.from_text_vision_audio_pretrained(make_bpe())
    assert (text_only.image_processor, text_only.feature_extractor) == (None, None)


def test_halves_of_other_processors_are_taken():
    whisper = WhisperProcessor.__new__(WhisperProcessor)  # its own tokenizer needs files that are not there
    whisper.feature_extractor = make_whisper()
    assert MMProcessor.from_text_vision_audio_pretrained(make_bpe(), None, whisper).feature_extractor is (
        whisper.feature_extractor
    )


def test_wrong_parts_are_refused():
    with pytest.raises(ValueError, match="MMProcessor needs a `tokenizer`"):
        MMProcessor(image_processor=make_vit())
    with pytest.raises(TypeError, match="WhisperFeatureExtractor for argument image_processor"):
        MMProcessor(make_whisper(), make_vit(), make_bpe())
    with pytest.raises(TypeError, match="colour"):
        make(colour=1)


def test_image_processor_without_torchvision(tmp_path):
    make().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ViTImageProcessorPil


def test_decoding(processor):
    tokens = torch.tensor([ids(processor, "<|image|>a cat<|end|>"), ids(processor, "<|image|>a dog<|end|>")])
    expected = ["a cat", "a dog"]
    assert processor.batch_decode(tokens, skip_special_tokens=True) == expected
    assert processor.post_process_image_text_to_text(tokens) == expected
    assert processor.post_process_multimodal_output(tokens) == expected


def test_num_multimodal_tokens(processor):
    counts = processor._get_num_multimodal_tokens(
        image_sizes=[(5, 5), (900, 2)], audio_lengths=[1, RATE, 2 * RATE + 1]
    )
    assert (counts.num_image_tokens, counts.num_audio_tokens) == ([1, 1], [1, 1, 3])


def test_saved_folder_loads_as_remote_code(tmp_path):
    """In a process that cannot import `modeling_mm`, where the loader copies the modules but not the template."""
    make().save_pretrained(tmp_path / "saved")
    script = """if True:
        import sys
        from transformers.models.auto.processing_auto import AutoProcessor
        processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
        assert type(processor).__module__.startswith("transformers_modules")
        assert "modeling_mm" not in sys.modules
        print(processor.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True))
    """
    result = subprocess.run(
        [BARE_PYTHON, "-c", script, str(tmp_path / "saved")],
        cwd=tmp_path,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "<|user|>hello<|end|><|assistant|>"


def test_same_before_and_after_saving(tmp_path):
    saved = make()
    before = saved.to_dict()
    saved.save_pretrained(tmp_path)
    assert saved.to_dict()["auto_map"] == before["auto_map"] == {"AutoProcessor": "processing_mm.MMProcessor"}
    assert MMProcessor.from_pretrained(tmp_path).to_dict() == saved.to_dict()
