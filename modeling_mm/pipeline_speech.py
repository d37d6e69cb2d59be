# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("automatic-speech-recognition")` for our models."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.generation import GenerationConfig
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline
from transformers.utils import logging

from .audio import load_audio
from .pipeline_base import MMGenerationPipeline, check_keys
from .prompts import transcription_prompt
from .transcripts import chunk_sizes, cut_into_chunks, merge_transcripts

logger = logging.get_logger(__name__)


def as_sound(source: Any) -> Any:
    """
    What the stock pipeline takes, as [`audio.load_audio`] takes it: samples may be called `raw`.

    Raises:
        ValueError: for a dict with samples and no rate, and for keys that mean nothing here.
    """
    if not isinstance(source, dict):
        return source
    if "stride" in source:
        raise ValueError("A `stride` in the input is for CTC models; leave it out, and pass `chunk_length_s` instead")
    check_keys(source, ("raw", "array", "sampling_rate", "bytes", "path"))
    sound = {key: value for key, value in source.items() if key != "raw"}
    if source.get("raw") is not None:
        sound["array"] = source["raw"]
    if sound.get("array") is not None and sound.get("sampling_rate") is None:
        raise ValueError(
            "expected samples (`raw` or `array`) with their `sampling_rate`, got them without; add it, in Hz"
        )
    return sound


class MMSpeechRecognitionPipeline(MMGenerationPipeline, AutomaticSpeechRecognitionPipeline):
    """
    `pipeline("automatic-speech-recognition")`. Takes what the stock pipeline takes: a path, a URL, bytes, samples at
    the encoder's rate, or a dict with `raw` or `array` and `sampling_rate`.

    ```python
    transcribe = pipeline("automatic-speech-recognition", model)
    transcribe("lecture.mp3", chunk_length_s=30, batch_size=8)["text"]
    ```

    Without `chunk_length_s` the model gets the whole sound at once, in as many windows as it takes, and answers within
    `max_new_tokens`; an answer that was cut off there is warned of.

    Args:
        prompt (`str`, *optional*): the text after the audio; by default one of the model's `transcription_prompts`.
        language (`str`, *optional*): the key of that default; the first one if it is None.
        chunk_length_s (`float`, *optional*): cuts long sounds into chunks of so many seconds.
        stride_length_s (`float` or two of them, *optional*, defaults to a sixth of a chunk):
            How much of a chunk, at its left and right end, the chunks beside it have too. Their texts are merged.
    """

    stock = AutomaticSpeechRecognitionPipeline
    _default_generation_config = GenerationConfig(max_new_tokens=256)  # the stock one asks for Whisper's five beams

    def __init__(self, model: Any, processor: Any = None, **kwargs):
        super().__init__(model, processor, **kwargs)
        self.type = "seq2seq"  # the stock one looks names up that are not there where the code came with the weights
        if self.model.config.audio_config is None or self.processor.feature_extractor is None:
            raise ValueError(
                "expected a model that hears, got one without an audio encoder, or a processor without a feature "
                "extractor; join a model with an audio encoder for speech recognition"
            )

    def _sanitize_parameters(
        self,
        chunk_length_s=None,
        stride_length_s=None,
        prompt=None,
        language=None,
        generate_kwargs=None,
        ignore_warning=None,
        return_timestamps=None,
        return_language=None,
        decoder_kwargs=None,
        **options,
    ) -> tuple[dict, dict, dict]:
        refused = {
            "return_timestamps": return_timestamps,
            "return_language": return_language,
            "decoder_kwargs": decoder_kwargs,
        }
        for name, value in refused.items():
            if value:
                raise ValueError(f"`{name}` is not possible: the model writes what is said, and no more; leave it out")
        named = {"chunk_length_s": chunk_length_s, "stride_length_s": stride_length_s}
        named |= {"prompt": prompt, "language": language}
        preprocess_params = {name: value for name, value in named.items() if value is not None}
        return preprocess_params, self.options_of_call(generate_kwargs, **options), {}

    def preprocess(
        self, inputs, chunk_length_s=0, stride_length_s=None, prompt=None, language=None
    ) -> Iterator[dict[str, Any]]:
        prompt = transcription_prompt(self.model, language) if prompt is None else prompt
        rate = self.processor.feature_extractor.sampling_rate
        samples = load_audio(as_sound(inputs), rate)
        length, overlap = len(samples), 0
        if chunk_length_s:
            length, overlap = chunk_sizes(chunk_length_s, stride_length_s, rate)
        chunks = cut_into_chunks(samples, length, overlap)
        for number, chunk in enumerate(chunks, 1):
            content = [{"type": "audio", "audio": (chunk, rate)}, {"type": "text", "text": prompt}]
            yield {**self.ask(content), "share": overlap / len(chunk), "is_last": number == len(chunks)}

    def _forward(self, model_inputs, **generate_kwargs) -> dict[str, Any]:
        beside = {"share": model_inputs.pop("share"), "is_last": model_inputs.pop("is_last")}
        tokens = self.answer(model_inputs, generate_kwargs)["tokens"]  # (B, K, L)
        if tokens.shape[1] != 1:
            raise ValueError(
                f"expected one transcript for each sound, got {tokens.shape[1]}; leave `num_return_sequences` out"
            )
        return {"tokens": tokens, **beside}

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> dict[str, str]:
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor([] if ends is None else ends)
        cut_off = [output for output in model_outputs if not torch.isin(output["tokens"], ends).any()]
        if cut_off and ends.numel():
            logger.warning(
                f"{len(cut_off)} of {len(model_outputs)} transcripts of this sound were cut off after "
                f"{cut_off[0]['tokens'].shape[-1]} tokens; raise `max_new_tokens`, or shorten `chunk_length_s`."
            )
        transcripts = [self.decode(output["tokens"][0])[0] for output in model_outputs]
        return {"text": merge_transcripts(transcripts, [output["share"] for output in model_outputs])}
