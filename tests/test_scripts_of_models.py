"""Thin scripts around a trained model: ask it, measure it, make a release of it; on a tiny, trained one."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText

import modeling_mm
from modeling_mm.evaluation import Figure
from modeling_mm.recipes.run import run
from scripts import ask, evaluate
from scripts.pocket import release
from tests.fakes.recipe_runs import plain_recipe, recipe
from tests.fakes.without_package import run_without_package

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ROOT / "processing" / "corpora" / "unseen" / "questions.jsonl"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that a recipe has trained, and the recipe as a file."""
    folder = tmp_path_factory.mktemp("trained")
    made = recipe(folder)
    run(made)
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(plain_recipe(folder)), encoding="utf-8")
    return Path(made.training["output_dir"]), path


# ---- ask ------------------------------------------------------------------------------------------------------------


def test_asking_shows_answers_beside_the_truth_and_draws_what_was_looked_at(trained, tmp_path, capsys):
    samples = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    short = [sample for sample in samples if sample["task"] in ("category/en", "match_audio_image/en")][:3]
    for sample in short:
        for part in sample["messages"][0]["content"]:
            if "path" in part:
                part["path"] = str(QUESTIONS.parent / part["path"])
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in short), encoding="utf-8")
    assert ask.main([str(trained[0]), "--questions", str(path), "--limit", "3", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("✓") + printed.count("✗") == 3
    assert f"{printed.count('✓')} of 3 are exactly right" in printed
    assert "truth" in printed and "twemoji-" in printed
    assert (tmp_path / "attention.png").stat().st_size > 10_000


def test_the_shipped_questions_are_whole():
    samples = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert len(samples) >= 12
    named = set()
    for sample in samples:
        paths = [part["path"] for part in sample["messages"][0]["content"] if "path" in part]
        assert paths and all((QUESTIONS.parent / path).is_file() for path in paths), sample["id"]
        assert sample["messages"][1]["content"][0]["text"]
        named |= {Path(path).name for path in paths}
    assert {path.name for path in (QUESTIONS.parent / "media").iterdir()} == named


# ---- evaluate -------------------------------------------------------------------------------------------------------


def test_measuring_writes_figures_and_every_answer(trained, tmp_path, monkeypatch, capsys):
    folder, path = trained
    arguments = [str(path), str(folder), "--out", str(tmp_path), "--limit", "5"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["data"]["test"] = {
        "held out": values["data"]["evaluation"] if "evaluation" in values["data"] else values["data"]["train"]
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert evaluate.main() == 0
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 5 == sum(f["samples"] for f in figures if f["metric"] == "exact_match")
    assert {"answer", "text_only", "truth", "task"} <= answers[0].keys()
    assert (tmp_path / "figures.md").read_text(encoding="utf-8").strip() in capsys.readouterr().out


def test_an_unknown_test_set_is_refused(trained):
    from modeling_mm.recipes.schema import read_recipe

    with pytest.raises(ValueError, match="no test set nowhere"):
        evaluate.test_sets(read_recipe(trained[1]), ["nowhere"], None)


# ---- release --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["release.py", str(trained[0]), str(folder)])
        assert release.main() == 0
    return folder


def test_a_release_holds_no_pickle_and_its_code_is_that_of_the_package(released):
    files = [path for path in released.iterdir() if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".py", ".jinja"}
    package = Path(modeling_mm.__file__).parent
    for path in [*released.glob("*.py"), *released.glob("*.jinja")]:
        assert path.is_symlink() and path.resolve() == (package / path.name).resolve()
    config = json.loads((released / "config.json").read_text(encoding="utf-8"))
    assert {name.split(".")[0] for name in config["auto_map"].values()} <= {
        path.stem for path in released.glob("*.py")
    }


def test_a_release_may_be_made_again_and_names_no_folder_of_its_parts(trained, released, monkeypatch):
    before = (released / "model.safetensors").read_bytes()
    monkeypatch.setattr(sys, "argv", ["release.py", str(trained[0]), str(released)])
    assert release.main() == 0
    assert (released / "model.safetensors").read_bytes() == before
    assert (released / "modeling_mm.py").is_symlink()
    config = json.loads((released / "config.json").read_text(encoding="utf-8"))
    parts = [config[name] for name in ("text_config", "vision_config", "audio_config") if config.get(name)]
    assert parts and not any(part.get("_name_or_path") for part in parts)


def test_a_release_is_stored_in_half_precision(trained, released):
    model = AutoModelForImageTextToText.from_pretrained(released)
    full = AutoModelForImageTextToText.from_pretrained(trained[0], dtype=torch.float32)
    assert model.dtype == torch.float16
    for name, tensor in full.state_dict().items():
        assert torch.equal(model.state_dict()[name].float(), tensor.half().float()), name


def test_the_card_takes_the_figures_that_were_measured(trained, released, tmp_path, monkeypatch):
    before = (released / "model.safetensors").stat().st_mtime_ns
    measured = Figure("unseen", "caption/en", "exact_match", 0.5, 0.25, None, 8)
    (tmp_path / "figures.json").write_text(json.dumps([asdict(measured)]), encoding="utf-8")
    arguments = [str(trained[0]), str(released), "--figures", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["release.py", *arguments])
    assert release.main() == 0
    card = ModelCard.load(released / "README.md")
    assert "| caption/en | exact_match | 0.500 | 0.250 |" in card.text
    assert [(row.dataset_name, row.metric_value) for row in card.data.eval_results] == [("unseen, caption/en", 0.5)]
    assert (released / "model.safetensors").stat().st_mtime_ns == before


def test_a_release_loads_where_the_package_is_not_installed(released, tmp_path):
    """As from the Hub, with its own code; the package is hidden from the process."""
    script = (
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(released)!r}, trust_remote_code=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(released)!r}, trust_remote_code=True)\n"
        "print(type(model).__module__, type(processor).__module__)"
    )
    assert run_without_package(script, tmp_path).count("transformers_modules") == 2


@pytest.mark.parametrize(
    "name", ["ask", "evaluate", "train", "pocket.release", "pocket.build_corpus", "pocket.build_components"]
)
def test_scripts_are_thin_and_say_how_they_are_called(name):
    path = f"scripts/{name.replace('.', '/')}.py"
    text = (ROOT / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 170
    assert f"python {path}" in text or f"python -m scripts.{name}" in text
