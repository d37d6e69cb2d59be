"""A release made of a tiny, trained model."""

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
from modeling_mm.hub import measured_digests, measured_on, weights_digest
from modeling_mm.recipes import run
from scripts.workshop import release
from tests.fakes.recipe_runs import plain_recipe, recipe
from tests.fakes.without_package import run_without_package

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that a recipe has trained, and the recipe as a file."""
    folder = tmp_path_factory.mktemp("trained")
    made = recipe(folder)
    run(made)
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(plain_recipe(folder)), encoding="utf-8")
    return Path(made.training["output_dir"]), path


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
    (tmp_path / "card.md").write_text(f"## Evaluation\n\n{measured_on(weights_digest(released))}\n", encoding="utf-8")
    arguments = [str(trained[0]), str(released), "--figures", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["release.py", *arguments])
    assert release.main() == 0
    assert measured_digests((released / "README.md").read_text(encoding="utf-8")) == [weights_digest(released)]
    card = ModelCard.load(released / "README.md")
    assert "| caption/en | exact_match | 0.500 | 0.250 |" in card.text
    assert [(row.dataset_name, row.metric_value) for row in card.data.eval_results] == [("unseen, caption/en", 0.5)]
    assert (released / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("digest", ["0" * 64, None])
def test_figures_and_parity_of_other_weights_are_refused(digest, trained, released, tmp_path, monkeypatch):
    before = (released / "README.md").read_bytes()
    (tmp_path / "figures.json").write_text("[]", encoding="utf-8")
    (tmp_path / "card.md").write_text(f"## Evaluation\n\n{measured_on(digest)}\n", encoding="utf-8")
    (tmp_path / "parity.json").write_text(json.dumps({"weights": digest} if digest else {}), encoding="utf-8")
    for option, path in (("--figures", tmp_path), ("--parity", tmp_path / "parity.json")):
        monkeypatch.setattr(sys, "argv", ["release.py", str(trained[0]), str(released), option, str(path)])
        with pytest.raises(ValueError, match=f"has the weights {weights_digest(released)}. Measure"):
            release.main()
    assert (released / "README.md").read_bytes() == before


def test_a_release_loads_where_the_package_is_not_installed(released, tmp_path):
    """As from the Hub, with its own code; the package is hidden from the process."""
    script = (
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(released)!r}, trust_remote_code=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(released)!r}, trust_remote_code=True)\n"
        "print(type(model).__module__, type(processor).__module__)"
    )
    assert run_without_package(script, tmp_path).count("transformers_modules") == 2


@pytest.mark.parametrize("name", ["workshop.release", "workshop.build_corpus", "workshop.build_base"])
def test_scripts_are_thin_and_say_how_they_are_called(name):
    path = f"scripts/{name.replace('.', '/')}.py"
    text = (ROOT / path).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 170
    assert f"python {path}" in text or f"python -m scripts.{name}" in text
