"""A tiny model that draws and speaks, with its processor: the fixture of the tests of generated media."""

from functools import cache

import numpy as np
from PIL import Image

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.codecs import wrap
from modeling_mm.training import ChatCollator
from tests.fakes.codecs import tiny_codec
from tests.fakes.own_codecs import own_codec, own_media
from tests.fakes.processor_parts import make, picture
from tests.fakes.tiny import gpt2, open_gates, train, vit, whisper


@cache
def codecs():
    """Of images of 16 x 16 pixels with 4 x 4 codes, and of audio with 4 codebooks."""
    return tiny_codec("emu3_vqgan"), tiny_codec("mimi")


def seeing() -> tuple[MMForConditionalGeneration, MMProcessor]:
    """A model that reads images and audio, and writes text."""
    processor = make()
    model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
        gpt2(n_positions=256), vit(image_size=8, patch_size=4), whisper(max_source_positions=50),
        cross_attention_layers=[1, 3], tokenizer=processor,
    )  # fmt: skip
    return open_gates(model), processor


SAID = {"hello": 30, "a dog": 12}  # codes, 20 a second


PLACES = "dog<loc_200><loc_100><loc_600><loc_500>"


@cache
def speaking() -> tuple[MMForConditionalGeneration, MMProcessor]:
    """A model that has learned by heart to say two texts, to draw, to find something in an image, and to answer."""
    model, processor = seeing()
    processor.add_location_tokens()
    model.add_location_tokens(processor)
    codec = wrap(own := own_codec("audio"), own.config)
    for each in (codec, codecs()[0]):
        processor.add_codec(each)
        model.add_codec(each, processor)
    processor.use_codecs(model)
    waves = {text: own_media("audio", 1, length, seed=length)[0].numpy() for text, length in SAID.items()}
    rate = {"type": "audio", "sampling_rate": own.config.sampling_rate}
    noise = np.random.default_rng(2).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    found = [{"type": "image", "image": picture("red", (60, 40))}, {"type": "text", "text": "Find the dog."}]
    answers = [
        *((f"Say: {text}", {**rate, "audio": wave}) for text, wave in waves.items()),
        ("Draw a dog", {"type": "image", "image": Image.fromarray(noise)}),
        (found, {"type": "text", "text": PLACES}),
        ("hello", {"type": "text", "text": "hello there, you are brief"}),
    ]
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": [answer]}]}
        for question, answer in answers
    ]
    train(model, [ChatCollator(processor)(chats)], 150, lr=6e-3)
    return model.eval(), processor


def writing(layout: str = "delayed") -> tuple[MMForConditionalGeneration, MMProcessor]:
    """The same, extended by both codecs."""
    model, processor = seeing()
    for codec in codecs():
        processor.add_codec(codec)
        model.add_codec(codec, processor, **({"layout": layout} if codec.num_codebooks > 1 else {}))
    processor.use_codecs(model)
    return model, processor
