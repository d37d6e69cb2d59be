"""Codes as tokens: two layouts that are undone exactly, blocks in a text, ranges in a config."""

import random

import pytest
from transformers import EncodecConfig

from modeling_mm import MMConfig
from modeling_mm.code_tokens import (
    CODE_LAYOUTS,
    Block,
    CodeTokens,
    code_order,
    code_tokens_in,
    code_tokens_of,
    split_blocks,
)
from tests.fakes.tiny import gpt2_config

PICTURE = CodeTokens("image", 100, 8, grid=(2, 3))
SPEECH = CodeTokens("audio", 110, 5, codebooks=3, layout="delayed")


def named(order: list[tuple[int, int]]) -> str:
    return " ".join(f"{'abc'[k]}{t}" for k, t in order)


def test_the_two_orders():
    assert named(code_order(3, 3, "interleaved")) == "a0 b0 c0 a1 b1 c1 a2 b2 c2"
    assert named(code_order(3, 3, "delayed")) == "a0 a1 b0 a2 b1 c0 b2 c1 c2"
    assert named(code_order(3, 1, "delayed")) == "a0 b0 c0"  # fewer steps than codebooks
    assert code_order(1, 4, "delayed") == code_order(1, 4, "interleaved")
    assert code_order(3, 0, "delayed") == []


@pytest.mark.parametrize("layout", CODE_LAYOUTS)
@pytest.mark.parametrize("codebooks", [1, 2, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_a_layout_is_undone_exactly(layout, codebooks, steps):
    tokens = CodeTokens("audio", 50, 7, codebooks, layout=layout)
    draw = random.Random(steps)
    codes = [[draw.randrange(7) for _ in range(steps)] for _ in range(codebooks)]
    ids = tokens.to_ids(codes)
    assert (ids[0], ids[-1], len(ids)) == (tokens.start_id, tokens.end_id, codebooks * steps + 2)
    assert tokens.to_codes(ids[1:-1]) == (codes, False)


def test_delayed_codes_stand_behind_later_ones_of_the_codebooks_before():
    ids = CodeTokens("audio", 50, 7, 2, layout="delayed").to_ids([[1, 2, 3], [4, 5, 6]])
    a, b = 52, 59
    assert ids == [50, a + 1, a + 2, b + 4, a + 3, b + 5, b + 6, 51]


def test_each_codebook_has_a_range():
    assert [SPEECH.range_of(k) for k in range(3)] == [(112, 117), (117, 122), (122, 127)]
    assert SPEECH.stop == 127 and (SPEECH.start_id, SPEECH.end_id) == (110, 111)
    assert SPEECH.token_strings[:3] == ["<|audio_start|>", "<|audio_end|>", "<audio_code_0>"]
    assert len(SPEECH.token_strings) == SPEECH.stop - SPEECH.first


@pytest.mark.parametrize("cut", range(9))
@pytest.mark.parametrize("layout", CODE_LAYOUTS)
def test_of_a_cut_block_the_whole_steps_are_left(layout, cut):
    tokens = CodeTokens("audio", 50, 7, 3, layout=layout)
    codes = [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    ids = tokens.to_ids(codes)[1:-1][:cut]
    found, is_cut = tokens.to_codes(ids)
    whole = len(found[0])
    # With `interleaved` three of nine tokens are a whole block of one step.
    assert is_cut == (cut % 3 > 0 or cut == 0 or layout == "delayed")
    assert found == [row[:whole] for row in codes]
    done = {(k, t) for k, t in code_order(3, 3, layout)[:cut]}
    assert whole == sum(all((k, t) in done for k in range(3)) for t in range(3))


def test_a_grid_that_is_not_full_is_cut():
    assert PICTURE.steps == 6
    assert PICTURE.to_codes([102] * 6) == ([[0] * 6], False)
    assert PICTURE.to_codes([102] * 4) == ([[0] * 4], True)


@pytest.mark.parametrize(
    ("tokens", "codes", "message"),
    [
        (PICTURE, [[1] * 5], r"expected 2x3 = 6 in each codebook, got 5"),
        (PICTURE, [[1] * 5 + [8]], r"codebook 0 has codes from 0 to 7, got 8\. Is it the codec"),
        (PICTURE, [[1] * 5 + [-1]], r"got -1"),
        (PICTURE, [[1] * 6] * 2, r"expected 1 rows of equal length, one for each codebook, got rows of \[6, 6\]"),
        (SPEECH, [[1, 2], [1, 2], [1]], r"got rows of \[2, 2, 1\]"),
        (SPEECH, [[], [], []], r"expected at least 1 in each codebook, got 0"),
    ],
)
def test_codes_that_do_not_fit(tokens, codes, message):
    with pytest.raises(ValueError, match=message):
        tokens.to_ids(codes)


@pytest.mark.parametrize(
    ("tokens", "ids", "message"),
    [
        (PICTURE, [102, 110], r"Token 1 of a block of image codes has id 110; codes have ids from 102 to 109"),
        (PICTURE, [102] * 7, "not 'interleaved'"),
        (SPEECH, [112, 117, 122, 112], "codebooks \\[0, 1, 2, 0\\]... in this order, which is not 'delayed'"),
    ],
)
def test_ids_that_are_not_a_block(tokens, ids, message):
    with pytest.raises(ValueError, match=message):
        tokens.to_codes(ids)


def test_blocks_between_texts():
    known = {"image": PICTURE, "audio": SPEECH}
    row = [1, 2, 100, *[103] * 6, 101, 3, 110, 112, 117, 122, 111, 100, 102]
    assert split_blocks(row, known) == [
        Block(None, [1, 2]),
        Block(PICTURE, [103] * 6),
        Block(None, [3]),
        Block(SPEECH, [112, 117, 122]),
        Block(PICTURE, [102], is_ended=False),
    ]
    assert split_blocks([100, 102, 5], known) == [Block(PICTURE, [102], False), Block(None, [5])]
    assert split_blocks([], known) == []


# ---- Configs --------------------------------------------------------------------------------------------------------

DRAWS = {"image_codec_config": EncodecConfig(), "image_code_range": [80, 90], "image_code_grid": [2, 3]}
SPEAKS = {"audio_codec_config": {"model_type": "encodec"}, "audio_code_range": [60, 74], "audio_codebooks": 2}


def test_a_config_declares_its_codes(tmp_path):
    config = MMConfig(text_config=gpt2_config(), **DRAWS, **SPEAKS, audio_code_layout="delayed")
    expected = {
        "image": CodeTokens("image", 80, 8, grid=(2, 3)),
        "audio": CodeTokens("audio", 60, 6, codebooks=2, layout="delayed"),
    }
    assert code_tokens_of(config) == expected and isinstance(config.audio_codec_config, EncodecConfig)
    config.save_pretrained(tmp_path)
    assert code_tokens_of(MMConfig.from_pretrained(tmp_path)) == expected
    assert isinstance(MMConfig.from_pretrained(tmp_path).image_codec_config, EncodecConfig)
    assert code_tokens_of(MMConfig()) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_code_range": [80, 90]}, "image_code_range and image_codec_config belong together"),
        ({**DRAWS, "image_code_range": None}, "belong together"),
        ({**DRAWS, "image_code_range": [80, 91]}, r"within the vocabulary of 90 tokens, got \[80, 91\]"),
        ({**DRAWS, "image_code_range": [90]}, "the first id of a range and the one behind its last"),
        ({**DRAWS, "image_code_range": [-1, 9]}, "within the vocabulary"),
        ({**DRAWS, "image_code_range": [80, 82]}, "and 0 codes, which 1 codebooks cannot share"),
        ({**SPEAKS, "audio_codebooks": 5}, "and 12 codes, which 5 codebooks cannot share equally"),
        ({**SPEAKS, "audio_codebooks": 0}, "audio_codebooks must be at least 1, got 0"),
        ({**SPEAKS, "audio_code_layout": "parallel"}, "must be one of 'interleaved', 'delayed', got 'parallel'"),
        ({**DRAWS, "image_code_grid": [6]}, r"number of rows and one of columns, got \[6\]"),
        ({**DRAWS, "image_code_grid": [6, 0]}, "number of rows and one of columns"),
        ({**DRAWS, "end_token_id": 85}, r"image_code_range, \[80, 90\], has ids of end_token_id, \[85, 86\]"),
        ({**DRAWS, **SPEAKS, "audio_code_range": [70, 82]}, "audio_code_range, .* has ids of image_code_range"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        MMConfig(text_config=gpt2_config(), **fields)


def test_codes_among_location_tokens_are_refused():
    fields = {"image_codec_config": EncodecConfig(), "image_code_range": [200, 210]}
    with pytest.raises(ValueError, match=r"has ids of location_token_id, \[90, 1090\]"):
        MMConfig(text_config=gpt2_config(vocab_size=1090), location_token_id=90, **fields)


def test_the_range_of_a_vocabulary():
    vocabulary = {"hello": 0, **{token: 100 + i for i, token in enumerate(PICTURE.token_strings)}}
    assert code_tokens_in(vocabulary, "image") == (100, 110) and code_tokens_in(vocabulary, "audio") is None
    vocabulary["<image_code_3>"] = 4
    with pytest.raises(ValueError, match=r"has 8 codes of image, but .* do not follow each other"):
        code_tokens_in(vocabulary, "image")
