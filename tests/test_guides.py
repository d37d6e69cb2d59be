"""Guides run as they stand: the snippets of a folder's README.md, and the paths and modules that it names."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ["processing/README.md", "model_cards/README.md"]


@pytest.mark.parametrize("guide", GUIDES)
def test_the_snippets_run_in_order(guide, monkeypatch, capsys):
    text = (ROOT / guide).read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "guide"}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, guide, "exec"), namespace)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("guide", GUIDES)
def test_every_path_and_module_it_names_exists(guide):
    text = (ROOT / guide).read_text(encoding="utf-8")
    folders = "configuration|processing|scripts|tests|modeling_mm|model_cards"
    for path in re.findall(rf"(?:^|[\s`\"])((?:{folders})/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    for name in re.findall(r"^\| `([\w./-]+)` \|", text, re.MULTILINE):
        folder = ROOT / Path(guide).parent
        assert any((folder / place).exists() for place in (name, f"corpora/{name}", f"corpora/{name}.yaml")), name
