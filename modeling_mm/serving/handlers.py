# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The served model, and the queue through which requests are read and answered.

Loading and the thread that generates are those of `transformers serve`. Ours differ in these points:

- Requests are checked, and their media read, before they are handled; theirs open any file and any address.
- A fault in a request, such as a broken image, is answered with 400 before an answer is begun; theirs answers
  500. Faults of the server are logged and answered with 500, without their text.
- Nothing slow runs on the event loop: threads fetch sources, so that slow ones delay no other request; one thread
  reads messages, since tokenizers are not thread-safe and unpacked media add up.
- Answers without a requested length are as long as the model's positions allow; theirs asks for 1024 tokens, which a
  decoder with learned positions may not have.
- An answer ends before its stop string, and when its client leaves, streamed or not.
- A stream ends with `[DONE]`, and an error in it is valid JSON, as OpenAI's clients expect.
- A transcription is an answer to a question about audio; theirs passes the samples as the processor's first argument,
  which is `images` in ours, and takes the prompt for a part of the text.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fastapi import HTTPException
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import GenerationState

from ..sources import WEB, SourcePolicy
from .answering import BadRequest, GenerationStream, encode, make_config
from .chat_request import Media, read_media
from .sampling import Sampling
from .values import shortened

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
    Queue through which both handlers have requests read and answered.

    Args:
        most_tokens: limit on the tokens of an answer; by default the positions of the model
    """

    def __init__(
        self, manager: OneModel, state: GenerationState, policy: SourcePolicy, most_tokens: int | None = None
    ):
        self.manager, self.state, self.policy, self.most_tokens = manager, state, policy, most_tokens
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetch")
        self.reader = ThreadPoolExecutor(1, "read")

    async def read(self, work: Callable, *arguments: Any) -> Any:
        """Run work on the content of a request, one request at a time."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, work, *arguments)

    async def read_media(self, media: list[Media]) -> None:
        """
        Read all media of a request into its messages.

        Raises:
            BadRequest: for media that cannot be read, or not in time: names, connections and free threads may be late.
        """
        arguments = media, self.policy, time.monotonic() + self.policy.timeout
        if not any(each.source.startswith(WEB) for each in media):
            await self.read(read_media, *arguments)
            return
        fetched = asyncio.get_running_loop().run_in_executor(self.fetchers, read_media, *arguments)
        try:
            await asyncio.wait_for(fetched, self.policy.timeout + 1)
        except asyncio.TimeoutError as error:
            raise BadRequest(f"`messages`: its URLs took longer than {self.policy.timeout:g} s.") from error

    @property
    def submit(self) -> Callable[..., Future]:
        """Run work in the thread of the model, behind what was submitted before."""
        return self.state.get_manager(self.manager.process_model_name(self.manager.force_model)).submit

    async def use_model(self, work: Callable, *arguments: Any) -> Any:
        """Return the result of work with the model, which nothing else uses meanwhile."""
        return await asyncio.wrap_future(self.submit(work, *arguments))

    async def begin(self, messages: list[dict[str, Any]], sampling: Sampling) -> list[GenerationStream]:
        """Queue the answers to a conversation behind the answers that were requested before."""
        model, processor = self.manager.served()
        inputs = await self.read(encode, model, processor, messages)
        config = make_config(sampling, model, inputs["input_ids"].shape[-1], self.most_tokens)
        return [
            GenerationStream(self.submit, model, processor, inputs, config, sampling, seed)
            for seed in sampling.seeds()
        ]
