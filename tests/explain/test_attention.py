"""Patches and moments that a word attended to: the pure functions exactly, then a real answer and its figure."""

import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mm.cross_attention import CrossAttentionGroup
from modeling_mm.data import turn_text
from modeling_mm.explain import Band, Explanation, Places, answer_attention, draw, read_band, save
from modeling_mm.explain.attention import check_explainable, item_columns, mean_weights, to_places
from modeling_mm.explain.figure import envelope, scaled
from modeling_mm.explain.places import patch_grid
from modeling_mm.explain.words import group_words, token_texts
from modeling_mm.modalities import MODALITIES
from modeling_mm.outputs import MMMediaOutput
from scripts.workshop.from_scratch import small_model, small_processor, train_tokenizer
from tests.fakes.quick_python import BARE_PYTHON
from tests.fakes.sample_rows import sample_rows


@pytest.fixture(scope="module")
def fresh():
    samples = sample_rows()
    processor = small_processor(turn_text(turn) for sample in samples for turn in sample.messages)
    model = small_model(processor)
    model.set_attn_implementation("eager")
    # A model with random weights says anything, so it is let say words alone.
    speechless = [i for i in range(len(processor.tokenizer)) if not processor.decode([i]).isalpha()]
    model.generation_config.suppress_tokens = speechless
    return model, processor, samples


def media() -> MMMediaOutput:
    """One row: an image of a class token and 2 x 2 patches, audio of 3 moments of which the last is padding."""
    return MMMediaOutput(
        states=torch.zeros(1, 8, 4),
        mask=torch.tensor([[True] * 7 + [False]]),
        position=torch.tensor([[0] * 7 + [-1]]),
        modality=torch.tensor([[0] * 5 + [1] * 3]),
    )


WEIGHTS = torch.tensor([[0.1, 0.1, 0.2, 0.1, 0.1, 0.3, 0.1, 0.0]])


def test_weights_are_averaged_over_blocks_and_heads() -> None:
    blocks = [torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])]
    groups = (CrossAttentionGroup("shared", (0, 1), (2, 5), "before"),)
    assert mean_weights(blocks, groups, (1, 1)).tolist() == [[[0.75, 0.25]]]


def test_modalities_with_layers_of_their_own_share_a_word_evenly() -> None:
    """Recorded by layer, blocks before a decoder block first: audio in 0, the image inside 0, audio in 1."""
    groups = (
        CrossAttentionGroup("vision", (0,), (0,), "inside"),
        CrossAttentionGroup("audio", (1,), (0, 1), "before"),
    )
    audio, image = torch.tensor([[[[0.25, 0.75]]]]), torch.tensor([[[[1.0]]]])
    later = torch.tensor([[[[0.75, 0.25]]]])
    assert mean_weights([audio, image, later], groups, (1, 2)).tolist() == [[[0.5, 0.25, 0.25]]]
    assert mean_weights([audio, later], groups, (0, 2)).tolist() == [[[0.5, 0.5]]]


def test_media_tokens_are_found_item_by_item() -> None:
    assert [columns.tolist() for columns in item_columns(media(), "image")] == [[0, 1, 2, 3, 4]]
    assert [columns.tolist() for columns in item_columns(media(), "audio")] == [[5, 6]]


def test_patches_leave_the_class_token_out_and_moments_the_padding() -> None:
    places = Places((1, 2, 2), 1, ((0, 0, 4), (0, 4, 8)))
    patches, moments = places.split(to_places(WEIGHTS, media(), {"image": eye(5), "audio": eye(3)}, places))
    torch.testing.assert_close(patches, torch.tensor([[[[0.1, 0.2], [0.1, 0.1]]]]))
    torch.testing.assert_close(moments, torch.tensor([[0.3, 0.1]]))


def eye(size: int) -> torch.Tensor:
    """Paths of a connector that keeps places."""
    return torch.eye(size)[None]


@pytest.mark.parametrize(
    ("tokens", "height", "width", "grid"),
    [
        (64, 64, 64, (0, 8, 8)),  # convolutions
        (197, 224, 224, (1, 14, 14)),  # ViT: a class token
        (261, 224, 224, (5, 16, 16)),  # DINOv2 with registers
        (1 + 7 * 14, 112, 224, (1, 7, 14)),
        (1, 32, 32, (0, 1, 1)),
    ],
)
def test_patch_grids(tokens: int, height: int, width: int, grid: tuple[int, int, int]) -> None:
    assert patch_grid(tokens, height, width) == grid


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"47 tokens do not form a grid with the proportions of .* 64x48 pixels"):
        patch_grid(47, 64, 48)


def test_words_start_at_white_space() -> None:
    assert group_words(["ca", "t", " and", ' "', "zero", '"']) == (["cat", "and", '"zero"'], [(0, 2), (2, 3), (3, 6)])
    assert group_words([" ", " cat"]) == (["cat"], [(1, 2)])
    assert group_words([]) == ([], [])


def test_token_texts_join_to_the_text_even_within_characters() -> None:
    tokenizer = train_tokenizer(["cat"], vocab_size=256)
    text = "猫 and chat"
    texts = token_texts(tokenizer(text).input_ids, tokenizer)
    assert "".join(texts) == text
    assert texts[:4] == ["", "", "猫", " "]


def test_an_answer_is_explained_patch_by_patch_and_moment_by_moment(fresh) -> None:
    model, processor, samples = fresh
    seen = answer_attention(model, processor, samples[-1].prompt, max_new_tokens=5)
    words = len(seen.words)
    assert words and seen.patches.shape == (words, 1, 8, 8)
    seconds = seen.seconds
    assert 0.69 <= seconds <= 2.95 and seen.moments.shape == (words, math.ceil(seconds / 0.04 - 1e-6))
    torch.testing.assert_close(seen.shares["image"] + seen.shares["audio"], torch.ones(words))
    torch.testing.assert_close(seen.moments.sum(1), seen.shares["audio"])
    torch.testing.assert_close(seen.patches.sum((1, 2, 3)) + seen.moments.sum(1), torch.ones(words))


def test_an_answer_that_is_there_is_explained_as_the_one_that_is_generated(fresh, monkeypatch) -> None:
    model, processor, samples = fresh
    prompt = samples[-1].prompt
    inputs = processor.apply_chat_template(
        [prompt], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    length = inputs["input_ids"].shape[1]
    answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, length:].tolist()
    expected = answer_attention(model, processor, prompt, max_new_tokens=5)
    monkeypatch.setattr(model, "generate", None)
    seen = answer_attention(model, processor, prompt, answer_ids=answer)
    assert seen.words == expected.words
    torch.testing.assert_close(seen.patches, expected.patches)
    torch.testing.assert_close(seen.moments, expected.moments)


def test_an_image_alone_and_audio_alone(fresh) -> None:
    model, processor, samples = fresh
    image = answer_attention(model, processor, samples[0].prompt, max_new_tokens=3)
    assert image.moments is None and image.seconds == 0
    audio = answer_attention(model, processor, samples[4].prompt, max_new_tokens=3)
    assert audio.patches is None and audio.shares["audio"].min() > 0.999


def test_models_and_prompts_without_weights_to_show_are_refused(fresh) -> None:
    model, processor, samples = fresh
    with pytest.raises(ValueError, match="no image and no audio to attend to"):
        answer_attention(model, processor, [{"role": "user", "content": "Hello"}])
    with pytest.raises(ValueError, match="The answer is empty"):
        answer_attention(model, processor, samples[0].prompt, answer_ids=[processor.tokenizer.pad_token_id])
    model.set_attn_implementation({"text_config": "sdpa"})  # not the whole model: a ResNet has none
    try:
        with pytest.raises(ValueError, match=r"'sdpa', which keeps no weights.*attn_implementation=\"eager\""):
            answer_attention(model, processor, samples[0].prompt)
    finally:
        model.set_attn_implementation("eager")


@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("kind", ["mlp", "conv", "gru", "perceiver"])
def test_recurrent_connectors_are_refused(fresh, monkeypatch, name, kind) -> None:
    model, connector = fresh[0], MODALITIES[name].connector_attribute
    monkeypatch.setattr(model.config, connector, kind)
    if kind == "gru":
        with pytest.raises(ValueError, match=f"{MODALITIES[name].tower} connector is 'gru'.*'occlusion'"):
            check_explainable(model)
    else:
        check_explainable(model)


def test_the_attention_is_the_one_that_chose_the_word(fresh) -> None:
    """The first word's weights are those at the end of the prompt, computed here by hand."""
    model, processor, samples = fresh
    inputs = processor.apply_chat_template(
        [samples[0].prompt], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    seen = answer_attention(model, processor, samples[0].prompt, max_new_tokens=1)
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).cross_attentions
        weights = torch.stack([each.mean(1) for each in attentions]).mean(0)[0, -1]
    torch.testing.assert_close(seen.patches[0, 0].flatten(), weights)


def test_the_figure_is_drawn_and_written_in_one_step(fresh, tmp_path) -> None:
    model, processor, samples = fresh
    prompt = samples[-1].prompt
    seen = answer_attention(model, processor, prompt, max_new_tokens=4)
    band = read_band(prompt, seen, truth="$1 \x7f")  # no markup, and nothing that a font lacks
    assert band.question == turn_text(prompt[-1])
    assert band.images[0].shape == (64, 64, 3) and abs(len(band.wave) / 16_000 - seen.seconds) < 0.05
    figure = draw([band, replace(band, truth=None)], "Title", "note")
    assert sum("truth: $1" in text.get_text() for text in figure.texts) == 1  # none is known for the second
    path = save(figure, tmp_path / "new" / "attention.png")
    with Image.open(path) as image:
        assert image.width == 11 * 160 and image.height > 600
    assert os.listdir(path.parent) == ["attention.png"]


def test_matplotlib_is_imported_by_a_drawing_only() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import modeling_mm.explain"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    result = subprocess.run([BARE_PYTHON, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


def test_a_failed_save_leaves_the_old_file(tmp_path) -> None:
    class Broken:
        def savefig(self, file, format):
            file.write(b"half")
            raise OSError("disk full")

    path = tmp_path / "attention.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        save(Broken(), path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["attention.png"]


def attention_of(words, patches=None, moments=None) -> Explanation:
    shares = {name: torch.ones(len(words)) for name in MODALITIES}
    return Explanation(words, patches, moments, 1.0, shares)


def test_images_shrink_with_the_number_of_words() -> None:
    cells = [Band("?", "!", attention_of(["w"] * words, torch.ones(words, 1, 2, 2))).cell for words in (2, 12)]
    assert cells[0] > cells[1] > 0.3


def test_heat_is_scaled_over_images_and_audio_together() -> None:
    patches, moments = torch.tensor([[[[0.25, 0.5]]], [[[0.0, 0.0]]]]), torch.tensor([[0.125], [0.0]])
    image_heat, audio_heat = scaled(attention_of(["a", "b"], patches, moments))
    assert image_heat.tolist() == [[[[0.5, 1.0]]], [[[0.0, 0.0]]]] and audio_heat.tolist() == [[0.25], [0.0]]
    assert scaled(attention_of(["a", "b"], moments=moments))[1].tolist() == [[1.0], [0.0]]


def test_envelope() -> None:
    low, high = envelope(np.array([1.0, -2.0, 3.0, 0.0]), 2)
    assert (low.tolist(), high.tolist()) == ([-2.0, 0.0], [1.0, 3.0])
    assert len(envelope(np.ones(3), 10)[0]) == 3
