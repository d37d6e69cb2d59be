"""Audio in chunks while it is generated: together they are the whole decode, of codecs of every kind."""

import math
from queue import Empty
from threading import Thread

import numpy as np
import pytest
import torch

from modeling_mm.audio_streamer import AudioCodeStreamer
from modeling_mm.code_parts import WrittenModality
from modeling_mm.code_tokens import CODE_LAYOUTS, CodeTokens
from modeling_mm.codec_interface import AudioCodec
from modeling_mm.codecs import wrap
from tests.fakes.codecs import AUDIO, tiny_codec
from tests.fakes.own_codecs import own_codec
from tests.fakes.processor_parts import make
from tests.fakes.tiny import difference
from tests.fakes.writers import writing

OWN = ("own", "own-strides", "own-vq", "griffin-lim")
STEPS = 60


def codec_of(kind: str) -> AudioCodec:
    if kind in AUDIO:
        return tiny_codec(kind)
    fields = {
        "own": {},
        "own-strides": {"strides": [2, 3], "hidden_sizes": [4, 6, 8], "kernel_size": 5, "hop_length": 8},
        "own-vq": {"bottleneck": "vq", "vocoder_layers": 2, "num_res_blocks": 2},
        "griffin-lim": {"vocoder": "griffin_lim"},
    }[kind]
    model = own_codec("audio", **fields)
    return wrap(model, model.config)


def codes_for(codec: AudioCodec, steps: int = STEPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(codec.codebook_size, (codec.num_codebooks, steps), generator=generator)


def processor_with(codec: AudioCodec, layout: str = "interleaved"):
    processor = make()
    first = processor.add_codec(codec)
    tokens = CodeTokens("audio", first, codec.codebook_size, codec.num_codebooks, layout=layout)
    processor.written = {"audio": WrittenModality(tokens, codec)}
    return processor


def chunks_of(streamer: AudioCodeStreamer, ids: list[int], prompt=(1, 2)) -> list[np.ndarray]:
    streamer.put(torch.tensor([list(prompt)]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return list(streamer)


def close(chunks: list[np.ndarray], whole: torch.Tensor) -> bool:
    found = torch.from_numpy(np.concatenate(chunks))
    return found.shape == whole.shape and difference(found, whole) < 1e-5


@pytest.mark.parametrize("kind", [*AUDIO, *OWN])
def test_samples_depend_on_no_code_beyond_the_reach(kind):
    codec = codec_of(kind)
    before, behind = codec.reach
    codes, other, place = codes_for(codec), codes_for(codec), 30
    other[:, place] = (other[:, place] + 5) % codec.codebook_size
    changed = (codec.decode(codes[None]) != codec.decode(other[None]))[0].nonzero().flatten() // codec.hop_length
    first, last = int(changed.min()), int(changed.max())
    assert place - behind <= first and last <= place + before
    if kind in OWN[:3]:  # and the bound is no further away than needed
        assert first - (place - behind) <= 2 and place + before - last <= 2


@pytest.mark.parametrize("layout", CODE_LAYOUTS)
@pytest.mark.parametrize("kind", [*AUDIO, *OWN])
def test_chunks_are_the_whole_decode(kind, layout):
    codec = codec_of(kind)
    codes = codes_for(codec)
    whole = codec.decode(codes[None])[0]
    processor = processor_with(codec, layout)
    ids = processor.written["audio"].tokens.to_ids(codes.tolist())
    for chunk_steps in (1, 7):
        streamer = AudioCodeStreamer(processor, chunk_seconds=chunk_steps / codec.rate)
        chunks = chunks_of(streamer, [3, *ids, 4])
        assert close(chunks, whole)
        behind = codec.reach[1]
        if math.isfinite(behind):
            assert {len(chunk) for chunk in chunks[:-1]} == {chunk_steps * codec.hop_length}
            early = (STEPS - behind) // chunk_steps
            assert len(chunks) == early + (early * chunk_steps < STEPS)
            assert all(chunk.dtype == np.float32 for chunk in chunks)
        else:
            assert len(chunks) == 1


def test_a_chunk_comes_as_soon_as_it_is_final():
    codec = codec_of("dac")
    behind = codec.reach[1]
    processor = processor_with(codec)
    ids = processor.written["audio"].tokens.to_ids(codes_for(codec).tolist())
    streamer = AudioCodeStreamer(processor, chunk_seconds=4 / codec.rate)
    streamer.put(torch.tensor([[1]]))
    needed = 1 + (4 + behind) * codec.num_codebooks  # with the start token
    for token in ids[: needed - 1]:
        streamer.put(torch.tensor([token]))
    assert streamer.queue.empty()
    streamer.put(torch.tensor(ids[needed - 1 : needed]))
    assert len(streamer.queue.get_nowait()) == 4 * codec.hop_length


def test_the_first_chunk_is_short_and_the_next_ones_grow():
    codec = codec_of("dac")
    behind, processor = codec.reach[1], processor_with(codec)
    codes = codes_for(codec)
    ids = processor.written["audio"].tokens.to_ids(codes.tolist())
    streamer = AudioCodeStreamer(processor, 10 / codec.rate, first_chunk_seconds=2 / codec.rate)
    for _ in range(2):  # a streamer can be used again
        chunks = chunks_of(streamer, ids)
        steps = [len(chunk) // codec.hop_length for chunk in chunks]
        assert steps[:3] == [2, 4, 8] and set(steps[3:-1]) == {10} and sum(steps) == STEPS
        assert close(chunks, codec.decode(codes[None])[0])
    streamer.put(torch.tensor([[1]]))
    needed = 1 + (2 + behind) * codec.num_codebooks
    for token in ids[: needed - 1]:
        streamer.put(torch.tensor([token]))
    assert streamer.queue.empty()
    streamer.put(torch.tensor(ids[needed - 1 : needed]))
    assert len(streamer.queue.get_nowait()) == 2 * codec.hop_length
    longer = AudioCodeStreamer(processor, 4 / codec.rate, first_chunk_seconds=8 / codec.rate)
    assert longer.first_chunk_steps == 4, "no longer than the others"


def test_less_context_comes_earlier_and_is_not_exact():
    codec = codec_of("own")
    codes = codes_for(codec)
    processor = processor_with(codec)
    ids = processor.written["audio"].tokens.to_ids(codes.tolist())
    streamer = AudioCodeStreamer(processor, chunk_seconds=5 / codec.rate, context=1)
    chunks = chunks_of(streamer, ids)
    whole = codec.decode(codes[None])[0]
    found = torch.from_numpy(np.concatenate(chunks))
    assert (streamer.before, streamer.behind) == (1, 1)
    assert found.shape == whole.shape and difference(found, whole) > 1e-4
    assert len(chunks) == 12


def test_blocks_follow_each_other_and_a_cut_one_is_emitted():
    codec = codec_of("mimi")
    processor = processor_with(codec, "delayed")
    tokens = processor.written["audio"].tokens
    one, other = codes_for(codec, 9), codes_for(codec, 13).flip(1)
    cut = tokens.to_ids(other.tolist())[:-3]
    chunks = chunks_of(AudioCodeStreamer(processor, 3 / codec.rate), [5, *tokens.to_ids(one.tolist()), 5, *cut])
    rest = torch.tensor(tokens.to_codes(cut[1:])[0])
    assert 9 < rest.shape[1] < 13
    assert close(chunks, torch.cat([codec.decode(each[None])[0] for each in (one, rest)]))


@pytest.mark.parametrize("begun", [0, 4, 11])
def test_a_block_that_the_prompt_begins_is_continued(begun):
    codec = codec_of("dac")
    processor = processor_with(codec)
    ids = processor.written["audio"].tokens.to_ids(codes_for(codec).tolist())
    split = 1 + begun * codec.num_codebooks
    chunks = chunks_of(AudioCodeStreamer(processor, 3 / codec.rate), ids[split:], prompt=[1, *ids[:split]])
    assert close(chunks, codec.decode(codes_for(codec)[None])[0][begun * codec.hop_length :])


def test_audio_of_a_prompt_that_is_over_is_not_repeated():
    codec = codec_of("dac")
    processor = processor_with(codec)
    ids = processor.written["audio"].tokens.to_ids(codes_for(codec).tolist())
    assert chunks_of(AudioCodeStreamer(processor), [3, 4], prompt=ids) == []
    assert chunks_of(AudioCodeStreamer(processor), [3, 4], prompt=[*ids, 9]) == []


@pytest.mark.parametrize("lookup", [None, 3])
def test_generate_streams_what_decode_media_gives(lookup):
    model, processor = writing("interleaved")
    prompt = [{"role": "user", "content": "hello"}]
    inputs = processor.apply_chat_template(
        prompt, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    streamer = AudioCodeStreamer(processor, chunk_seconds=2 / processor.written["audio"].codec.rate, timeout=60)
    options = {"output_modalities": ("audio",), "max_new_tokens": 60, "do_sample": False}
    options["suppress_tokens"] = [processor.written["audio"].tokens.end_id]  # a long answer
    options |= {} if lookup is None else {"prompt_lookup_num_tokens": lookup}
    ids: list[torch.Tensor] = []
    for _ in range(2):  # a streamer can be used again
        thread = Thread(target=lambda: ids.append(model.generate(**inputs, **options, streamer=streamer)))
        thread.start()
        chunks = list(streamer)
        thread.join()
        samples, rate = processor.decode_media(ids[-1][0, inputs["input_ids"].shape[1] :])[0]["audio"]
        assert rate == streamer.sampling_rate and len(chunks) > 2
        assert close(chunks, torch.from_numpy(samples))


def test_what_a_streamer_cannot_do():
    codec = codec_of("mimi")
    processor = processor_with(codec)
    with pytest.raises(ValueError, match=r"processor\.use_codecs\(model\)"):
        AudioCodeStreamer(make())
    with pytest.raises(ValueError, match="chunk_seconds must be above 0, got 0"):
        AudioCodeStreamer(processor, chunk_seconds=0)
    with pytest.raises(ValueError, match="first_chunk_seconds must be above 0, got -1"):
        AudioCodeStreamer(processor, first_chunk_seconds=-1)
    with pytest.raises(ValueError, match="context must be a number of codes from 0 on, or None, got -1"):
        AudioCodeStreamer(processor, context=-1)
    streamer = AudioCodeStreamer(processor, timeout=0.01)
    with pytest.raises(ValueError, match="follows one answer, got 2 rows"):
        streamer.put(torch.tensor([[1], [2]]))
    with pytest.raises(Empty):
        next(streamer)
