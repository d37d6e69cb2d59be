# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The served model, and the queue through which requests are read and answered.

Loading is that of `transformers serve`. Ours differ in these points:

- Requests are checked, and their media read, before they are handled; theirs open any file and any address.
- A fault in a request, such as a broken image, is answered with 400 before an answer is begun; theirs answers
  500. Faults of the server are logged and answered with 500, without their text.
- Nothing slow runs on the event loop: threads fetch URLs, processes decode media, one thread reads text.
- Answers are generated together, each as if alone; theirs come one after the other.
- Answers without a requested length are as long as the model's positions allow; theirs asks for 1024 tokens, which a
  decoder with learned positions may not have.
- An answer ends before its stop string, and when its client leaves, streamed or not.
- A stream ends with `[DONE]`, and an error in it is valid JSON, as OpenAI's clients expect.
- A transcription is an answer to a question about audio; theirs passes the samples as the processor's first argument,
  which is `images` in ours, and takes the prompt for a part of the text.
"""

import asyncio
import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import HTTPException
from transformers.cli.serving.model_manager import ModelManager

from ..modalities import MODALITIES
from ..sources import WEB, SourcePolicy
from .answering import GenerationStream, MakeStreamer, make_config
from .engine import Engine
from .limits import BadRequest, ServerLimits
from .preparing import Media, Prepared, TextRoom, fetch, prepare
from .row import items_of
from .sampling import Sampling
from .values import shortened
from .workers import WorkerPool

FETCHERS = 16


class OneModel(ModelManager):
    """Manager of one model; clients can neither load nor list another."""

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        return [self.description()]

    def description(self) -> dict[str, Any]:
        """Return the model as OpenAI's clients list it."""
        return {"id": self.force_model, "object": "model", "created": 0, "owned_by": "modeling_mm"}

    def check_name(self, name: Any) -> None:
        """
        Check the model that a request names; none means this one.

        Raises:
            BadRequest: if it is not a text.
            HTTPException: if it is another one.
        """
        if name is not None and not isinstance(name, str):
            raise BadRequest(f"`model`: expected a name, got {shortened(name)}.")
        if name is not None and name != self.force_model:
            raise HTTPException(
                404, f"`model`: there is no {shortened(name)} here; this server has {self.force_model!r}."
            )

    def served(self) -> tuple[Any, Any]:
        """Return the model and its processor."""
        return self.load_model_and_processor(self.process_model_name(self.force_model))


class RequestQueue:
    """
    Queue through which all handlers have requests read and answered.

    Args:
        policy: what media of a request may be
        limits: of the server

    Attributes:
        writer: the processor with the codecs of the model, which it shares
    """

    def __init__(self, manager: OneModel, policy: SourcePolicy, limits: ServerLimits):
        self.manager, self.policy, self.limits = manager, policy, limits
        model, processor = manager.served()
        self.engine = Engine(model, limits.rows)
        self.workers = WorkerPool(processor, limits.workers, limits.prepare_seconds)
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetch")
        self.reader = ThreadPoolExecutor(1, "read")  # tokenizers are not thread-safe
        self.room = TextRoom.of(model, processor)
        # Another one than that of the workers, each of which would get a copy of the codecs.
        self.writer = copy.copy(processor)
        self.writer.use_codecs(model)

    async def prepare(self, messages: list[dict[str, Any]], media: Sequence[Media] = ()) -> Prepared:
        """
        Return the inputs of a conversation. Media are decoded by a worker; text alone, which takes no time, is not.

        Raises:
            BadRequest: for media and messages that are refused.
        """
        media = await self.fetch(media)
        arguments = messages, media, self.policy, self.room
        if media:
            return await self.workers.run(prepare, *arguments)
        _, processor = self.manager.served()
        return await asyncio.get_running_loop().run_in_executor(self.reader, prepare, processor, *arguments)

    async def fetch(self, media: Sequence[Media]) -> Sequence[Media]:
        """
        Return media with the content of their URLs.

        Raises:
            BadRequest: for those that cannot be read, or not in time: names, connections and free threads may be late.
        """
        if not any(isinstance(each.source, str) and each.source.startswith(WEB) for each in media):
            return media
        deadline = time.monotonic() + self.policy.timeout
        fetched = asyncio.get_running_loop().run_in_executor(self.fetchers, fetch, media, self.policy, deadline)
        try:
            return await asyncio.wait_for(fetched, self.policy.timeout + 1)
        except asyncio.TimeoutError as error:
            raise BadRequest(f"`messages`: its URLs took longer than {self.policy.timeout:g} s.") from error

    def check_writes(self, modality: str, is_alone: bool = True) -> None:
        """
        Check that the model writes media of a kind.

        Args:
            is_alone: whether an answer has no text beside them

        Raises:
            BadRequest: for a model without a codec for them, and for one whose answers of media alone have no end.
        """
        if modality not in self.writer.written:
            raise BadRequest(
                f"`model`: it writes no {MODALITIES[modality].plural}; use a model with a codec of {modality} "
                "(`model.add_codec`)."
            )
        if is_alone and self.engine.model.generation_config.eos_token_id is None:
            raise BadRequest(
                f"`model`: an answer of {MODALITIES[modality].plural} alone ends by eos_token_id, which its "
                "generation config lacks; set it."
            )

    async def use_model(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of work with the model, which nothing else uses meanwhile."""
        return await asyncio.wrap_future(self.engine.call(work, *arguments))

    async def begin(
        self, messages: list[dict[str, Any]], sampling: Sampling, media: Sequence[Media] = ()
    ) -> list[GenerationStream]:
        """Have the answers to a conversation generated, beside those of other requests."""
        return self.answer(await self.prepare(messages, media), sampling)

    def answer(
        self, prepared: Prepared, sampling: Sampling, streamer: MakeStreamer | None = None
    ) -> list[GenerationStream]:
        """Have the answers to a prepared conversation generated; see `GenerationStream` for the streamer."""
        model, processor = self.manager.served()
        inputs = self.tensors(prepared)
        config = make_config(sampling, model, inputs["input_ids"].shape[-1], self.limits.tokens)
        items = items_of(inputs)
        return [
            GenerationStream(self.engine, processor, inputs, config, sampling, seed, items, streamer)
            for seed in sampling.seeds()
        ]

    @property
    def tokenizer(self) -> Any:
        return self.manager.served()[1].tokenizer

    def tensors(self, prepared: Prepared) -> dict[str, torch.Tensor]:
        """Return prepared inputs on the model's device."""
        device = self.engine.model.device
        return {name: torch.from_numpy(array).to(device) for name, array in prepared.inputs.items()}

    def stop(self) -> None:
        """End the engine and the workers, whatever they do."""
        self.engine.stop()
        self.workers.stop()
        self.fetchers.shutdown(wait=False, cancel_futures=True)
