# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Images that are drawn and texts that are said: pipelines of models that write the codes of a codec."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import numpy as np
import torch
from transformers.generation import GenerationConfig, StoppingCriteriaList
from transformers.pipelines.base import Pipeline
from transformers.pipelines.text_to_audio import TextToAudioPipeline

from .audio_streamer import AudioCodeStreamer, StopWhen
from .code_tokens import CodeTokens, code_tokens_of
from .compat import chosen_generate_kwargs
from .modalities import MODALITIES
from .pipeline_base import MMGenerationPipeline, Parameters, check_keys, messages_of, rows_with_media, take
from .prompts import drawing_prompt, fill_prompt, speech_prompt
from .sources import describe

LONGEST_AUDIO = 30.0  # seconds that are said unless a call has other limits
AROUND = 3  # tokens beside the codes: start, end, and the end of the answer
LENGTHS = ("max_new_tokens", "max_length")


def check_writes(model: Any, name: str) -> CodeTokens:
    """
    Return the tokens of a modality that a model writes.

    Raises:
        ValueError: if it has no codec for it.
    """
    if (tokens := code_tokens_of(model.config).get(name)) is None:
        raise ValueError(
            f"expected a model that writes {name}, got a {type(model).__name__} without a codec of {name}: give it "
            "one by `processor.add_codec(codec)` and `model.add_codec(codec, processor)`, and train it to write codes"
        )
    return tokens


def room_for(tokens: CodeTokens, codec: Any) -> int:
    """Return the most new tokens of an answer that is one image, or audio of `LONGEST_AUDIO`."""
    steps = round(LONGEST_AUDIO * codec.rate) if tokens.steps is None else tokens.steps
    return steps * tokens.codebooks + AROUND


def writing_options(pipe: Any, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `generate` for one image or audio, with room for it unless the caller limits the length."""
    written = pipe.processor.written_modality(name)
    chosen = chosen_generate_kwargs(pipe, given)
    limited = "generation_config" in chosen or any(chosen.get(length) is not None for length in LENGTHS)
    room = {} if limited else {"max_new_tokens": room_for(written.tokens, written.codec)}
    return {**room, **given, "output_modalities": (name,)}


@contextmanager
def drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """
    Let torch's own random numbers on a device come from a generator, and be what they were afterwards.

    Raises:
        ValueError: for a generator of another device.
    """
    if generator is None:
        yield
        return
    if generator.device.type != device.type:
        raise ValueError(
            f"the generator is on {generator.device}, but the model on {device}: pass "
            f"torch.Generator({device.type!r}), whose random numbers are those of that device"
        )
    source: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    place = () if device.type == "cpu" else (device,)
    before = source.get_rng_state(*place)
    source.set_rng_state(generator.get_state(), *place)
    try:
        yield
    finally:
        generator.set_state(source.get_rng_state(*place))
        source.set_rng_state(before, *place)


class MMWritingPipeline(MMGenerationPipeline):
    """
    Base of pipelines whose answer is one image or one piece of audio.

    A row is a text, a dict with `text` and media (`image`, `audio`), or a chat, which is answered as it is.
    """

    written: str  # the modality of the answer

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        # Not the stock constructor of speech, which looks for a vocoder.
        Pipeline.__init__(self, **self.complete(model, processor, **kwargs))

    def check_model(self, model: Any) -> None:
        super().check_model(model)
        check_writes(model, self.written)

    def default_prompt(self) -> str:
        """Return the model's prompt for such an answer, with `{text}` in it."""
        raise NotImplementedError

    def _sanitize_parameters(self, generate_kwargs: dict | None = None, **options: Any) -> Parameters:
        preprocess_params, generator = take(options, "prompt"), take(options, "generator")
        given = self.options_of_call(generate_kwargs, **options)
        return preprocess_params, {**given, **generator}, {}

    def preprocess(self, inputs: Any, prompt: str | None = None) -> dict[str, Any]:
        if (messages := messages_of(inputs)) is not None:
            return dict(self.encode_chat(messages))
        inputs = {"text": inputs} if isinstance(inputs, str) else inputs
        media = {kind: inputs[kind] for kind in MODALITIES if inputs.get(kind) is not None} if is_row(inputs) else {}
        if not is_row(inputs) or (inputs.get("text") is None and not media):
            raise ValueError(
                f"expected a text, a chat, or a dict with `text` and media among {', '.join(MODALITIES)}; got "
                f"{describe(inputs)}"
            )
        check_keys(inputs, ("text", *MODALITIES))
        prompt = self.default_prompt() if prompt is None else prompt
        parts = [{"type": kind, kind: item} for kind, item in media.items()]
        return self.ask([*parts, {"type": "text", "text": fill_prompt(prompt, text=inputs.get("text") or "")}])

    def _forward(
        self, model_inputs: dict[str, Any], generator: torch.Generator | None = None, **generate_kwargs: Any
    ) -> dict[str, Any]:
        with drawing_from(generator, self.device):
            return self.answer(model_inputs, writing_options(self, self.written, generate_kwargs))

    def media_of(self, model_outputs: dict[str, Any]) -> list[Any]:
        """Return the image or the samples of each answer (K, L) to one row."""
        return self.processor.post_process_multimodal_output(model_outputs["tokens"][0], generation_mode=self.written)  # type: ignore[no-any-return]


def is_row(inputs: Any) -> bool:
    """Return True for a dict whose text is a text, or is not there."""
    return isinstance(inputs, dict) and isinstance(inputs.get("text"), (str, type(None)))


class MMTextToImagePipeline(MMWritingPipeline):
    """
    `pipeline("text-to-image")`, which transformers does not have: images of texts, and of images with texts.

    ```python
    draw = pipeline("text-to-image", model)
    draw("a red apple").save("apple.png")
    draw("a green apple", image="apple.png", guidance_scale=3.0, num_images_per_prompt=4)  # four PIL images
    draw("a red apple", generator=torch.Generator().manual_seed(0))  # the same each time
    ```

    Codes are sampled unless the model or the call says otherwise (`do_sample=False`).
    """

    written = "image"
    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(do_sample=True)

    def default_prompt(self) -> str:
        return drawing_prompt(self.model)

    def __call__(self, text: Any = None, image: Any = None, audio: Any = None, **kwargs: Any) -> Any:
        """
        Draw images.

        Args:
            text: a text; or a list of texts; or a dict with `text`, `image`, `audio`; or a chat; or a list, dataset or
                generator of dicts or chats.
            image, audio (*optional*): media to draw after; lists as long as the list of texts.
            num_images_per_prompt (`int`, *optional*, defaults to 1): images of each row.
            guidance_scale (`float`, *optional*): above 1 guides away from images without the prompt.
            generator (`torch.Generator`, *optional*):
                Random numbers of the sampling, of the model's device. Calls and batches take its numbers in turn, so
                rows get other images in batches of another size.
            prompt (`str`, *optional*, defaults to the model's `drawing_prompt`): the question, with `{text}` in it.
            generate_kwargs (`dict`, *optional*): options of `generate`, which may be given by name too.

        Returns:
            A PIL image, or a list of `num_images_per_prompt`; a list of these for a list of rows, an iterator over
            them for a dataset or a generator.
        """
        return super().__call__(rows_with_media(text, image=image, audio=audio), **kwargs)

    def _sanitize_parameters(self, generate_kwargs: dict | None = None, **options: Any) -> Parameters:
        count = options.pop("num_images_per_prompt", None)
        if count is not None:
            if "num_return_sequences" in {**options, **(generate_kwargs or {})}:
                raise ValueError("pass num_images_per_prompt or num_return_sequences, which mean the same, not both")
            options["num_return_sequences"] = count
        return super()._sanitize_parameters(generate_kwargs, **options)

    def postprocess(self, model_outputs: dict[str, Any]) -> Any:
        images = self.media_of(model_outputs)
        return images[0] if len(images) == 1 else images


class MMTextToAudioPipeline(MMWritingPipeline, TextToAudioPipeline):
    """
    `pipeline("text-to-audio")`, also by the name `"text-to-speech"`: texts that are said, in a voice if one is given.

    ```python
    say = pipeline("text-to-audio", model)
    spoken = say("Good morning.", audio="voice.wav")  # {"audio": (samples,) float32, "sampling_rate": int}
    for samples in say.stream("Good morning."):  # chunks, while it is generated
        play(samples, say.sampling_rate)
    ```
    """

    written = "audio"
    stock = TextToAudioPipeline

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        super().__init__(model, processor, **kwargs)
        self.sampling_rate: int = self.processor.written_modality(self.written).codec.sampling_rate

    def default_prompt(self) -> str:
        return speech_prompt(self.model)

    def __call__(self, text_inputs: Any = None, image: Any = None, audio: Any = None, **kwargs: Any) -> Any:
        """
        Say texts.

        Args:
            text_inputs: a text; or a list of texts; or a dict with `text`, `image`, `audio`; or a chat; or a list,
                dataset or generator of dicts or chats.
            image, audio (*optional*): media to go by, such as a voice to speak in; lists as long as the list of texts.
            generator (`torch.Generator`, *optional*): random numbers of the sampling, see [`MMTextToImagePipeline`].
            prompt (`str`, *optional*, defaults to the model's `speech_prompt`): the question, with `{text}` in it.
            generate_kwargs, forward_params (`dict`, *optional*):
                Options of `generate`, which may be given by name too. Without a length among them 30 seconds are the
                most.

        Returns:
            `{"audio": (samples,), "sampling_rate": int}`, or a list of `num_return_sequences`; a list of these for a
            list of rows, an iterator over them for a dataset or a generator.
        """
        return super().__call__(rows_with_media(text_inputs, image=image, audio=audio), **kwargs)

    def _sanitize_parameters(
        self, generate_kwargs: dict | None = None, forward_params: dict | None = None, **options: Any
    ) -> Parameters:
        return super()._sanitize_parameters({**(forward_params or {}), **(generate_kwargs or {})}, **options)

    def stream(
        self, text_input: Any, chunk_seconds: float = 0.5, context: int | None = None, **kwargs: Any
    ) -> Iterator[np.ndarray]:
        """
        Say one text in chunks of samples, while it is generated; together they are what a call gives.

        Args:
            text_input: a text, a dict, or a chat.
            chunk_seconds, context: see [`AudioCodeStreamer`].
            kwargs: as of a call.
        """
        streamer, is_over = AudioCodeStreamer(self.processor, chunk_seconds, context), Event()
        criteria = StoppingCriteriaList([*kwargs.pop("stopping_criteria", ()), StopWhen(is_over.is_set)])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self, text_input, streamer=streamer, stopping_criteria=criteria, **kwargs)
            answer.add_done_callback(lambda _: streamer.end())  # the loop ends if generating fails, too
            try:
                yield from streamer
            finally:
                is_over.set()  # whoever iterates may have enough
            answer.result()

    def postprocess(self, model_outputs: dict[str, Any]) -> Any:
        spoken = [{"audio": samples, "sampling_rate": self.sampling_rate} for samples in self.media_of(model_outputs)]
        return spoken[0] if len(spoken) == 1 else spoken
