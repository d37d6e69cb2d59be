"""What the tests of the Hub share: a card's fields and figures, and small things done to folders."""

import subprocess
from pathlib import Path

from huggingface_hub import HfApi

from modeling_mm.hub import pushed_files
from tests.fakes.hub_server import TOKEN
from tests.fakes.quick_python import QUICK_PYTHON

ROOT = Path(__file__).resolve().parents[2]
REPO = "me/tiny"
CARD, INDEX = "README.md", "model.safetensors.index.json"
CARD_FIELDS = {
    "name": "Tiny",
    "repo_id": REPO,
    "license": "mit",
    "languages": ["en"],
    "limits": "It was never trained, and answers nothing.",
}
RESULT = {
    "figures": {"colors": {"samples": 8, "exact_match": 0.25, "cer": 0.5}},
    "seconds": 60.0,
    "steps": 4,
    "epochs": 1.0,
    "best": None,
    "processes": 1,
    "device": "cpu, 2 cores",
    "versions": {"torch": "2.13"},
}


def api(hub, token=TOKEN):
    return HfApi(endpoint=hub.url, token=token)


def contents(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in pushed_files(folder)[0]}


def edit(path, old, new):
    """Changes a text file, and its copy alone where it is a link."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old!r}"
    path.unlink()
    path.write_text(text.replace(old, new), encoding="utf-8")


def run(program, environment, *arguments):
    done = subprocess.run(
        [QUICK_PYTHON, "-c", program, *arguments],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout
