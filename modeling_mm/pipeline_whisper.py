# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("automatic-speech-recognition")` of models that were converted from Whisper."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline

from .audio import load_audio
from .compat import decode_whisper, merge_generate_kwargs
from .configuration_mm import check_choice
from .pipeline_base import MMGenerationPipeline, Parameters, check_keys, take
from .prompts import transcription_languages
from .transcripts import chunk_sizes
from .whisper_generation import TASKS, WhisperGeneration, prompt_ids

LONG_AUDIO = ("chunked", "sequential")
TIMESTAMPS = (False, True, "word")


def as_audio(source: Any) -> Any:
    """Return an input of the stock pipeline, whose samples may be called `raw`, as `audio.load_audio` takes it."""
    if not isinstance(source, dict):
        return source
    if "stride" in source:
        raise ValueError("A `stride` in the input is for CTC models; leave it out, and pass `chunk_length_s` instead")
    check_keys(source, ("raw", "array", "sampling_rate", "bytes", "path"))
    audio = {key: value for key, value in source.items() if key != "raw"}
    if source.get("raw") is not None:
        audio["array"] = source["raw"]
    if audio.get("array") is not None and audio.get("sampling_rate") is None:
        raise ValueError(
            "expected samples (`raw` or `array`) with their `sampling_rate`, got them without; add it, in Hz"
        )
    return audio


class MMWhisperPipeline(MMGenerationPipeline, AutomaticSpeechRecognitionPipeline):
    """
    `pipeline("automatic-speech-recognition")` of a model that was converted from Whisper.

    Texts, chunks and defaults (five beams) are those of the stock pipeline of the original; inputs are those of
    [`MMSpeechRecognitionPipeline`].

    ```python
    transcribe = pipeline("automatic-speech-recognition", model)
    transcribe("lecture.mp3", return_timestamps=True, batch_size=8)["chunks"]
    ```

    Args:
        long_audio (`str`, *optional*, defaults to `"chunked"`):
            How audio longer than a window is read: in windows that overlap and share batches, whose texts are merged
            (`"chunked"`), or window by window from the last timestamp on (`"sequential"`), with the text before if
            `condition_on_prev_tokens` is true.
        chunk_length_s (`float`, *optional*, defaults to a window): the length of chunks.
        stride_length_s (`float` or two of them, *optional*, defaults to a sixth of a chunk):
            The seconds at the left and right end of a chunk that its neighbors have too.
        return_timestamps (`bool` or `"word"`, *optional*): adds `chunks`, segments or words with their seconds.
        return_language (`bool`, *optional*): adds the language of each chunk; for multilingual models.
        language (`str`, *optional*): one of the model's languages; by default it is detected.
        task (`str`, *optional*, defaults to `"transcribe"`): or `"translate"`, into English.
        prompt (`str`, *optional*): the text before the audio, such as names that occur in it.
        generate_kwargs (`dict`, *optional*): options of Whisper's `generate`, which may be given by name too.
    """

    stock = AutomaticSpeechRecognitionPipeline

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        super().__init__(model, processor, **kwargs)
        if self.processor.feature_extractor is None:
            raise ValueError("expected a processor with a feature extractor for speech recognition, got one without")
        self.type = "seq2seq_whisper"
        self.feature_extractor, self.tokenizer = self.processor.feature_extractor, self.processor.tokenizer
        self.whisper = WhisperGeneration(self.model)

    def _sanitize_parameters(self, generate_kwargs: dict | None = None, **options: Any) -> Parameters:
        options.pop("ignore_warning", None)
        if options.pop("decoder_kwargs", None):
            raise ValueError("`decoder_kwargs` is for CTC models; leave it out")
        preprocess_params = take(options, "chunk_length_s", "stride_length_s", "long_audio")
        check_choice("long_audio", preprocess_params.get("long_audio", LONG_AUDIO[0]), LONG_AUDIO)
        both = take(options, "return_timestamps", "return_language")
        check_choice("return_timestamps", both.get("return_timestamps", False), TIMESTAMPS)
        options = self.options_of_call(generate_kwargs, **options)
        language, task = options.get("language"), options.get("task")
        self.check_language(language, task, both.get("return_language", False))
        return preprocess_params, {**both, **options}, both

    def check_language(self, language: str | None, task: str | None, return_language: bool) -> None:
        """Raise a `ValueError` for a language or a task that the model does not have."""
        languages = transcription_languages(self.model)
        if language is not None and language not in languages:
            raise ValueError(f"expected a language among {', '.join(languages)}, got {language!r}")
        check_choice("task", task or TASKS[0], TASKS if self.is_multilingual else TASKS[:1])
        if return_language and not self.is_multilingual:
            raise ValueError("`return_language` is for multilingual models, and this one transcribes English alone")

    @property
    def is_multilingual(self) -> bool:
        """True for a model of more languages than English."""
        return bool(getattr(self.model.generation_config, "lang_to_id", None))

    def preprocess(  # type: ignore[override]
        self,
        inputs: Any,
        chunk_length_s: float = 0,
        stride_length_s: Any = None,
        long_audio: str = LONG_AUDIO[0],
    ) -> Iterator[dict[str, Any]]:
        window = self.feature_extractor.n_samples
        rate = self.feature_extractor.sampling_rate
        samples = load_audio(as_audio(inputs), rate)
        if chunk_length_s and long_audio != LONG_AUDIO[0]:
            raise ValueError("`chunk_length_s` is for long_audio='chunked'; leave one of the two out")
        if not 0 <= chunk_length_s <= window / rate:
            raise ValueError(
                f"`chunk_length_s` must be positive and at most a window, {window / rate:g} s, got {chunk_length_s}"
            )
        if chunk_length_s:
            chunk_sizes(chunk_length_s, stride_length_s, rate)  # which the stock pipeline does not check
        elif len(samples) > window and long_audio == LONG_AUDIO[0]:
            chunk_length_s = window / rate
        yield from super().preprocess(samples, chunk_length_s, stride_length_s)

    def collate(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad the features (1, n_mels, T) of rows to the longest; anything else becomes a list."""
        longest = max(row["input_features"].shape[-1] for row in rows)
        tensors = {
            name: torch.cat([pad(row[name], (0, longest - row[name].shape[-1])) for row in rows])
            for name in ("input_features", "attention_mask")
        }
        names = dict.fromkeys(name for row in rows for name in row if name not in tensors)
        return {**tensors, **{name: [row.get(name) for row in rows] for name in names}}

    def _forward(  # type: ignore[override]
        self,
        model_inputs: dict[str, Any],
        return_timestamps: bool | str = False,
        return_language: bool = False,
        language: str | None = None,
        task: str | None = None,
        prompt: str | None = None,
        **generate_kwargs: Any,
    ) -> dict[str, Any]:
        features = model_inputs["input_features"]
        is_long = features.shape[-1] > self.feature_extractor.nb_max_frames  # which is read by its timestamps
        is_timed = return_timestamps == "word"
        options = merge_generate_kwargs(self, generate_kwargs)
        options.pop("tokenizer", None)  # of stop strings, which the routine does not know
        if prompt:
            options["prompt_ids"] = prompt_ids(self.processor, prompt, self.whisper.longest_context).to(self.device)
        if self.is_multilingual:
            options |= {"language": language, "task": task or TASKS[0]}
        output = self.whisper.generate(
            features,
            attention_mask=model_inputs["attention_mask"],
            return_timestamps=bool(return_timestamps) or is_long,
            return_token_timestamps=is_timed,
            return_segments=is_timed or return_language,
            **options,
        )
        made = {"tokens": output["sequences"] if isinstance(output, dict) else output}
        if is_timed:
            times = [torch.cat([part["token_timestamps"] for part in segments]) for segments in output["segments"]]
            made["token_timestamps"] = pad_sequence(times, batch_first=True)
        if return_language:
            made = self.with_languages(made, output["segments"])
        beside: dict[str, Any] = {name: model_inputs[name] for name in ("is_last", "stride") if name in model_inputs}
        return {**made, **beside}

    def with_languages(self, made: dict[str, torch.Tensor], segments: list[list[dict]]) -> dict[str, torch.Tensor]:
        """Put the token of its language in front of each row, where the stock routine looks for it."""
        known = set(self.model.generation_config.lang_to_id.values())
        rows = [parts[0]["result"] if parts else [] for parts in segments]
        rows = [row["sequences"] if isinstance(row, dict) else row for row in rows]
        ids = [next((int(token) for token in row if int(token) in known), None) for row in rows]
        fronts = torch.tensor([self.tokenizer.eos_token_id if each is None else each for each in ids])[:, None]
        return {
            name: torch.cat([fronts.to(tensor) if name == "tokens" else tensor.new_zeros(len(tensor), 1), tensor], 1)
            for name, tensor in made.items()
        }

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: list[dict[str, Any]],
        return_timestamps: bool | str = False,
        return_language: bool = False,
    ) -> dict[str, Any]:
        rate = self.feature_extractor.sampling_rate
        for output in model_outputs:
            if (stride := output.pop("stride", None)) is not None:
                output["stride"] = tuple(samples / rate for samples in stride)
        return decode_whisper(
            self.tokenizer,
            model_outputs,
            return_timestamps=return_timestamps,
            return_language=return_language,
            time_precision=self.feature_extractor.chunk_length / self.model.config.audio_config.max_source_positions,
        )
