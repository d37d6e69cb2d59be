"""Tiny tokenizers, extractors and inputs for the tests of the processor."""

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_mm.processing_mm import MMProcessor

RATE = 16_000
TEXTS = ["What do you see? A red square.", "You are brief.", "a cat, a dog and a bird", "hello there"]


def make_bpe() -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's, without a padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def make_wordpiece() -> PreTrainedTokenizerFast:
    """A tokenizer like that of Chinese GPT-2: lower case, [CLS] and [SEP] around every text, a padding token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator([*TEXTS, "你看到什么"], trainers.WordPieceTrainer(special_tokens=names))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def make_whisper() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=8, chunk_length=1)  # windows of one second


def make_vit() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 8, "width": 8})


def make(vision=True, audio=True, **kwargs) -> MMProcessor:
    return MMProcessor(make_vit() if vision else None, make_whisper() if audio else None, make_bpe(), **kwargs)


def picture(color: str = "red", size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, color)


def sound(seconds: float = 0.5) -> tuple[np.ndarray, int]:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32), RATE


def ids(processor: MMProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False).input_ids
