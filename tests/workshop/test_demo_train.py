"""The demo: its steps with a few examples, and, marked slow, all of it as `make demo-train` runs it."""

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_mm.data import turn_text
from modeling_mm.evaluation import generate_answers
from scripts.workshop import demo_train, demonstration
from scripts.workshop.from_scratch import small_model, small_processor
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.sample_rows import sample_rows

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_runs_from_end_to_end_and_fails_after_a_few_steps(tmp_path, monkeypatch, capsys) -> None:
    rows = sample_rows()
    splits = {"train": rows, "new_pairs": rows[-2:]}
    monkeypatch.setattr(demonstration, "read_sample", splits.get)
    code = demo_train.main(["--steps", "2", "--batch-size", "4", "--output", str(tmp_path)])
    printed = capsys.readouterr()
    assert code == 1 and "less than 90%" in printed.err
    for expected in ("question", "truth", "0 of 10", "0 of 2", "cat.png + ", "attention.png"):
        assert expected in printed.out
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "chat_template.jinja"} <= files


def test_ten_questions_are_learned_and_survive_the_reload(tmp_path) -> None:
    """Media matter: two images and two recordings have different answers to the same questions."""
    rows = sample_rows()
    processor = small_processor(turn_text(turn) for row in rows for turn in row.messages)
    model = small_model(processor)
    options = demo_train.parse(["--steps", "60", "--batch-size", "10", "--output", str(tmp_path)])
    demonstration.train(model, processor, rows, options)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    loaded_processor = AutoProcessor.from_pretrained(tmp_path / "model")
    answers = generate_answers(loaded, loaded_processor, [row.prompt for row in rows])
    assert answers == [row.answer for row in rows]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_help_shows_a_command(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        demo_train.parse(["--help"])
    assert "python -m scripts.workshop.demo_train" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_demo_answers_nine_in_ten_within_five_minutes(tmp_path) -> None:
    start = time.perf_counter()
    command = [QUICK_PYTHON, "-m", "scripts.workshop.demo_train", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert time.perf_counter() - start < 300
    assert demonstration.TRAINED in result.stdout
    assert (tmp_path / "attention.png").is_file()
