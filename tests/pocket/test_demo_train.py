"""The demo: its pieces with a handful of steps, and, marked slow, all of it as `make demo-train` runs it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_mm.evaluation import generate_answers
from scripts.pocket import demo_train
from scripts.pocket.from_scratch import small_model, small_processor
from scripts.pocket.sample import pair_questions, picture_questions, read_pictures, read_sounds, sound_questions

ROOT = Path(__file__).resolve().parents[2]
PICTURES, SOUNDS = read_pictures()[:2], read_sounds()[:2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.pocket.demo_train", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def small_sample():
    return [*picture_questions(PICTURES), *sound_questions(SOUNDS), *pair_questions(PICTURES, SOUNDS)]


def test_the_demo_from_end_to_end_in_a_few_steps(tmp_path, monkeypatch, capsys) -> None:
    """Everything runs and is written; so briefly trained, it must be found wanting."""
    new_pairs = pair_questions(PICTURES, SOUNDS, first=1)
    monkeypatch.setattr(demo_train, "training_and_new_pairs", lambda: (small_sample(), new_pairs))
    code = demo_train.main(["--steps", "2", "--batch-size", "4", "--output", str(tmp_path)])
    printed = capsys.readouterr()
    assert code == 1
    assert "less than 90%" in printed.err
    for expected in ("learns its own sample by heart", "question", "truth", "0 of 10", "0 of 2", "attention.png"):
        assert expected in printed.out
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    assert {"config.json", "model.safetensors", "chat_template.jinja"} <= {
        p.name for p in (tmp_path / "model").iterdir()
    }


def test_ten_questions_are_learned_and_survive_the_reload(tmp_path) -> None:
    """Media matter: two pictures and two sounds under the same questions get their own answers."""
    samples = small_sample()
    processor = small_processor(text for sample in samples for text in (sample.question, sample.answer))
    model = small_model(processor)
    options = demo_train.parse(["--steps", "60", "--batch-size", "10", "--output", str(tmp_path)])
    demo_train.train(model, processor, samples, options)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    answers = generate_answers(
        loaded, AutoProcessor.from_pretrained(tmp_path / "model"), [s.prompt() for s in samples]
    )
    assert answers == [sample.answer for sample in samples]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_help_is_short_and_shows_a_command() -> None:
    result = run("--help")
    assert result.returncode == 0, result.stderr
    assert "python -m scripts.pocket.demo_train" in result.stdout and "--steps" in result.stdout


def test_the_script_is_thin() -> None:
    assert len((ROOT / "scripts" / "pocket" / "demo_train.py").read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.slow
def test_the_whole_demo_answers_nine_in_ten_within_five_minutes(tmp_path) -> None:
    start = time.perf_counter()
    result = run("--output", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert time.perf_counter() - start < 300
    assert "All that it was trained on" in result.stdout
    assert (tmp_path / "attention.png").is_file()
