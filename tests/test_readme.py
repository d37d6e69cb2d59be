"""The README's example runs as it stands, with tiny parts in the place of those on the Hub."""

import re
from pathlib import Path

import pytest
from transformers import WhisperFeatureExtractor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_mm.recipes.schema import read_recipe
from tests.fakes.processor_parts import make_bpe
from tests.fakes.tiny import gpt2, vit, whisper

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
EXAMPLE = BLOCKS[0]


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


def test_the_example_is_short():
    assert sum(bool(line.strip()) for line in EXAMPLE.splitlines()) < 40


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
    assert {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "modeling_mm.py",
        "processing_mm.py",
    } <= saved


def test_the_example_of_pipelines_runs(monkeypatch, capsys):
    (code,) = [block for block in BLOCKS if "import pipeline" in block]
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    answered, transcribed = capsys.readouterr().out.strip().splitlines()[-2:]
    assert answered.startswith("[{'answer': ") and transcribed.startswith("{'text': ")


@pytest.mark.parametrize(
    "path", re.findall(r"`((?:configuration|processing|scripts|tests|modeling_mm)/[\w/.]*)`", README)
)
def test_every_path_it_names_is_there(path):
    assert (ROOT / path).exists()


COMMANDS = re.findall(r"^python scripts/train\.py (\S+\.yaml)(.*)$", README, re.MULTILINE)


@pytest.mark.parametrize(("path", "overrides"), COMMANDS)
def test_every_training_command_it_shows_is_understood(path, overrides, monkeypatch):
    """The recipe and every key that is set; what follows `--search` is a number."""
    monkeypatch.chdir(ROOT)
    words = overrides.split()
    assert "--search" not in words or words[words.index("--search") + 1].isdigit()
    read_recipe(path, [word for word in words if "=" in word])


def test_training_commands_are_shown():
    assert len(COMMANDS) >= 3


def test_nothing_is_left_to_be_filled_in():
    assert not re.search(r"^[A-Z_]{4,}$|TODO|TBD", README, re.MULTILINE)
