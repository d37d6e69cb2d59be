"""A tiny model that draws and speaks, with its processor: the fixture of the tests of generated media."""

from functools import cache

from modeling_mm import MMForConditionalGeneration, MMProcessor
from tests.fakes.codecs import tiny_codec
from tests.fakes.processor_parts import make
from tests.fakes.tiny import gpt2, open_gates, vit, whisper


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


def writing(layout: str = "delayed") -> tuple[MMForConditionalGeneration, MMProcessor]:
    """The same, extended by both codecs."""
    model, processor = seeing()
    for codec in codecs():
        processor.add_codec(codec)
        model.add_codec(codec, processor, **({"layout": layout} if codec.num_codebooks > 1 else {}))
    processor.use_codecs(model)
    return model, processor
