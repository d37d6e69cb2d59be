# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("automatic-speech-recognition")` for the models of this package."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.generation import GenerationConfig
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline
from transformers.utils import logging

from .audio import load_audio, window_length
from .configuration_mm import MMConfig
from .pipeline_base import MMGenerationPipeline, Parameters, take
from .pipeline_whisper import MMWhisperPipeline, as_audio
from .prompts import max_windows, transcription_prompt
from .transcripts import chunk_sizes, cut_into_chunks, merge_transcripts
from .whisper_generation import is_whisper

logger = logging.get_logger(__name__)


class MMSpeechRecognitionPipeline(MMGenerationPipeline, AutomaticSpeechRecognitionPipeline):
    """
    `pipeline("automatic-speech-recognition")`.

    Takes the inputs of the stock pipeline: a path, a URL, bytes, samples at the encoder's rate, or a dict with `raw`
    or `array` and `sampling_rate`.

    ```python
    transcribe = pipeline("automatic-speech-recognition", model)
    transcribe("lecture.mp3", chunk_length_s=30, batch_size=8)["text"]
    ```

    Without `chunk_length_s` the model gets all of the audio at once, in as many windows as it takes, and answers
    within `max_new_tokens`; an answer that is cut off there causes a warning. A model that transcribes few windows at
    once (`max_windows` of its generation config) gets longer audio in chunks of so many.

    A model that was converted from Whisper gets an [`MMWhisperPipeline`].

    Args:
        prompt (`str`, *optional*): the text after the audio; by default one of the model's `transcription_prompts`.
        language (`str`, *optional*): the key of that default; the first one if it is None.
        chunk_length_s (`float`, *optional*): cuts long audio into chunks of so many seconds.
        stride_length_s (`float` or two of them, *optional*, defaults to a sixth of a chunk):
            The seconds at the left and right end of a chunk that its neighbors have too. Their texts are merged.
    """

    stock = AutomaticSpeechRecognitionPipeline
    _default_generation_config = GenerationConfig(max_new_tokens=256)  # the stock one has Whisper's five beams

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        model = kwargs.get("model", args[0] if args else None)
        if (
            model is not None
            and getattr(model.config, "model_type", None) == MMConfig.model_type
            and is_whisper(model)
        ):
            return MMWhisperPipeline(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        super().__init__(model, processor, **kwargs)
        self.type = "seq2seq"  # the stock one looks for names that code from the Hub does not have
        if self.model.config.audio_config is None or self.processor.feature_extractor is None:
            raise ValueError(
                "expected a model with an audio encoder and a processor with a feature extractor, got one without; "
                "join a model with an audio encoder for speech recognition"
            )

    def _sanitize_parameters(self, generate_kwargs: dict | None = None, **options: Any) -> Parameters:
        for name, value in take(options, "return_timestamps", "return_language", "decoder_kwargs").items():
            if value:
                raise ValueError(f"`{name}` is not possible: the model writes the words alone; leave it out")
        options.pop("ignore_warning", None)
        preprocess_params = take(options, "chunk_length_s", "stride_length_s", "prompt", "language")
        return preprocess_params, self.options_of_call(generate_kwargs, **options), {}

    def preprocess(
        self,
        inputs: Any,
        chunk_length_s: float = 0,
        stride_length_s: Any = None,
        prompt: str | None = None,
        language: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        prompt = transcription_prompt(self.model, language) if prompt is None else prompt
        rate = self.processor.feature_extractor.sampling_rate
        samples = load_audio(as_audio(inputs), rate)
        length, overlap = len(samples), 0
        if not chunk_length_s and (windows := max_windows(self.model)) is not None:
            longest = windows * window_length(self.processor.feature_extractor, self.processor.audio_window_seconds)
            chunk_length_s = longest / rate if len(samples) > longest else 0
        if chunk_length_s:
            length, overlap = chunk_sizes(chunk_length_s, stride_length_s, rate)
        chunks = cut_into_chunks(samples, length, overlap)
        for number, chunk in enumerate(chunks, 1):
            audio, question = {"type": "audio", "audio": (chunk, rate)}, {"type": "text", "text": prompt}
            yield {**self.ask([audio, question]), "share": overlap / len(chunk), "is_last": number == len(chunks)}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        beside = {"share": model_inputs.pop("share"), "is_last": model_inputs.pop("is_last")}
        tokens = self.answer(model_inputs, generate_kwargs)["tokens"]  # (B, K, L)
        if tokens.shape[1] != 1:
            raise ValueError(
                f"expected one transcript for each audio input, got {tokens.shape[1]}; leave `num_return_sequences` "
                "out"
            )
        return {"tokens": tokens, **beside}

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> dict[str, str]:
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor([] if ends is None else ends)
        cut_off = [output for output in model_outputs if not torch.isin(output["tokens"], ends).any()]
        if cut_off and ends.numel():
            logger.warning(
                f"{len(cut_off)} of {len(model_outputs)} transcripts of one audio input were cut off after "
                f"{cut_off[0]['tokens'].shape[-1]} tokens; raise `max_new_tokens`, or shorten `chunk_length_s`."
            )
        transcripts = [self.decode(output["tokens"][0])[0] for output in model_outputs]
        return {"text": merge_transcripts(transcripts, [output["share"] for output in model_outputs])}
