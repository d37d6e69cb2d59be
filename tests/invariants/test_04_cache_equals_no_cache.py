"""Invariant 4: cache equals no cache (1e-5); beam search, sampling with n > 1, assisted decoding, every cache that
runs here, batched equals single. Each generated text is compared word by word."""

import copy
from typing import NamedTuple

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from modeling_mm import MMMediaOutput
from tests.fakes.tiny import (
    AUDIO,
    CONNECTORS,
    END,
    EOS,
    IMAGE,
    PAD,
    difference,
    gpt2,
    image,
    inputs,
    joined,
    open_gates,
    opened,
    pad_audio,
    pad_images,
    sound,
    wav2vec2,
    wave,
)

TOLERANCE = 1e-5
ROWS = [[5, IMAGE, 6, AUDIO, 7, 8], [9, 10, 11], [IMAGE, 12, IMAGE, 13], [AUDIO, 14, 15, 16, 17]]
ROW = [5, IMAGE, 6, AUDIO, 7, 8, IMAGE, 9, 10, 11, 12]
NEW = 12
GREEDY = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}  # of one length, to be compared
BANNED = [IMAGE, AUDIO, END, EOS]  # placeholders never; ends of the text not among the first words


@pytest.fixture(scope="module")
def model():
    """One for the whole file: generating changes nothing in it."""
    return opened()


class Answer(NamedTuple):
    tokens: torch.Tensor  # (rows, NEW), the new words alone
    logits: torch.Tensor | None  # (rows, NEW, V) they were chosen from; None for beams

    def of_row(self, i):
        return Answer(self.tokens[i : i + 1], None if self.logits is None else self.logits[i : i + 1])


def answer(model, batch, **kwargs):
    kwargs = {**GREEDY, "output_logits": "num_beams" not in kwargs, **kwargs}
    out = model.generate(**batch, **kwargs, return_dict_in_generate=True)
    logits = torch.stack(out.logits, 1) if kwargs["output_logits"] else None
    return Answer(out.sequences[:, batch["input_ids"].shape[1] :], logits)


def check_same(one, other, tolerance=1e-4):
    """Word by word, and the logits too: an answer may be right by luck."""
    if one.logits is not None and other.logits is not None:
        first = difference(one.logits[:, :1], other.logits[:, :1])
        assert first <= tolerance, f"logits of the first word differ by {first}"
    assert one.tokens.tolist() == other.tokens.tolist()
    if one.logits is not None and other.logits is not None:
        moved = difference(one.logits, other.logits)
        assert moved <= tolerance, f"logits differ by {moved}"


def no_cache_greedy(model, batch, steps=NEW):
    """Reference without any of generate's machinery: the whole text anew for each word."""
    batch = dict(batch)
    new, logits = [], []
    for _ in range(steps):
        with torch.no_grad():
            scores = model(**batch, use_cache=False).logits[:, -1]
        logits.append(scores.clone())
        scores[:, BANNED] = -torch.inf
        new.append(scores.argmax(-1, keepdim=True))
        batch["input_ids"] = torch.cat([batch["input_ids"], new[-1]], 1)
        batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(new[-1])], 1)
    return Answer(torch.cat(new, 1), torch.stack(logits, 1))


def split(batch):
    """Text and media of a batch."""
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return text, {name: tensor for name, tensor in batch.items() if name not in text}


# ---- forward --------------------------------------------------------------------------------------------------------


def chunked_logits(model, batch, first, size, cache=None):
    """`first` tokens with the media, then `size` at a time from the cache without the media."""
    text, media = split(batch)
    length = text["input_ids"].shape[1]
    logits, start, end = [], 0, first
    while start < length:
        kwargs = media if start == 0 else {}
        mask = text["attention_mask"][:, :end]
        with torch.no_grad():
            out = model(text["input_ids"][:, start:end], mask, past_key_values=cache, use_cache=True, **kwargs)
        cache = out.past_key_values
        logits.append(out.logits)
        start, end = end, min(end + size, length)
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_logits_equal_those_of_the_whole_text_to_1e_5(model, size, side):
    rows = [[*ROW], [9, 10, 11, 2, 3, 4, 5], [IMAGE, 12, IMAGE, 13, 14, 15, 16, 17, 18, 19, 20]]
    first = 7 if side == "right" else 8
    batch = inputs(rows, side=side)
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits
    cached, cache = chunked_logits(model, batch, first, size)
    real = batch["attention_mask"] == 1
    assert difference(cached[real], whole[real]) <= TOLERANCE
    assert cache.get_seq_length() == 11


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
def test_cached_logits_with_every_connector(connector, gated):
    model = opened(vision_connector=connector, audio_connector=connector, cross_attention_gated=gated)
    batch = inputs([ROW])
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits
    assert difference(chunked_logits(model, batch, 7, 1)[0], whole) <= TOLERANCE


def test_cached_logits_with_sinks():
    model = opened(cross_attention_sink=True)
    batch = inputs([ROW])
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits
    assert difference(chunked_logits(model, batch, 7, 1)[0], whole) <= TOLERANCE


@pytest.mark.parametrize("text_encoding", ["learned", "sinusoidal"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cached_logits_with_each_position_encoding_and_attention(text_encoding, implementation):
    model = opened(text_position_encoding=text_encoding)
    model.set_attn_implementation(implementation)
    batch = inputs([ROW, [1, 2, AUDIO, 3]], side="left")
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits
    real = batch["attention_mask"] == 1
    cached, _ = chunked_logits(model, batch, 10, 1)
    assert difference(cached[real], whole[real]) <= TOLERANCE


@pytest.mark.parametrize("with_config", [True, False])
def test_an_empty_dynamic_cache_on_the_first_step_does_not_skip_the_media(model, with_config):
    batch = inputs([ROW])
    cache = DynamicCache(config=model.config) if with_config else DynamicCache()
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        other = model(**inputs([ROW], seed=50), use_cache=False).logits
    cached, returned = chunked_logits(model, batch, 7, 1, cache=cache)
    assert returned is cache
    assert difference(cached, expected) <= TOLERANCE
    assert difference(expected, other) > 1e-2


def test_media_are_still_seen_after_the_first_cached_step(model):
    """The loss that stock tests never notice: cross-attention without media from the second step on."""
    steps = [chunked_logits(model, inputs([ROW], seed=seed), 7, 1)[0][:, 7:] for seed in (0, 50)]
    assert (steps[0] - steps[1]).abs().amax(-1).min() > 1e-3


def test_text_alone_with_a_cache_equals_no_cache_to_1e_5(model):
    ids = torch.randint(1, 90, (2, 20))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits
    assert difference(chunked_logits(model, batch, 5, 1)[0], whole) <= TOLERANCE


def test_chunks_with_an_attention_mask_of_no_padding_may_leave_it_out(model):
    batch = inputs([ROW])
    _, media = split(batch)
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits
        first = model(input_ids=batch["input_ids"][:, :7], **media, use_cache=True)
        second = model(input_ids=batch["input_ids"][:, 7:], past_key_values=first.past_key_values)
    assert difference(torch.cat([first.logits, second.logits], 1), whole) <= TOLERANCE


# ---- generate: cache, batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[row] for row in ROWS], ids=["both", "none", "images", "sound"])
def test_greedy_equals_the_loop_without_a_cache(model, rows):
    batch = inputs(rows)
    expected = no_cache_greedy(model, batch)
    check_same(answer(model, batch), expected)
    check_same(answer(model, batch, use_cache=False), expected)


def test_batched_equals_single(model):
    images = [[image(i) for _ in range(row.count(IMAGE))] for i, row in enumerate(ROWS)]
    together = answer(model, inputs(ROWS, images, side="left"))
    for i, row in enumerate(ROWS):
        sounds = inputs(ROWS)["input_features"][i]
        batch = inputs([row], [images[i]], [list(sounds[: row.count(AUDIO)])])
        check_same(together.of_row(i), answer(model, batch))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_batched_equals_single_for_waves(norm):
    model = opened(audio=wav2vec2(norm))
    rows, waves = [[5, AUDIO, 6], [7, 8, AUDIO, 9]], [[wave(0, 240)], [wave(1, 400)]]
    together = answer(model, inputs(rows, audio=waves, side="left"))
    for i in range(2):
        check_same(together.of_row(i), answer(model, inputs([rows[i]], audio=[waves[i]])))


@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_batched_equals_single(model, use_cache):
    kwargs = {"num_beams": 3, "use_cache": use_cache, "length_penalty": 0.0}
    batch = inputs(ROWS, side="left")
    together = answer(model, batch, **kwargs)
    for i in range(len(ROWS)):
        text, media = split(batch)
        real = text["attention_mask"][i] == 1
        single = {name: tensor[i : i + 1] for name, tensor in media.items()}
        single |= {name: tensor[i : i + 1, real] for name, tensor in text.items()}
        check_same(together.of_row(i), answer(model, single, **kwargs))


def test_beam_search_with_a_cache_equals_without(model):
    batch = inputs(ROWS, side="left")
    kwargs = {"num_beams": 4, "num_return_sequences": 2}
    cached, plain = (answer(model, batch, use_cache=use_cache, **kwargs) for use_cache in (True, False))
    assert cached.tokens.shape == (8, NEW)
    check_same(cached, plain)


def test_beam_scores_are_those_of_the_answer_given_the_media(model):
    """Each beam kept its own row's media: the returned score is the log-likelihood computed from the whole text."""
    batch = inputs(ROWS[:1] + ROWS[2:3], side="left")
    out = model.generate(
        **batch, **GREEDY, num_beams=3, length_penalty=0.0, output_scores=True, return_dict_in_generate=True,
        suppress_tokens=None, eos_token_id=None,
    )  # fmt: skip
    start = batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"], torch.ones(2, NEW, dtype=torch.long)], 1)
    with torch.no_grad():
        logits = model(**{**batch, "input_ids": out.sequences, "attention_mask": mask}).logits
    likely = logits.log_softmax(-1)[:, start - 1 : -1].gather(-1, out.sequences[:, start:, None]).sum((1, 2))
    assert difference(out.sequences_scores, likely) <= 1e-4


def test_sampling_with_3_return_sequences_equals_the_rows_repeated(model):
    batch = inputs(ROWS, side="left")
    kwargs = {"do_sample": True, "temperature": 0.8, "top_k": 20}
    torch.manual_seed(3)
    sampled = answer(model, batch, num_return_sequences=3, **kwargs)
    torch.manual_seed(3)
    repeated = answer(model, {k: v.repeat_interleave(3, 0) for k, v in batch.items()}, **kwargs)
    assert sampled.tokens.shape == (12, NEW)
    check_same(sampled, repeated)
    assert len({tuple(row) for row in sampled.tokens.tolist()}) > 4
    torch.manual_seed(3)
    check_same(sampled, answer(model, batch, num_return_sequences=3, use_cache=False, **kwargs))


def test_beam_sampling_runs_alike_with_and_without_a_cache(model):
    batch = inputs(ROWS, side="left")
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        found.append(answer(model, batch, num_beams=3, do_sample=True, use_cache=use_cache))
    check_same(*found)


# ---- generate: assistants -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assistant", ["smaller", "itself", "closed"])
@pytest.mark.parametrize("row", [ROWS[0], ROWS[2], ROWS[1]], ids=["both", "images", "none"])
def test_assisted_decoding_gives_the_same_text(model, assistant, row):
    helpers = {
        "smaller": lambda: open_gates(joined(gpt2(n_layer=2), cross_attention_layers=[1])),
        "itself": lambda: copy.deepcopy(model),
        "closed": joined,
    }
    batch = inputs([row])
    helper = helpers[assistant]()
    helper.generation_config.num_assistant_tokens = 4
    check_same(answer(model, batch, assistant_model=helper), answer(model, batch))


def test_an_assistant_that_is_the_model_itself_is_always_right(model):
    """It sees the media too: were they not passed on, its guesses would be those of a blind model."""
    batch = inputs([ROWS[0]])
    helper = copy.deepcopy(model)
    helper.generation_config.update(num_assistant_tokens=4, num_assistant_tokens_schedule="constant")
    helper.generation_config.assistant_confidence_threshold = 0.0
    calls = 0

    def count(*args):
        nonlocal calls
        calls += 1

    handle = model.register_forward_hook(count)
    try:
        found = answer(model, batch, assistant_model=helper)
    finally:
        handle.remove()
    check_same(found, answer(model, batch))
    assert calls <= 1 + NEW // 4, f"{calls} calls for {NEW} words: guesses were rejected"


@pytest.mark.parametrize("row", [ROWS[0], [5, IMAGE, 6, 7, 8, 6, 7]], ids=["both", "repeats"])
def test_prompt_lookup_gives_the_same_text(model, row):
    batch = inputs([row])
    check_same(answer(model, batch, prompt_lookup_num_tokens=3), answer(model, batch))


# ---- generate: kinds of cache ---------------------------------------------------------------------------------------


def runs_for_gpt2(**kwargs):
    """Whether transformers itself can run this kind of cache here (no CUDA, optional packages)."""
    ids = torch.tensor([[5, 6, 7]])
    try:
        gpt2().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, pad_token_id=0, **kwargs)
    except ImportError as error:  # an optional package
        pytest.skip(f"GPT2LMHeadModel cannot either: {str(error)[:80]}")
    except (AssertionError, RuntimeError) as error:
        # A torch built without CUDA asserts that it is, one with CUDA and without a device finds no driver.
        if torch.cuda.is_available() or not any(word in str(error) for word in ("CUDA", "NVIDIA")):
            raise
        pytest.skip(f"GPT2LMHeadModel cannot either: {str(error)[:80]}")


@pytest.mark.parametrize("kind", ["dynamic", "static", "offloaded", "offloaded_static"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[1:2]], ids=["mixed", "text"])
def test_each_kind_of_cache_gives_the_same_text(model, kind, rows):
    runs_for_gpt2(cache_implementation=kind)
    batch = inputs(rows, side="left")
    check_same(answer(model, batch, cache_implementation=kind), answer(model, batch, use_cache=False))


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_quantized_cache_gives_the_same_first_words(model, backend):
    config = {"cache_implementation": "quantized", "cache_config": {"backend": backend, "nbits": 4}}
    runs_for_gpt2(**config)
    batch = inputs([ROWS[0]])
    check_same(answer(model, batch, **config)[:, :2], answer(model, batch)[:, :2])


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_beam_search_with_each_kind_of_cache(model, kind):
    batch = inputs(ROWS, side="left")
    kwargs = {"num_beams": 3, "cache_implementation": kind}
    check_same(answer(model, batch, **kwargs), answer(model, batch, num_beams=3, use_cache=False))


def test_a_static_cache_made_by_the_user_gives_the_same_text(model):
    batch = inputs([ROWS[0]])
    cache = StaticCache(config=model.config, max_cache_len=32)
    check_same(answer(model, batch, past_key_values=cache), answer(model, batch))


def test_a_dynamic_cache_made_by_the_user_gives_the_same_text(model):
    batch = inputs([ROWS[0]])
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        check_same(answer(model, batch, past_key_values=cache), answer(model, batch))


def test_prefill_in_chunks_gives_the_same_text_or_says_that_it_cannot(model):
    batch = inputs([ROW])
    try:
        found = answer(model, batch, prefill_chunk_size=4)
    except ValueError as error:
        assert "prefill_chunk_size" in str(error)
    else:
        check_same(found, answer(model, batch))


def test_prefill_of_text_in_chunks_gives_the_same_text(model):
    batch = inputs([[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    check_same(answer(model, batch, prefill_chunk_size=4), answer(model, batch))


# ---- continuing a conversation --------------------------------------------------------------------------------------


ADDED = {"image": [IMAGE, 21, 22], "both": [20, IMAGE, 21, AUDIO, 22], "text": [20, 21]}


@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
def test_a_conversation_goes_on_from_its_cache_with_another_image(model, added):
    """Only the new media are passed: those of the first turn are remembered by the cache."""
    out, media, whole = next_turn(model, added)
    text, _ = split(whole)
    check_same(answer(model, text | media, past_key_values=out.past_key_values), answer(model, whole, use_cache=False))


@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
def test_a_conversation_goes_on_by_hand_from_its_cache_with_another_image(model, added):
    out, media, whole = next_turn(model, added)
    seen = out.past_key_values.get_seq_length()
    with torch.no_grad():
        ids, mask = whole["input_ids"][:, seen:], whole["attention_mask"]
        logits = model(ids, mask, past_key_values=out.past_key_values, **media).logits
        reference = model(**whole, use_cache=False).logits[:, seen:]
    assert difference(logits, reference) <= TOLERANCE


def next_turn(model, added):
    """The first turn's output, the media of the second, and inputs that hold both turns."""
    first = inputs([[5, IMAGE, 6, AUDIO, 7, 8]], [[image(0)]], [[sound(0)]])
    out = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    row = out.sequences[0].tolist() + added
    images, sounds = [image(0), image(1)][: row.count(IMAGE)], [sound(0), sound(1)][: row.count(AUDIO)]
    media = pad_images([[image(1)]]) if IMAGE in added else {}
    media |= pad_audio([[sound(1)]]) if AUDIO in added else {}
    return out, media, inputs([row], [images], [sounds])


def test_a_batch_goes_on_with_another_image_in_one_row_alone(model):
    rows = [[5, IMAGE, 6, 7], [8, 9, AUDIO, 10]]
    more = [[IMAGE, 11, 12], [13, 14, 15]]
    images = [[image(0), image(1)], []]
    batch = inputs([a + b for a, b in zip(rows, more, strict=True)], images)
    _, sounds = split(inputs(rows, [[], []]))
    with torch.no_grad():
        whole = model(**batch, use_cache=False).logits
        first = model(batch["input_ids"][:, :4], **pad_images([[image(0)], []]), **sounds, use_cache=True)
        second = model(
            batch["input_ids"][:, 4:], **pad_images([[image(1)], []]), past_key_values=first.past_key_values
        )
    assert difference(torch.cat([first.logits, second.logits], 1), whole) <= TOLERANCE


def test_an_image_may_come_into_a_conversation_that_had_none(model):
    start, added = [5, 6, 7, 8], [9, IMAGE, 10, 11]
    batch = inputs([start + added])
    text, media = split(batch)
    with torch.no_grad():
        first = model(text["input_ids"][:, :4], use_cache=True)
        second = model(text["input_ids"][:, 4:], **media, past_key_values=first.past_key_values)
        whole = model(**batch, use_cache=False).logits
    assert difference(torch.cat([first.logits, second.logits], 1), whole) <= TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_manual_loop_passes_media_once(model, side):
    rows = ROWS if side == "left" else ROWS[:1]
    batch = inputs(rows, side=side)
    text, media = split(batch)
    ids, mask, cache, new = text["input_ids"], text["attention_mask"], None, []
    for _ in range(NEW):
        with torch.no_grad():
            out = model(ids, mask, past_key_values=cache, use_cache=True, **media)
        cache, media = out.past_key_values, {}
        scores = out.logits[:, -1]
        scores[:, BANNED] = -torch.inf
        ids = scores.argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        new.append(ids)
    assert torch.cat(new, 1).tolist() == answer(model, batch).tokens.tolist()


# ---- media encoded once ---------------------------------------------------------------------------------------------


def test_media_encoded_once_serve_many_prompts(model):
    """Placeholders stand elsewhere in each prompt; the answer equals that of the raw inputs exactly."""
    pictures, sounds = pad_images([[image(0), image(1)]]), pad_audio([[sound(0)]])
    media = model.encode_media(**pictures, **sounds)
    assert isinstance(media, MMMediaOutput)
    prompts = [
        [IMAGE, IMAGE, AUDIO, 5, 6],
        [5, 6, IMAGE, 7, AUDIO, 8, IMAGE, 9],
        [AUDIO, 5, IMAGE, 6, IMAGE, 7],
        [1, 2, 3, 4, 5, 6, IMAGE, IMAGE, 7, AUDIO],
    ]
    for prompt in prompts:
        text, _ = split(inputs([prompt]))
        with torch.no_grad():
            one = model(**text, media=media).logits
            other = model(**text, **pictures, **sounds).logits
        assert difference(one, other) == 0.0
        check_same(answer(model, text | {"media": media}), answer(model, text | pictures | sounds))


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_media_encoded_once_are_expanded_like_raw_inputs(model, how):
    batch = inputs(ROWS, side="left")
    text, raw = split(batch)
    torch.manual_seed(1)
    expected = answer(model, batch, **how)
    torch.manual_seed(1)
    check_same(answer(model, text | {"media": model.encode_media(**raw)}, **how), expected)


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"num_beams": 2}], ids=["greedy", "no_cache", "beams"])
@pytest.mark.parametrize("key", ["pixel_values", "input_features"])
def test_media_reach_generate(model, key, how):
    batch = inputs([ROWS[0]])
    one, other = (answer(model, batch | {key: media}, **how) for media in (batch[key], -3 * batch[key]))
    assert not torch.equal(one.tokens, other.tokens)


def test_generate_given_media_and_no_text_starts_from_their_placeholders(model):
    raw = pad_images([[image(0)], [image(1)]]) | pad_audio(
        [[s] for s in inputs([[AUDIO]] * 2)["input_features"][:, 0]]
    )
    started = model.generate(**raw, **GREEDY)
    prompts = [[IMAGE, AUDIO]] * 2
    text = {"input_ids": torch.tensor(prompts), "attention_mask": torch.ones(2, 2, dtype=torch.long)}
    expected = answer(model, text | raw)
    assert started[:, -NEW:].tolist() == expected.tokens.tolist()


def test_a_finished_row_is_padded(model):
    batch = inputs(ROWS, side="left")
    greedy = answer(model, batch).tokens
    stop = greedy[0, 3].item()
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=stop, pad_token_id=PAD)
    stopped = model.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :]
    end = (greedy[0] == stop).nonzero()[0].item() + 1
    assert stopped[0, end:].eq(PAD).all()
