# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The thread that runs the model: it answers all requests at once, and each as if it were alone.

Rows wait, have their media encoded, join a running batch with their prompt, and leave it with their last token:

    submit -> waiting -> encode, a few items a turn -> prefill -> one step a turn for all rows -> done

One turn does a little of each, so that neither a long audio nor a long queue holds up rows that are running. Rows
whose media differ much in size run in batches apart, because media are padded to the longest of a batch.

transformers' continuous batching takes token ids alone: it has no place for media, nor for cross-attention's keys and
values (5.23), hence this one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch

from ..layers import turn_weights
from .row import BatchRow, MediaItem, MediaRow, Row
from .running_batch import RunningBatch
from .sampling import RowSampler, penalties_of

MOST_ROWS = 64
# Of a batch, padding included. Rows and media beyond wait; one row alone may be larger.
MOST_TOKENS = MOST_MEDIA_TOKENS = 1 << 15
# Media of up to this many tokens a row share a batch; above, those within a factor of two do.
SHARED_MEDIA_TOKENS = 512
# Of prompts, and of items to encode, in one turn.
PREFILL_TOKENS = 1024
ENCODE_SECONDS, MOST_ITEMS = 0.1, 16


class Engine:
    """
    Thread of a model, which runs nothing else.

    Args:
        model: an `MMForConditionalGeneration`
        most_rows: rows that are generated at once; a guided answer takes two
    """

    def __init__(self, model: Any, most_rows: int = MOST_ROWS):
        self.model, self.most_rows = model, most_rows
        turn_weights(model)
        self._changed = threading.Condition()
        self._arrived: deque[MediaRow] = deque()
        self._calls: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._waiting: list[MediaRow] = []
        self._batches: dict[int, RunningBatch] = {}  # by the class of their media's size
        self._seconds_per_item: dict[Any, float] = {}
        self._is_open = True
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    # ---- From any thread --------------------------------------------------------------------------------------------

    def submit(self, row: Row) -> Future:
        """Queue a row; its future ends when its answer is complete, or has failed."""
        if row.needs_generate():
            self.call(generate_alone, self.model, row).add_done_callback(lambda done: row.finish(done.exception()))
        else:
            self._put(self._arrived, row)
        return row.done

    def encode(self, items: list[MediaItem]) -> Future:
        """Encode the media of one row, in turns with those of others; its future ends with an `MMMediaOutput`."""
        row = MediaRow(items)
        self._put(self._arrived, row)
        return row.done

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Run a function with the model, between two turns."""
        future: Future = Future()
        self._put(self._calls, (future, partial(function, *arguments)))
        return future

    def stop(self) -> None:
        """End the thread after its turn. Answers that are not complete fail."""
        with self._changed:
            self._is_open = False
            self._changed.notify()

    def _put(self, queue: deque, item: Any) -> None:
        with self._changed:
            queue.append(item)
            self._changed.notify()

    # ---- In the engine's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.model.eval()
        while self._receive():
            # A fault between the guarded parts, such as memory that ran out when a batch was rearranged.
            self._guarded([], self._turn, self._give_up)
        self._give_up(RuntimeError("The server is shutting down."))

    def _give_up(self, error: BaseException) -> None:
        """Fail all rows."""
        for row in [*self._waiting, *(row for batch in self._batches.values() for row in batch.rows)]:
            row.finish(error)
        self._waiting, self._batches = [], {}

    def _receive(self) -> bool:
        """Take what has arrived, and wait for it if there is nothing to do; return False at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._arrived or self._calls or self._waiting or self._batches or not self._is_open
            )
            self._waiting.extend(self._arrived)
            self._arrived.clear()
            return self._is_open

    def _turn(self) -> None:
        if self._calls:
            run_call(*self._calls.popleft())
        self._drop_abandoned()
        self._encode()
        self._prefill()
        for size, batch in list(self._batches.items()):
            self._advance(batch, batch.rows, batch.step)
            if not batch.rows:
                del self._batches[size]

    def _drop_abandoned(self) -> None:
        """Let go of rows whose client has left."""
        for row in self._waiting:
            if row.is_over():
                row.finish()
        self._waiting = [row for row in self._waiting if not row.done.done()]

    def _encode(self) -> None:
        """Encode the next items of the waiting rows, in turns, for about `ENCODE_SECONDS`."""
        queues = [row.pending() for row in self._waiting[: self.most_rows]]
        queues = [items for items in queues if items]
        if not queues:
            return
        # The first item of every row, then the second of every row, ...: no row waits for all items of another.
        longest = max(map(len, queues))
        in_turns = [items[number] for number in range(longest) for items in queues if number < len(items)]
        in_turns = list(dict.fromkeys(in_turns))  # answers to one prompt share its items
        kind = in_turns[0].shape()
        seconds = self._seconds_per_item.get(kind, ENCODE_SECONDS)
        count = max(1, min(MOST_ITEMS, int(ENCODE_SECONDS / seconds)))
        chosen = [item for item in in_turns if item.shape() == kind][:count]
        start = time.monotonic()
        rows = [row for row in self._waiting if any(item in chosen for item in row.items)]
        self._guarded(rows, partial(encode_items, self.model, chosen))
        self._seconds_per_item[kind] = (time.monotonic() - start) / len(chosen)

    def _prefill(self) -> None:
        """Let the rows join that are ready and have room, the first come first, up to `PREFILL_TOKENS`."""
        joining: dict[int, list[BatchRow]] = {}
        tokens = 0
        for row in self._waiting:
            if row.done.done() or row.pending():
                continue
            if not isinstance(row, Row):
                row.finish()
                continue
            size, members = media_size(row), row.members
            others = [*self._rows_of(size), *joining.get(size, [])]
            total = len(self) + sum(map(len, joining.values()))
            has_place = not total or total + len(members) <= self.most_rows
            if has_place and has_room(others, members) and (not tokens or tokens < PREFILL_TOKENS):
                joining.setdefault(size, []).extend(members)
                tokens += sum(each.prompt.shape[1] for each in members)
        for size, rows in joining.items():
            batch = self._batches.setdefault(size, RunningBatch(self.model))
            self._advance(batch, rows, partial(batch.prefill, rows))
            if not batch.rows:
                del self._batches[size]
        joined = {id(row) for rows in joining.values() for row in rows}
        self._waiting = [row for row in self._waiting if id(row) not in joined and not row.done.done()]

    def _advance(self, batch: RunningBatch, rows: Sequence[BatchRow], work: Callable[[], torch.Tensor]) -> None:
        """Run a prefill or a step of a batch, choose each row's token, and let go of the rows that are complete."""
        logits = self._guarded(rows, work)
        scores = {} if logits is None else dict(zip(rows, logits, strict=True))
        for row in scores:
            if isinstance(row, Row):
                beside = None if row.unconditional is None else scores[row.unconditional]
                self._guarded([row], partial(choose, self.model, row, scores[row], beside))
        batch.keep([row for row in batch.rows if not row.done.done()])

    def _guarded(
        self,
        rows: Sequence[MediaRow | BatchRow],
        work: Callable[[], Any],
        fallback: Callable[[Exception], None] | None = None,
    ) -> Any:
        """Run work for rows. Its error ends these rows, whose clients are told, and nothing else."""
        try:
            return work()
        except Exception as error:  # the thread serves all clients: no fault of one row may end it
            for row in rows:
                row.finish(error)
            if fallback is not None:
                fallback(error)
            return None

    def _rows_of(self, size: int) -> list[BatchRow]:
        return self._batches[size].rows if size in self._batches else []

    def __len__(self) -> int:
        return sum(map(len, self._batches.values()))


def choose(model: Any, row: Row, scores: torch.Tensor, unconditional: torch.Tensor | None) -> None:
    """Choose a row's next token, given its scores (V,) and those of its unconditional row; end it with its last."""
    if row.sampler is None:
        row.sampler = RowSampler(model, row.sampling, row.prompt[0], row.seed)
    if row.take(row.sampler.choose(scores, unconditional)):
        row.streamer.end()
        row.finish()


def media_size(row: Row) -> int:
    """Return the class of a row's media: those of one class may be padded to the longest of them."""
    return max(0, (row.media_tokens - 1).bit_length() - SHARED_MEDIA_TOKENS.bit_length() + 1)


def has_room(rows: Sequence[BatchRow], joining: Sequence[BatchRow]) -> bool:
    """Return True if rows of a batch and others stay within the limits when all have their longest answer."""
    together = (*rows, *joining)
    tokens = len(together) * max(each.length for each in together)
    media = len(together) * max(each.media_tokens for each in together)
    return not rows or (tokens <= MOST_TOKENS and media <= MOST_MEDIA_TOKENS)


@torch.no_grad()
def encode_items(model: Any, items: Sequence[MediaItem]) -> None:
    """Encode media of the same shape at once."""
    names = items[0].inputs
    inputs = {name: torch.cat([item.inputs[name] for item in items]).to(model.device) for name in names}
    media = model.encode_media(**inputs)
    for item, states, mask in zip(items, media.states, media.mask, strict=True):
        item.states, item.mask = states, mask


def generate_alone(model: Any, row: Row) -> None:
    """
    Answer a row with `generate`, for options that a shared batch has no place for; see `SINGLE_OPTIONS`.

    The seed is set in the thread that draws, where nothing else draws meanwhile, and does not change later draws.
    """
    if row.streamer.is_over():  # the client has left while others were answered
        return
    devices = [model.device] if model.device.type == "cuda" else []
    penalties = penalties_of(row.sampling, row.prompt.shape[1])
    with torch.random.fork_rng(devices, enabled=row.seed is not None):
        if row.seed is not None:
            torch.manual_seed(row.seed)
        options = row.streamer.options()
        model.generate(**row.inputs, generation_config=row.config, logits_processor=penalties, **options)


def run_call(future: Future, work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # raised again by whoever waits for the future
        future.set_exception(error)
