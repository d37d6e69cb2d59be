"""The wheel alone, in an environment that does not see the checkout: what it holds, and that its command works."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import soundfile

from tests.fakes.processor_parts import picture, sound
from tests.fakes.ranks import ROOT
from tests.fakes.tiny_chats import chat_model, processor

MISSING = [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")
LIBRARIES = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
# What no core dependency brings along; `HIDDEN` names those that a process must do without.
EXTRAS = ("accelerate", "datasets", "fastapi", "jiwer", "matplotlib", "optuna", "peft", "pydantic", "sacrebleu")
HIDE = "import os, sys; sys.modules.update(dict.fromkeys(os.environ.get('HIDDEN', '').split()))"


def run(command: list, folder: Path, **variables: str) -> str:
    """What a command prints, in a folder that holds nothing of ours."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the source distribution, without network."""
    folder, copy = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("copy")
    for name in ("modeling_mm", "configuration"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "model_cards/TEMPLATE.md"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    build = f"import setuptools.build_meta as backend; backend.build_sdist({str(folder)!r})"
    run([sys.executable, "-c", build], copy)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    run([*pip, archive.with_name(archive.name.removesuffix(".tar.gz"))], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the wheel; of this one's libraries it sees all but the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, wheel], folder)
    # The folders that a .pth file names are searched for modules, and not for further .pth files, such as the one of
    # an editable installation.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text("\n".join([*LIBRARIES, HIDE]))
    where = run([python, "-c", "import modeling_mm; print(modeling_mm.__file__)"], folder)
    assert Path(where.strip()).is_relative_to(folder)
    return folder / "bin"


def test_the_wheel_holds_every_module_and_the_packaged_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("modeling_mm/")}
    sources = [path for kind in ("*.py", "*.jinja") for path in (ROOT / "modeling_mm").rglob(kind)]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    expected |= {"modeling_mm/py.typed", "modeling_mm/package_data/templates/TEMPLATE.md"}
    for kind in ("accelerate", "presets", "recipes"):
        files = [path for path in (ROOT / "configuration" / kind).rglob("*") if path.suffix in (".json", ".yaml")]
        root = f"modeling_mm/package_data/{kind}"
        expected |= {f"{root}/{path.relative_to(ROOT / 'configuration' / kind).as_posix()}" for path in files}
    assert names == expected


def test_the_command_finds_the_packaged_files(programs, tmp_path):
    assert "usage: modeling-mm train" in run([programs / "modeling-mm", "train", "--help"], tmp_path)
    path = run([programs / "modeling-mm", "info", "--path", "recipes/tiny-sample"], tmp_path).strip()
    assert Path(path).is_relative_to(programs.parent) and Path(path).is_file()


@pytest.mark.slow
def test_the_wheel_asks_and_trains(programs, tmp_path):
    chat_model().save_pretrained(tmp_path / "tiny")
    processor().save_pretrained(tmp_path / "tiny")
    picture().save(tmp_path / "red.png")
    soundfile.write(tmp_path / "noise.wav", *sound(), "FLOAT")
    question = ("--image", "red.png", "--audio", "noise.wav", "What is this?", "--max-new-tokens", "3")
    run([programs / "modeling-mm", "ask", "tiny", *question], tmp_path, HIDDEN=" ".join(EXTRAS))
    content = [{"type": "image", "path": "red.png"}, {"type": "text", "text": "What is this?"}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 4)
    overrides = ("max_steps=2", "use_cpu=true", "report_to=none", "eval_strategy=no", "warmup_steps=0")
    data = ("data.train=[{source: chats.jsonl}]", "data.evaluation=[]", "data.test={}")
    command = [programs / "modeling-mm", "train", "tiny-sample", *data, *(f"training.{each}" for each in overrides)]
    assert "2 steps in" in run(command, tmp_path)
    assert (tmp_path / "outputs" / "tiny-sample" / "README.md").is_file()
