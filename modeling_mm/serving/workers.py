# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Processes that decode the media of requests, beside the server's own.

Decoders release Python's lock, so that a thread slows the engine no more than a process does (both by a quarter, on 2
cores). But a thread that is late cannot be ended, and a decoder that crashes takes the server along. A worker that is
late, or has died, is replaced.

    pool = WorkerPool(processor, count=2, seconds=10.0)
    inputs = await pool.run(work, argument)          # work(processor, argument), in a worker
"""

import asyncio
import multiprocessing
import multiprocessing.forkserver
import queue
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

import torch

from .limits import BadRequest

# Forked from a process that has imported this module and holds no model: they start in no time and share its memory.
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


START_SECONDS = 300.0


class WorkerPool:
    """
    Pool of processes with a processor each.

    Args:
        processor: of the model; each process gets a copy
        count: processes
        seconds: the most that a piece of work may take; then its process is ended
    """

    def __init__(self, processor: Any, count: int, seconds: float):
        self.processor, self.seconds = processor, seconds
        self._context = worker_context()
        self._threads = ThreadPoolExecutor(count, "workers")  # each waits for one process
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        self._count = count
        for _ in range(count):
            self._idle.put(None)  # started by the first work

    async def start(self) -> None:
        """Start all processes, which import for seconds: requests should not wait for it."""
        await asyncio.gather(*(self.run(do_nothing) for _ in range(self._count)))

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """
        Run a function of a module on the processor and picklable arguments.

        Raises:
            BadRequest: if the work raises it, takes too long, or ends its process.
            RuntimeError: if it raises anything else.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work, arguments)

    def _run(self, work: Callable[..., Any], arguments: tuple) -> Any:
        worker = self._idle.get()
        try:
            if worker is None or not worker.process.is_alive():
                worker = Worker(self._context, self.processor)
                worker.run(do_nothing, (), START_SECONDS)
            return worker.run(work, arguments, self.seconds)
        finally:
            self._idle.put(worker)

    def stop(self) -> None:
        """End all processes, whatever they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child.name.startswith(Worker.NAME):
                child.kill()


class Worker:
    """Process that runs one piece of work after the other."""

    NAME = "worker-of-requests"

    def __init__(self, context: BaseContext, processor: Any):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, processor), name=self.NAME, daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()

    def run(self, work: Callable[..., Any], arguments: tuple, seconds: float) -> Any:
        try:
            self.connection.send((work, arguments))
            if not self.connection.poll(seconds):
                self.end()
                raise BadRequest(f"Its images and audio take longer than {seconds:g} s to read; send smaller ones.")
            result, error = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.end()
            raise BadRequest("Its images and audio ended the process that reads them; convert them.") from error
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def worker_context() -> BaseContext:
    """Return the context of workers, and start the process that they are forked from: it imports for seconds."""
    context = multiprocessing.get_context(METHOD)
    if METHOD == "forkserver":
        context.set_forkserver_preload([__name__, "modeling_mm.serving.preparing"])  # type: ignore[attr-defined]
        multiprocessing.forkserver.ensure_running()
    return context


def do_nothing(processor: Any) -> None:
    """Be the first work of a process: it is done once the process has started."""


def serve(connection: Connection, processor: Any) -> None:
    """Run work until the server closes the connection, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the server ends its workers itself
    torch.set_num_threads(1)
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:
            return
        result: Any = None
        fault: Exception | None = None
        try:
            result = work(processor, *arguments)
        except BadRequest as error:
            fault = error
        except Exception:  # the parent process raises it; as text, since it may not be picklable
            fault = RuntimeError(f"A worker failed:\n{traceback.format_exc()}")
        connection.send((result, fault))
