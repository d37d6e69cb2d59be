"""tests/fakes/quick_python.py: a program behaves as under the interpreter, whichever process it was forked from."""

import os
import signal
import subprocess
import sys

import pytest

from tests.fakes.quick_python import BARE_PYTHON, QUICK_PYTHON
from tests.fakes.ranks import ROOT, quiet_environment

WAIT = """
import time
try:
    print("up", flush=True)
    for _ in range(600):  # a signal that comes just before a sleep is seen behind it
        time.sleep(0.1)
except KeyboardInterrupt:
    raise SystemExit(5)
"""
PYTHONS = {"new": sys.executable, "bare": BARE_PYTHON, "quick": QUICK_PYTHON}
IMPORTED = "import sys; print(*[name for name in ('torch', 'transformers', 'modeling_mm') if name in sys.modules])"
FAIL = "raise SystemExit('no room')"


def run(python: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    options = {"env": quiet_environment(), "cwd": ROOT, **options}
    return subprocess.run([python, *arguments], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("python", PYTHONS.values(), ids=PYTHONS)
def test_a_program_ends_as_under_the_interpreter(python, tmp_path):
    done = run(python, "-c", "import sys; print(sys.argv, sys.stdin.read()); sys.exit(3)", "a", "b c", input="hello")
    assert (done.returncode, done.stdout) == (3, "['-c', 'a', 'b c'] hello\n")
    done = run(python, "-c", FAIL)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "no room\n")
    done = run(python, "-c", "import atexit; atexit.register(print, 'end'); 1 / 0")
    assert (done.returncode, done.stdout) == (1, "end\n")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run(python, "-c", "import os; os.kill(os.getpid(), 9)").returncode == -signal.SIGKILL
    assert run(python, "-c", "raise KeyboardInterrupt").returncode == -signal.SIGINT
    program = tmp_path / "program.py"
    program.write_text("import os, sys\nprint(__name__, os.getcwd(), sys.path[0], os.environ['COLOR'])")
    environment = quiet_environment() | {"COLOR": "red"}
    expected = f"__main__ {tmp_path} {tmp_path} red\n"
    assert run(python, str(program), cwd=tmp_path, env=environment).stdout == expected
    assert run(python, "-m", "program", cwd=tmp_path, env=environment).stdout == expected


@pytest.mark.parametrize("python", PYTHONS.values(), ids=PYTHONS)
def test_signals_reach_the_program(python):
    for number, code in ((signal.SIGINT, 5), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen([python, "-c", WAIT], stdout=subprocess.PIPE, env=quiet_environment()) as process:
            assert process.stdout.readline() == b"up\n"
            process.send_signal(number)
            assert process.wait(timeout=60) == code
            assert process.stdout.read() == b"", "the program has ended too"


@pytest.mark.skipif(sys.executable == QUICK_PYTHON, reason="needs Linux")
def test_libraries_are_imported_before_unless_they_would_read_another_environment(tmp_path):
    assert run(QUICK_PYTHON, "-c", IMPORTED).stdout == "torch transformers modeling_mm\n"
    done = run(BARE_PYTHON, "-c", IMPORTED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "torch\n", "")
    elsewhere = quiet_environment() | {"HF_HOME": str(tmp_path)}
    assert run(QUICK_PYTHON, "-c", IMPORTED, env=elsewhere).stdout == "torch\n"
    assert run(QUICK_PYTHON, "-X", "utf8", "-c", IMPORTED).stdout == "\n", "other options need a new interpreter"


def test_an_isolated_program_does_not_find_the_checkout():
    path = "import sys; print(*sys.path, sep='\\n')"  # the environment of a checkout lies in it
    beside = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    assert str(ROOT) in run(BARE_PYTHON, "-c", path).stdout.splitlines()
    assert str(ROOT) not in run(BARE_PYTHON, "-I", "-c", path, env=beside).stdout.splitlines()
