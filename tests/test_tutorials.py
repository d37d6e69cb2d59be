"""The tutorials run as they stand, with few steps, from the repository's folder."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.fakes.quick_python import QUICK_PYTHON

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "scripts" / "tutorials").glob("*.py"))
PRINTED = {
    "add_a_sensor": "recordings that it was not trained on: accuracy",
    "adapt_with_lora": "The adapter takes",
    "caption_a_folder": "captions of held-out images are exact",
    "classify_with_history": "with image and history",
    "serve_and_ask": "transcription:",
    "transcribe_speech": "Word error rate on 67 recordings",
}


def test_every_tutorial_is_run():
    assert [path.stem for path in TUTORIALS] == sorted(PRINTED)


# It transcribes all recordings twice; tests/pipelines has the pipeline that it shows.
SLOW = ("transcribe_speech",)


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in TUTORIALS]
)
def test_the_tutorial_runs(path, tmp_path):
    environment = {**os.environ, "TUTORIAL_STEPS": "2", "TUTORIAL_OUTPUT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [QUICK_PYTHON, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert PRINTED[path.stem] in result.stdout


def test_classification_takes_under_thirty_lines():
    """The part between the heading `Train` and the next one."""
    text = (ROOT / "scripts/tutorials/classify_with_history.py").read_text(encoding="utf-8")
    cell = text.split("# ## Train")[1].split("# %% [markdown]")[0]
    lines = [line for line in cell.splitlines()[1:] if line.strip() and not line.startswith("#")]
    assert "Trainer(" in cell and len(lines) < 30, len(lines)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_guide_shows_the_tutorial_with_its_output(path):
    guide = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    assert f"tutorials/{path.name}" in guide
    assert PRINTED[path.stem] in guide
