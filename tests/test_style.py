"""Words: what is written in code, guides and messages reads like the rest of the field."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted(path for path in (ROOT / "modeling_mm").glob("**/*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("**/*.py"))
GUIDES = [*ROOT.glob("*.md"), *(ROOT / name / "README.md" for name in
          ("modeling_mm", "configuration", "processing", "scripts", "tests", "model_cards", "findings"))]  # fmt: skip
TEXTS = [*PACKAGE, *SCRIPTS, *GUIDES]

# Each phrase, and what to write in its place.
PHRASES = {
    r"\banew\b": "again, new",
    r"\b(of|on) (its|their) own\b": "its, separate",
    r"\bthat (is|are) none\b": "say the noun",
    r"(?<!there )\bis no (?!longer|more|less|such)\w+": "is not a",
    r"\b(go|goes|going|gone) on (with|from|to)\b": "resume, continue",
    r"\btold (from|by|apart)\b": "inferred from, distinguished",
    r"\bas there are any\b": "all",
    r"\b(is|are) asked\b": "inference, prompt",
    r"\bwhat came\b": "the value",
    r"\bhang(s)? on\b": "depend on",
    r"\bhow-manieth\b": "index",
    r"\bnot till\b": "not until",
}
SPELLINGS = r"\b(behaviour|colour|favour|neighbour|centre|grey|normalis|initialis|quantis|tokenis|serialis|optimis(?!m)|recognis|synchronis|summaris|organis|analyse|catalogue|artefact|labelled|cancelled|modelling)\w*"  # noqa: E501
SPELLINGS = re.compile(SPELLINGS, re.IGNORECASE)
# `image` and `audio` are the words; these are names of files, libraries and extensions.
OTHER_WORDS = re.compile(r"\b\w*(picture|sound)\w*\b", re.IGNORECASE)
ALLOWED = re.compile(
    r"soundfile|libsndfile|unsound|ALawSoundFile|core-sounds|animal-sounds|[pP]icture show|name the picture"
)


def docstrings(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*PACKAGE, *SCRIPTS], ids=relative)
def test_docstrings_start_with_an_imperative_or_a_noun_phrase(path):
    bad = [
        f"{name}: {text.splitlines()[0]}"
        for name, text in docstrings(path)
        if re.match(r"(What|Whether|Which|How|Where|When|If)\b", text.strip())
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_phrases(path):
    text = path.read_text(encoding="utf-8")
    bad = []
    for pattern, better in PHRASES.items():
        for found in re.finditer(pattern, text, re.IGNORECASE):
            line = text.count("\n", 0, found.start()) + 1
            bad.append(f"line {line}: {found[0]!r}; write {better}")
    bad += [f"line {text.count(chr(10), 0, found.start()) + 1}: {found[0]}" for found in SPELLINGS.finditer(text)]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("path", [*PACKAGE, *GUIDES], ids=relative)
def test_image_and_audio_are_the_words(path):
    bad = [
        f"line {number}: {line.strip()}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if OTHER_WORDS.search(line) and not ALLOWED.search(line)
    ]
    assert not bad, "\n".join(bad)


def test_the_checks_find_what_they_are_for():
    assert re.search(next(iter(PHRASES)), "drawn anew")
    assert SPELLINGS.search("the behaviour") and not SPELLINGS.search("the behavior is initialized; colored, color")
    assert OTHER_WORDS.search("a picture") and not ALLOWED.search("a picture")
