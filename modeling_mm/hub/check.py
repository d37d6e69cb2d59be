# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
What a folder must be before it goes to the Hub: complete, safe to load, equal for those who do not have this package,
and told in its card.

`check_folder` returns everything that is wrong, a sentence each, with the remedy; an empty list says that the folder
may be pushed. Nothing in it is loaded before its files are known to be harmless, and the network is not asked.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from . import isolated_load

ROOT = Path(__file__).resolve().parents[2]
CARD = "README.md"
INDEX = "model.safetensors.index.json"
REQUIRED = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", CARD)
# What a training run leaves in its folder and no one else needs: these folders, and what begins with a dot or "_".
LEFT_OUT = re.compile(r"checkpoint-\d+|runs|cleaning|adapter|_.*|\..*")
# What may lie in a folder. All else could be a pickle, which runs whatever code it holds when it is loaded.
WEIGHTS = (".safetensors",)
TEXTS = (".json", ".jinja", ".md", ".py", ".txt", ".yaml")
TEXT_NAMES = ("LICENSE", "NOTICE")
SHOWN = (".png", ".jpg", ".jpeg", ".webp", ".wav", ".flac", ".mp3")  # what a card shows
PICKLE_STARTS = (b"\x80", b"PK")  # a pickle from protocol 2 on, and torch's archive of them
# What is left of a template that was not filled in.
BLANKS = ("{{", "{%", "[More Information Needed]", "TODO")
SECTIONS = ("Use", "Data", "Training", "Figures", "Limits")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)*|code|multilingual")
TOLERANCE = 1e-4  # of float32 logits: the same weights and code may add up in another order
LOAD_SECONDS = 1800


def check_folder(folder: str | os.PathLike, repo_id: str | None = None) -> list[str]:
    """
    Args:
        folder: as `save_pretrained` of a model and a processor leave it, with its card
        repo_id: where it goes to, which the card's example must load

    Returns:
        what is wrong; each begins with the file that it is about.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [f"{folder}: there is no such folder; give the one that training or `save_pretrained` has written."]
    names = pushed_files(folder)[0]
    problems = [*check_files(folder, names), *check_weights(folder, names), *check_code(folder, names)]
    if CARD in names:
        problems += check_card(folder / CARD, repo_id)
    # What holds strange files is not loaded, nor what cannot be; a poor card is no hindrance.
    if all(problem.startswith(f"{CARD}:") for problem in problems):
        problems += check_loading(folder)
    return problems


def pushed_files(folder: Path) -> tuple[list[str], list[str]]:
    """The files of a folder that go to the Hub, by their paths in it, and those that stay: see `LEFT_OUT`."""
    pushed: list[str] = []
    left: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_symlink():
            name = path.relative_to(folder)
            stays = any(LEFT_OUT.fullmatch(part) for part in name.parts)
            (left if stays else pushed).append(name.as_posix())
    return pushed, left


# ---- Files ----------------------------------------------------------------------------------------------------------


def check_files(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Everything is there, and of a kind that cannot do harm."""
    for name in REQUIRED:
        if name not in names:
            yield f"{name}: it is missing; save the model and the processor into {folder}, and write the card."
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.is_file():
            yield f"{name}: it is a link to {os.readlink(path)}, where no file is; put the file there, or remove it."
        elif path.suffix in TEXTS or path.name in TEXT_NAMES:
            yield from check_text(path, name)
        elif path.suffix in SHOWN:
            with path.open("rb") as file:
                if file.read(2).startswith(PICKLE_STARTS):
                    yield f"{name}: it is a pickle or an archive under the name of a picture or sound; remove it."
        elif path.suffix not in WEIGHTS:
            yield (
                f"{name}: expected safetensors, text, pictures and sounds alone; it could be a pickle, which runs "
                "code when it is loaded. Remove it, or save what it holds as safetensors or JSON."
            )


def check_text(path: Path, name: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
        elif path.suffix == ".py":
            compile(text, name, "exec")
    except UnicodeDecodeError:
        yield f"{name}: expected text in UTF-8, got other bytes; save it as UTF-8, or remove it."
    except (json.JSONDecodeError, SyntaxError) as error:
        yield f"{name}: it cannot be read ({error}); write it again."


def check_weights(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """The weights are whole: every file can be opened, and an index names what is there and nothing else."""
    files = {name for name in names if name.endswith(WEIGHTS) and (folder / name).is_file()}
    if not files:
        yield f"model.safetensors: there are no weights; call `model.save_pretrained({str(folder)!r})`."
    found: dict[str, str] = {}
    for name in sorted(files):
        try:
            with safe_open(folder / name, framework="np") as weights:
                found |= dict.fromkeys(weights.keys(), name)
        except SafetensorError as error:
            yield f"{name}: it is damaged or cut short ({error}); save the model again."
            return
    if INDEX not in names:
        return
    try:
        listed: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError):
        yield f"{INDEX}: it has no readable `weight_map`; save the model again."
        return
    for name in sorted(set(listed.values()) - files):
        yield f"{name}: {INDEX} names it, and it is missing; save the model again into an empty folder."
    wrong = sorted(key for key in listed.keys() | found.keys() if listed.get(key) != found.get(key))
    if wrong and files >= set(listed.values()):
        yield (
            f"{INDEX}: it disagrees with the weights about {len(wrong)} names, the first {wrong[0]}; save the model "
            "again into an empty folder."
        )


def check_code(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """What `auto_map` names is shipped, so that `trust_remote_code=True` finds it."""
    for name in ("config.json", "processor_config.json"):
        if name not in names:
            continue
        try:
            auto_map = json.loads((folder / name).read_text(encoding="utf-8")).get("auto_map")
        except (ValueError, AttributeError, OSError):
            continue  # `check_files` has told it
        if not auto_map:
            yield f"{name}: it has no `auto_map`, so that nobody can load it without this package; save it again."
            continue
        paths = {path for path in auto_map.values() if isinstance(path, str)}
        for file in sorted({f"{path.split('.')[0]}.py" for path in paths if "--" not in path} - set(names)):
            yield f"{file}: `auto_map` in {name} names it, and it is missing; save model and processor again."


# ---- Loading --------------------------------------------------------------------------------------------------------


def check_loading(folder: Path) -> list[str]:
    """It loads where the package is and where it is not, without a weight too few or too many, to equal logits."""
    said: dict[str, dict[str, np.ndarray]] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for how, arguments in (("with the package", [str(ROOT)]), ("without the package", [])):
            out = Path(scratch) / f"{len(said)}.safetensors"
            try:
                done = load(folder, out, arguments, Path(scratch))
            except subprocess.TimeoutExpired:
                return [
                    f"{folder}: it did not load {how} and answer one question within {LOAD_SECONDS} s, and was given "
                    "up; check it on a faster machine, or where nothing else runs."
                ]
            if done.returncode != 0:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
                return [f"{folder}: it does not load {how}: {' '.join(lines[-2:])}"]
            problems += loading_problems(folder, how, json.loads(done.stdout.splitlines()[-1]))
            said[how] = load_file(out)
    return problems + differences(folder, *said.values())


def load(folder: Path, out: Path, arguments: list[str], scratch: Path) -> subprocess.CompletedProcess:
    """Runs `isolated_load.py` offline, with a cache of its own for code, as isolated as an interpreter can be."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    program = [sys.executable, "-I", isolated_load.__file__, str(folder.resolve()), str(out), *arguments]
    return subprocess.run(program, cwd=scratch, env=environment, capture_output=True, text=True, timeout=LOAD_SECONDS)


def loading_problems(folder: Path, how: str, info: dict[str, list[str]]) -> list[str]:
    what = {
        "missing_keys": "are missing from the weights and would be random",
        "unexpected_keys": "are in the weights and belong to nothing",
        "mismatched_keys": "have another shape than the model's",
    }
    return [
        f"{folder}: {how}, {len(info[key])} parameters {says}, the first {info[key][0]}; save the model again into an "
        "empty folder."
        for key, says in what.items()
        if info[key]
    ]


def differences(folder: Path, here: dict[str, np.ndarray], alone: dict[str, np.ndarray]) -> list[str]:
    """How what was said with the package differs from what was said without."""
    remedy = "Save model and processor again with this package, so that the folder's code is the package's."
    if here.keys() != alone.keys():
        return [f"{folder}: the processor gives {sorted(here)} with the package, {sorted(alone)} without. {remedy}"]
    for name in sorted(here, key=lambda key: key == "logits"):  # the logits last: inputs that differ explain them
        one, other = here[name], alone[name]
        if one.shape != other.shape:
            return [f"{folder}: `{name}` has the shape {one.shape} with the package, {other.shape} without. {remedy}"]
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return [f"{folder}: `{name}` holds NaN or infinity; the weights are broken, train or save them again."]
        largest = np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0)
        if largest > TOLERANCE:
            return [
                f"{folder}: `{name}` differs by {largest:.2g} between the package and the folder's own code, more "
                f"than {TOLERANCE:g}. {remedy}"
            ]
    return []


# ---- The card -------------------------------------------------------------------------------------------------------


def check_card(path: Path, repo_id: str | None = None) -> list[str]:
    """The card can be read by the Hub and says what a reader must know."""
    try:
        card = ModelCard.load(path)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        return [f"{CARD}: the Hub could not read its head ({error}); write the card again with `write_card`."]
    problems = [*head_problems(card.data), *body_problems(card.text, repo_id)]
    return [f"{CARD}: {problem}" for problem in problems]


def head_problems(data: Any) -> Iterator[str]:
    """What is wrong between the first `---` and the second."""
    for key in ("license", "language", "library_name", "pipeline_tag", "tags"):
        if not data.get(key):
            yield f"`{key}` is missing from its head; give it in the recipe's `card`, or write it there."
    if data.get("license") == "other":
        missing = [f"`{key}`" for key in ("license_name", "license_link") if not data.get(key)]
        if missing:
            yield f"`license: other` needs {' and '.join(missing)} too, for what the licence is; add it to its head."
    yield from language_problems(data.get("language"))
    if not data.get("eval_results"):
        yield "it has no `model-index`; measure the model (scripts/evaluate.py), and write the card with its figures."
    for result in data.get("eval_results") or []:
        value = result.metric_value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"`model-index` gives {value!r} as {result.metric_type} of {result.dataset_name}; expected a number."
    carbon = data.get("co2_eq_emissions")
    if not (isinstance(carbon, dict) and isinstance(carbon.get("emissions"), (int, float)) and carbon.get("source")):
        yield "`co2_eq_emissions` needs `emissions`, in grams, and `source`; see modeling_mm/hub/emissions.py."


def language_problems(languages: Any) -> Iterator[str]:
    """The Hub takes one code or a list of them."""
    if languages and not isinstance(languages, (str, list)):
        yield f"`language` must be a code such as en, or a list of codes, got {languages!r}; write [en]."
        return
    for language in [languages] if isinstance(languages, str) else languages or []:
        # Norwegian's code is read by YAML as the word no, unless it stands in quotes.
        if not (isinstance(language, str) and LANGUAGE.fullmatch(language)):
            yield f"`language` must hold codes such as en, got {language!r}; use ISO 639 codes, in quotes."


def body_problems(text: str, repo_id: str | None) -> Iterator[str]:
    """What is wrong below its head."""
    for blank in BLANKS:
        if blank in text:
            yield f"{blank!r} is a blank that was not filled in; write what belongs there."
    sections = read_sections(text)
    for name in SECTIONS:
        if not sections.get(name, "").strip():
            yield f"the section `## {name}` is missing or empty; write it."
    if sections.get("Limits", "").strip().startswith("Not assessed"):
        yield "its limits are not assessed; say in the recipe's `card.limits` what it cannot do."
    yield from use_problems(sections.get("Use", ""), repo_id)
    recipe = re.search(r"```yaml\n(.*?)```", sections.get("Training", ""), re.DOTALL)
    if "Training" in sections and not (recipe and is_mapping(recipe[1])):
        yield "`## Training` has no ```yaml block with the training arguments; put the recipe there."


def is_mapping(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


def use_problems(section: str, repo_id: str | None) -> Iterator[str]:
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    if code is None:
        yield "`## Use` has no ```python block; show how the model is loaded and asked."
        return
    try:
        compile(code[1], CARD, "exec")
    except SyntaxError as error:
        yield f"the code in `## Use` is no Python ({error}); repair it."
    loaded = set(re.findall(r"from_pretrained\(\s*[\"']([^\"']+)[\"']", code[1]))
    if not loaded:
        yield "the code in `## Use` loads nothing with `from_pretrained`; show how the model is loaded."
    elif repo_id is not None and loaded != {repo_id}:
        yield (
            f"the code in `## Use` loads {', '.join(sorted(loaded))}, but the folder goes to {repo_id}; set "
            "`card.repo_id` in the recipe, or push to the other name."
        )


def read_sections(text: str) -> dict[str, str]:
    """What stands under each `## ` title, outside of blocks of code."""
    sections: dict[str, str] = {}
    title, is_code = "", False
    for line in text.splitlines(keepends=True):
        is_code ^= line.startswith("```")
        if line.startswith("## ") and not is_code:
            title = line[3:].strip()
            sections[title] = ""
        elif title:
            sections[title] += line
    return sections
