"""Processes that compute together (gloo, CPU): what the distributed tests share.

A test module is its own program: `launch(__file__, folder, *arguments)` runs it once for each rank, told as torchrun
tells its processes, and `join()` in it makes them a group.
"""

import os
import socket
import subprocess
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from tests.fakes.quick_python import QUICK_PYTHON

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def told(rank: int, port: int) -> dict[str, str]:
    """The variables by which a process knows the others; accelerate and `Trainer` read them too."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }


def quiet_environment() -> dict[str, str]:
    """For a program of the tests: one thread, no network, this checkout's package."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": with_root(), "HF_HUB_OFFLINE": "1"}


def with_root() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def join(seconds: float) -> int:
    """Makes this process one of the group, in which nobody waits longer than `seconds`; its rank."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    return distributed.get_rank()


@dataclass(frozen=True)
class Ended:
    code: int  # the exit status; negative for the signal that ended it
    log: str


def launch(program: str, folder: Path, *arguments: str, timeout: float) -> list[Ended]:
    """Runs a program on all ranks until they end or the time is over; what has not ended is killed. By rank."""
    port = free_port()
    logs = [folder / f"log.{rank}" for rank in range(RANKS)]
    processes = []
    for rank, path in enumerate(logs):
        command = [QUICK_PYTHON, "-W", "ignore", program, str(folder), *arguments]
        with path.open("w") as log:
            env = quiet_environment() | told(rank, port)
            processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT))
    end = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [Ended(process.returncode, log.read_text()) for process, log in zip(processes, logs, strict=True)]


def launch_well(program: str, folder: Path, *arguments: str, timeout: float) -> None:
    """As `launch`, for a program that must succeed on all ranks."""
    for rank, ended in enumerate(launch(program, folder, *arguments, timeout=timeout)):
        assert ended.code == 0, f"rank {rank} ended with {ended.code}:\n{ended.log[-4000:]}"
