"""
Interpreters that have imported torch already, for the programs of tests: `QUICK_PYTHON` in place of `sys.executable`.

A new interpreter needs ten seconds of CPU time for the imports of a training run. Here one process of the whole test
session imports them once, when the first program asks for them, and forks itself for each program. A small client
stands for the program, with its input and output, its exit status and its signals.

- `QUICK_PYTHON` has imported transformers and this package too, unless a variable that they read when they are
  imported is another for the program.
- `BARE_PYTHON` has imported torch and the libraries below transformers alone, for programs to which the order of
  imports or a hidden package matters.
- What a program prints while it imports, and what it does not import, needs `sys.executable`.

This file is all three: imported by the tests, the process that forks (`quick_python.py FOLDER`), and the client
(`quick_python.py --client REAL FOLDER KIND SETTINGS ARGUMENTS`), which therefore imports little.
"""

import os
import signal
import socket
import sys
from json import dumps, loads

BARE = (
    *("torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.utils.data", "numpy"),
    *("pandas", "scipy.signal", "PIL.Image", "soundfile", "torch.distributed.run", "torchao", "yaml", "httpx"),
)
QUICK = (
    *("datasets", "peft", "transformers", "accelerate.commands.launch", "transformers.models.auto.modeling_auto"),
    *("modeling_mm.recipes.run", "modeling_mm.training", "modeling_mm.hub", "modeling_mm.evaluation"),
    *("modeling_mm.modeling_mm", "modeling_mm.pipelines", "modeling_mm.cli"),
)
READ_WHEN_IMPORTED = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "ACCELERATE_DEBUG", "XDG_CACHE")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MESSAGE_BYTES = 1 << 18


def settings() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(READ_WHEN_IMPORTED)}


# ---- The client -----------------------------------------------------------------------------------------------------


def client(real: str, folder: str, kind: str, known: str, *arguments: str) -> None:
    """Have a program run, and end as it ends."""
    program, is_isolated = list(arguments), False
    while program and (program[0] in ("-u", "-I") or program[:2] == ["-W", "ignore"]):
        is_isolated |= program[0] == "-I"
        del program[: 2 if program[0] == "-W" else 1]
    if not program or (program[0].startswith("-") and program[0] not in ("-c", "-m")):
        os.execv(real, [real, *arguments])
    if settings() != loads(known):
        kind = "bare"
    request = {
        "arguments": program,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "is_isolated": is_isolated,
    }
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.connect(f"{folder}/{kind}")
        socket.send_fds(server, [dumps(request).encode()], [0, 1, 2])
        child = int(server.recv(MESSAGE_BYTES))
    except (OSError, ValueError):  # the process that forks has ended: a new interpreter is as good, and slower
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.execv(real, [real, *arguments])
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    code = int(server.recv(MESSAGE_BYTES) or -signal.SIGKILL)
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# ---- The process that forks -----------------------------------------------------------------------------------------


def listen(folder: str, kind: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"{folder}/{kind}")
    listening.listen(64)
    return listening


def serve(folder: str) -> None:
    """Wait for the first client, import what it needs, and fork; the process with all of `QUICK` is a fork as well."""
    import select

    bare, quick = listen(folder, "bare"), listen(folder, "quick")
    print("ready", flush=True)
    waiting = select.select([bare, quick, sys.stdin], [], [])[0]
    if sys.stdin in waiting:
        return
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    del sys.path[0]  # the folder of this file
    import_all(BARE)
    if other := os.fork():
        quick.close()
        sys.path[:] = [each for each in sys.path if each != root]
        fork_for_clients(bare, folder)
        os.waitpid(other, 0)
    else:
        bare.close()
        if sys.stdin not in select.select([quick, sys.stdin], [], [])[0]:
            import_all(QUICK)
            fork_for_clients(quick, folder)


def import_all(names: tuple[str, ...]) -> None:
    import gc
    from importlib import import_module

    for name in names:
        with suppressed(ImportError):  # what is not installed is not needed
            import_module(name)
    gc.freeze()  # so that collections in the forks do not copy these pages


def fork_for_clients(listening: socket.socket, folder: str) -> None:
    """Fork for each client, until the tests end and with them the standard input."""
    import selectors

    ready = selectors.DefaultSelector()
    for source in (listening, sys.stdin):
        ready.register(source, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}  # by child: what tells its end, and its client
    while True:
        for key, _ in ready.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listening:
                connection, _ = listening.accept()
                message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
                child = os.fork()
                if child == 0:
                    for each in (listening, connection, *(other for _, other in running.values())):
                        each.close()
                    sys.executable = f"{folder}/quick-python"
                    end(loads(message), descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                with suppressed(OSError):  # the client was killed; its end is seen below
                    connection.send(str(child).encode())
                running[child] = (os.pidfd_open(child), connection)
                for source in running[child]:
                    ready.register(source, selectors.EVENT_READ, child)
            elif key.data in running:
                tells_end, connection = running[key.data]
                if key.fileobj is connection:  # the client was killed
                    os.kill(key.data, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(key.data, 0)[1])
                del running[key.data]
                for source in (tells_end, connection):
                    ready.unregister(source)
                os.close(tells_end)
                with suppressed(OSError):
                    connection.send(str(code).encode())
                connection.close()


def suppressed(*errors: type[BaseException]):
    from contextlib import suppress

    return suppress(*errors)


def end(request: dict, descriptors: list[int]) -> None:
    """
    Run a program in this process, and end it as the interpreter does.

    It does not take down its modules, which would copy all the memory that it shares.
    """
    import atexit
    import threading
    import traceback

    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    code: object = None
    try:
        become(**request)
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppressed(OSError, ValueError):
            stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code or 0)


def become(arguments: list[str], environment: dict[str, str], folder: str, is_isolated: bool) -> None:
    """Run a program as the interpreter runs its main module."""
    import runpy
    import types
    import warnings

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    warnings.simplefilter("ignore")
    first, *rest = arguments
    start = {"-c": "", "-m": folder}.get(first, os.path.dirname(os.path.abspath(first)))
    before = [] if is_isolated else [start, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*before, *(each for each in sys.path if each not in before)]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")


# ---- For the tests --------------------------------------------------------------------------------------------------


def start() -> str:
    """Start the process that forks, for this process and those that it starts; return its folder."""
    import atexit
    import shlex
    import shutil
    import subprocess
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(prefix="quick-python-"))
    for kind in ("quick", "bare"):
        line = [sys.executable, "-I", "-S", __file__, "--client", sys.executable, str(folder), kind, dumps(settings())]
        command = folder / f"{kind}-python"
        command.write_text(f'#!/bin/sh\nexec {shlex.join(line)} "$@"\n')
        command.chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, str(folder)],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdin and server.stdout and server.stdout.readline() == b"ready\n"

    @atexit.register
    def stop() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    return str(folder)


if __name__ == "__main__":
    if sys.argv[1] == "--client":
        client(*sys.argv[2:])
    else:
        serve(sys.argv[1])
else:
    QUICK_PYTHON = BARE_PYTHON = sys.executable
    if hasattr(os, "pidfd_open"):  # on Linux
        FOLDER = os.environ.get("QUICK_PYTHON_FOLDER") or start()
        os.environ["QUICK_PYTHON_FOLDER"] = FOLDER
        QUICK_PYTHON, BARE_PYTHON = f"{FOLDER}/quick-python", f"{FOLDER}/bare-python"
