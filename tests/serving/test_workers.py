"""Processes that decode media: results and faults come back; one that is late or dies is replaced."""

import asyncio
import os
import time

import pytest

from modeling_mm.serving.limits import BadRequest
from modeling_mm.serving.workers import WorkerPool


def add(processor, a, b):
    return processor + a + b


def process_id(processor):
    return os.getpid()


def refuse(processor):
    raise BadRequest("`x`: no.")


def fail(processor):
    raise ZeroDivisionError("what went wrong")


def sleep(processor, seconds):
    time.sleep(seconds)
    return seconds


def die(processor):
    os._exit(3)


@pytest.fixture(scope="module")
def pool():
    made = WorkerPool(1, count=2, seconds=60.0)
    yield made
    made.stop()


def run(pool, *work):
    async def gather():
        return await asyncio.gather(*(pool.run(*each) for each in work), return_exceptions=True)

    return asyncio.run(gather())


def test_work_runs_in_other_processes_and_its_faults_come_back(pool):
    assert run(pool, (add, 2, 3), (add, 4, 5)) == [6, 10]
    first, second = run(pool, (sleep, 0.2), (process_id,))[1], os.getpid()
    assert first != second
    refused, failed, whole = run(pool, (refuse,), (fail,), (add, 0, 0))
    assert isinstance(refused, BadRequest) and str(refused) == "`x`: no." and whole == 1
    assert isinstance(failed, RuntimeError) and "ZeroDivisionError: what went wrong" in str(failed)


def test_a_process_that_is_late_or_dies_is_replaced(pool, monkeypatch):
    monkeypatch.setattr(pool, "seconds", 1.0)
    start = time.monotonic()
    late, whole = run(pool, (sleep, 600), (add, 0, 0))
    assert isinstance(late, BadRequest) and "take longer than 1 s" in str(late) and whole == 1
    assert time.monotonic() - start < 30
    monkeypatch.undo()
    (died,) = run(pool, (die,))
    assert isinstance(died, BadRequest) and "ended the process" in str(died)
    assert run(pool, *[(add, number, 0) for number in range(4)]) == [1, 2, 3, 4]
