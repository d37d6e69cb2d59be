"""The locks: what running needs, what developing needs beside it, in the same versions, as pyproject.toml asks."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = {"requirements.lock": "run", "requirements-dev.lock": "dev", "requirements-app.lock": "test-app"}
LOCKS |= {"requirements-oldest.lock": "dev"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def locked(name: str) -> list[str]:
    """The requirements of a lock, with their markers and without the notes on who asks for them."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line.partition("#")[0].strip() for line in lines if not line.startswith("#")]


def versions(name: str, python: str) -> dict[str, str]:
    """Return the packages that a lock installs on Linux with one version of Python."""
    place = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    place |= {
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    taken = [each for each in map(Requirement, locked(name)) if each.marker is None or each.marker.evaluate(place)]
    assert len({each.name for each in taken}) == len(taken), "a package twice"
    return {each.name: str(each.specifier).removeprefix("==") for each in taken}


def asked(extra: str) -> list[Requirement]:
    """The requirements of the core and of an extra, through the extras that it names."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if re.sub("[-_.]+", "-", requirement.name) == "modeling-mm":
            found += [each for inner in requirement.extras for each in asked(inner)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_a_lock_holds_what_the_project_asks_for(name, python):
    held = versions(name, python)
    for requirement in asked(LOCKS[name]):
        assert held[requirement.name] in requirement.specifier, requirement


def test_developing_adds_to_running_and_changes_no_version():
    """After `make demo`, `make test` installs missing packages only."""
    missing = set(locked("requirements.lock")) - set(locked("requirements-dev.lock"))
    assert not missing
    for python in PYTHONS:
        assert versions("requirements.lock", python).items() < versions("requirements-dev.lock", python).items()


def test_running_needs_no_tool_of_developing():
    running = {requirement.name for requirement in asked("run")}
    tools = {requirement.name for requirement in asked("dev") + asked("test-app")} - running
    assert {"ruff", "mypy", "pytest", "trl", "torchao", "onnxruntime", "gradio"} <= tools
    for python in PYTHONS:
        # Libraries of running bring the other two.
        assert not (tools - {"filelock", "psutil"}) & set(versions("requirements.lock", python))


def test_only_the_processor_build_of_torch_is_locked():
    for name in LOCKS:
        names = {Requirement(line).name for line in locked(name)}
        assert not [each for each in names if re.match("nvidia-|cuda-|triton", each)], name
        assert "torch" in names


def test_the_makefile_installs_the_small_lock_for_running():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "demo-train", "corpora", "whisper-tiny", "compare", "benchmark"):
        assert re.search(rf"^{target}: \$\(READY\)", makefile, re.MULTILINE), target
    for target in ("setup", "lint", "format", "test-slow", "test-diffusers", "test-gpu", "test-wheel"):
        assert re.search(rf"^{target}: \$\(DEV\)", makefile, re.MULTILINE), target
    assert re.search(r"^test: lint", makefile, re.MULTILINE)
