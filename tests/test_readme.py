"""The README and the guides tell the truth: examples run, commands are understood, links lead somewhere."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import SwinConfig, SwinForImageClassification, WhisperFeatureExtractor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_mm.cli import parse
from modeling_mm.recipes import read_recipe
from modeling_mm.utils import find_resource
from tests.fakes.processor_parts import make_bpe
from tests.fakes.tiny import gpt2, vit, whisper

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling_mm", "configuration", "processing", "scripts", "model_cards", "tests", "findings")
GUIDES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
GUIDES += [ROOT / folder / "README.md" for folder in FOLDERS]


def blocks(path: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL)


EXAMPLE = blocks("README.md")[0]


def save_parts(folder: Path) -> dict[str, str]:
    """Tiny models with tokenizer, image processor and feature extractor, by the Hub ids that they stand in for."""
    tokenizer = make_bpe()
    gpt2(vocab_size=len(tokenizer), n_positions=256).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    vit().save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    whisper(max_source_positions=150).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=8, chunk_length=3).save_pretrained(folder / "whisper")
    return {
        "openai-community/gpt2": str(folder / "gpt2"),
        "google/vit-base-patch16-224": str(folder / "vit"),
        "openai/whisper-tiny": str(folder / "whisper"),
    }


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    assert sum(bool(line.strip()) for line in EXAMPLE.splitlines()) <= 30


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    code = EXAMPLE
    for hub_id, path in save_parts(tmp_path).items():
        assert hub_id in code
        code = code.replace(hub_id, path)
    code = code.replace("processing/corpora/", f"{ROOT}/processing/corpora/")
    code = code.replace("num_train_epochs=3", "max_steps=2, report_to=[], use_cpu=True")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()
    saved = {path.name for path in (tmp_path / "outputs/mine").iterdir()}
    names = {"config.json", "model.safetensors", "generation_config.json", "modeling_mm.py", "processing_mm.py"}
    assert names <= saved


def test_the_example_of_pipelines_runs(monkeypatch, capsys):
    (code,) = [block for block in blocks("scripts/README.md") if "import pipeline" in block]
    monkeypatch.chdir(ROOT)
    exec(compile(code, "scripts/README.md", "exec"), {"__name__": "readme"})
    answered, transcribed = capsys.readouterr().out.strip().splitlines()[-2:]
    assert answered.startswith("[{'answer': ") and transcribed.startswith("{'text': ")


@pytest.mark.parametrize("guide", ["modeling_mm/README.md", "configuration/README.md"])
def test_the_first_example_of_a_guide_runs(guide, monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict = {"__name__": "guide"}
    exec(compile(blocks(guide)[0], guide, "exec"), names)
    assert names["model"].num_parameters() > 0


def test_the_example_of_tags_starts_from_the_classifier(tmp_path):
    """The tags of an image are what the classifier says of it."""
    (code,) = [block for block in blocks("configuration/README.md") if "set_tags" in block]
    paths = save_parts(tmp_path)
    sizes = {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    }
    torch.manual_seed(0)
    swin = SwinForImageClassification(SwinConfig(**sizes, id2label=dict(enumerate(["cat", "dog", "crane", "crane"]))))
    swin.save_pretrained(tmp_path / "swin")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "swin")
    hub_id = "microsoft/swin-tiny-patch4-window7-224"
    assert hub_id in code
    code = code.replace(hub_id, str(tmp_path / "swin"))
    code = code.replace("openai-community/gpt2", paths["openai-community/gpt2"])
    names: dict = {"__name__": "guide"}
    exec(compile(code, "configuration/README.md", "exec"), names)
    model, pixels = names["model"].eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        states = model.model.get_image_features(pixels).last_hidden_state
        logits = model.model.vision_connector.tagger.logits(states, torch.ones(states.shape[:2], dtype=torch.bool))
        expected = swin.eval()(pixels).logits
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_and_link_leads_somewhere(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:configuration|processing|scripts|tests|modeling_mm|findings)/[\w/.-]*)`", text)
    linked = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    missing += [link for link in linked if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_names_that_guides_import_exist(path):
    text = path.read_text(encoding="utf-8")
    for module, names in re.findall(r"^from (modeling_mm[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(import_module(module), name.strip()), f"{module}.{name}"


COMMANDS = [
    (path.relative_to(ROOT).as_posix(), line.split("  #")[0])
    for path in GUIDES
    for line in re.findall(r"^modeling-mm (\w.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize(("guide", "line"), COMMANDS)
def test_every_command_is_understood(guide, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = parse(shlex.split(line))
    if options.command == "train" and options.recipe != "RECIPE":
        path = options.recipe if "/" in options.recipe else find_resource("recipes", options.recipe)
        read_recipe(path, options.overrides)


def test_commands_are_shown():
    assert len({line.split()[0] for _, line in COMMANDS}) >= 3


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_left_to_be_filled_in(path):
    assert not re.search(r"^[A-Z_]{4,}$|TODO|TBD", path.read_text(encoding="utf-8"), re.MULTILINE)
