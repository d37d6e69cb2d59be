# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Checks of a folder before it goes to the Hub: complete, safe to load, equal without this package, with a full card.

Nothing is loaded before its files are known to be harmless, and the network is not used.
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

import numpy as np
import yaml
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from . import isolated_load
from .weights import measured_digests, weights_digest

ROOT = Path(__file__).resolve().parents[2]
CARD = "README.md"
INDEX = "model.safetensors.index.json"
REQUIRED = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", CARD)
# Files that training leaves and nobody else needs: these folders, and names that begin with a dot or "_".
EXCLUDED = re.compile(r"checkpoint-\d+|runs|cleaning|adapter|_.*|\..*")
# Kinds of files that a folder may hold. Any other could be a pickle, which runs code when it is loaded.
WEIGHTS = (".safetensors",)
TEXTS = (".json", ".jinja", ".md", ".py", ".txt", ".yaml")
TEXT_NAMES = ("LICENSE", "NOTICE")
CARD_MEDIA = (".png", ".jpg", ".jpeg", ".webp", ".wav", ".flac", ".mp3")
PICKLE_STARTS = (b"\x80", b"PK")  # a pickle from protocol 2 on, and torch's archive of them
# Remains of a template that was not filled in.
BLANKS = ("{{", "{%", "[More Information Needed]", "TODO")
SECTIONS = ("Use", "Data", "Training", "Figures", "Limits")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)*|code|multilingual")
TOLERANCE = 1e-4  # of float32 logits: the same weights and code may add up in another order
LOAD_SECONDS = 1800
SAVE_AGAIN = "Save the model and the processor again with this package."
SAVE_INTO_EMPTY = "Save the model again into an empty folder."


def check_folder(folder: str | os.PathLike, repo_id: str | None = None) -> list[str]:
    """
    List all problems of a folder, each with its file and the fix. An empty list means that it can be pushed.

    Args:
        folder: as `save_pretrained` of a model and a processor leave it, with its card
        repo_id: repository that the folder goes to, which the example in the card must load

    Example:
        >>> check_folder("/nowhere")
        ['/nowhere: no such folder. Pass the folder that training or `save_pretrained` wrote.']
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [f"{folder}: no such folder. Pass the folder that training or `save_pretrained` wrote."]
    names = pushed_files(folder)[0]
    problems = [*check_files(folder, names), *check_weights(folder, names), *check_code(folder, names)]
    if CARD in names:
        problems += check_card(folder / CARD, repo_id)
    # Do not load a folder with unknown or broken files. A poor card does not matter.
    if all(problem.startswith(f"{CARD}:") for problem in problems):
        problems += check_loading(folder)
    return problems


def pushed_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files of a folder that go to the Hub and those that stay, see `EXCLUDED`, as relative paths."""
    pushed: list[str] = []
    left: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_symlink():
            name = path.relative_to(folder)
            stays = any(EXCLUDED.fullmatch(part) for part in name.parts)
            (left if stays else pushed).append(name.as_posix())
    return pushed, left


# ---- Files ----------------------------------------------------------------------------------------------------------


def check_files(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Find missing files, broken ones, and those that could do harm."""
    for name in sorted(set(REQUIRED) - set(names)):
        yield f"{name}: missing. Save the model and the processor into {folder}, and write the card."
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.is_file():
            yield f"{name}: a link to {os.readlink(path)}, which is missing. Put the file there, or remove the link."
        elif path.suffix in TEXTS or path.name in TEXT_NAMES:
            yield from check_text(path, name)
        elif path.suffix in CARD_MEDIA:
            if path.read_bytes().startswith(PICKLE_STARTS):
                yield f"{name}: a pickle or an archive named as an image or audio. Remove it."
        elif path.suffix not in WEIGHTS:
            yield (
                f"{name}: expected safetensors, text, images or audio. Other files could be pickles, which run code "
                "when they are loaded. Remove it, or save its contents as safetensors or JSON."
            )


def check_text(path: Path, name: str) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
        elif path.suffix == ".py":
            compile(text, name, "exec")
    except UnicodeDecodeError:
        yield f"{name}: not text in UTF-8. Save it as UTF-8, or remove it."
    except (json.JSONDecodeError, SyntaxError) as error:
        yield f"{name}: cannot be read ({error}). Write it again."


def check_weights(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Check that each file of weights can be opened and that the index, if any, names what is there."""
    files = {name for name in names if name.endswith(WEIGHTS) and (folder / name).is_file()}
    if not files:
        yield f"model.safetensors: no weights. Call `model.save_pretrained({str(folder)!r})`."
    found: dict[str, str] = {}
    for name in sorted(files):
        try:
            with safe_open(folder / name, framework="np") as weights:
                found |= dict.fromkeys(weights.keys(), name)
        except SafetensorError as error:
            yield f"{name}: damaged or cut short ({error}). Save the model again."
            return
    if INDEX not in names:
        return
    try:
        listed: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError):
        yield f"{INDEX}: no readable `weight_map`. Save the model again."
        return
    for name in sorted(set(listed.values()) - files):
        yield f"{name}: missing, but {INDEX} names it. {SAVE_INTO_EMPTY}"
    wrong = sorted(key for key in listed.keys() | found.keys() if listed.get(key) != found.get(key))
    if wrong and files >= set(listed.values()):
        yield f"{INDEX}: disagrees with the weights about {len(wrong)} names, the first {wrong[0]}. {SAVE_INTO_EMPTY}"


def check_code(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Check that the folder holds the files that `auto_map` names, which `trust_remote_code=True` loads."""
    for name in ("config.json", "processor_config.json"):
        try:
            auto_map = json.loads((folder / name).read_text(encoding="utf-8")).get("auto_map")
        except (ValueError, AttributeError, OSError):
            continue  # reported by `check_files`
        if not auto_map:
            yield f"{name}: no `auto_map`, so that the folder does not load without this package. Save it again."
            continue
        paths = {path for path in auto_map.values() if isinstance(path, str)}
        for file in sorted({f"{path.split('.')[0]}.py" for path in paths if "--" not in path} - set(names)):
            yield f"{file}: missing, but `auto_map` in {name} names it. {SAVE_AGAIN}"


# ---- Loading --------------------------------------------------------------------------------------------------------


def check_loading(folder: Path) -> list[str]:
    """Load the folder with and without this package, and compare the names of the weights and the logits."""
    outputs: list[dict[str, np.ndarray]] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for how, arguments in (("with the package", [str(ROOT)]), ("without the package", [])):
            out = Path(scratch) / f"{len(outputs)}.safetensors"
            try:
                done = load(folder, out, arguments, Path(scratch))
            except subprocess.TimeoutExpired:
                return [
                    f"{folder}: loading {how} and answering one question took more than {LOAD_SECONDS} s. Check it on "
                    "an idle or a faster machine."
                ]
            if done.returncode != 0:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
                return [f"{folder}: does not load {how}: {' '.join(lines[-2:])}"]
            problems += loading_problems(folder, how, json.loads(done.stdout.splitlines()[-1]))
            outputs.append(load_file(out))
    return problems + differences(folder, *outputs)


def load(folder: Path, out: Path, arguments: list[str], scratch: Path) -> subprocess.CompletedProcess:
    """Run `isolated_load.py` offline, with an empty cache for code and without the user's Python settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    program = [sys.executable, "-I", isolated_load.__file__, str(folder.resolve()), str(out), *arguments]
    return subprocess.run(program, cwd=scratch, env=environment, capture_output=True, text=True, timeout=LOAD_SECONDS)


def loading_problems(folder: Path, how: str, info: dict[str, list[str]]) -> list[str]:
    problems = {
        "are missing from the weights and would be random": info["missing_keys"],
        "are in the weights but not in the model": info["unexpected_keys"],
        "have another shape than in the model": info["mismatched_keys"],
    }
    return [
        f"{folder}: {how}, {len(names)} parameters {problem}, the first {names[0]}. {SAVE_INTO_EMPTY}"
        for problem, names in problems.items()
        if names
    ]


def differences(folder: Path, with_package: dict[str, np.ndarray], without: dict[str, np.ndarray]) -> list[str]:
    """Return the first difference between the inputs and logits of the two loads."""
    # The logits last: inputs that differ explain them.
    for name in sorted(with_package.keys() | without.keys(), key=lambda key: (key == "logits", key)):
        one, other = with_package.get(name), without.get(name)
        if one is None or other is None:
            problem = "exists only " + ("without" if one is None else "with") + " the package"
        elif one.shape != other.shape:
            problem = f"has the shape {one.shape} with the package, {other.shape} without"
        elif not (np.isfinite(one).all() and np.isfinite(other).all()):
            return [f"{folder}: `{name}` holds NaN or infinity. The weights are broken; train or save them again."]
        elif (largest := np.abs(one.astype(np.float64) - other).max(initial=0.0)) > TOLERANCE:
            problem = f"differs by {largest:.2g} with and without the package, more than {TOLERANCE:g}"
        else:
            continue
        return [f"{folder}: `{name}` {problem}. {SAVE_AGAIN}"]
    return []


# ---- The card -------------------------------------------------------------------------------------------------------


def check_card(path: Path, repo_id: str | None = None) -> list[str]:
    """List what a card lacks for the Hub and for its readers."""
    try:
        card = ModelCard.load(path)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        return [f"{CARD}: the Hub cannot read its metadata ({error}). Write the card again with `write_card`."]
    problems = [
        *metadata_problems(card.data),
        *text_problems(card.text, repo_id),
        *measured_problems(card.text, path.parent),
    ]
    return [f"{CARD}: {problem}" for problem in problems]


def metadata_problems(data: ModelCardData) -> Iterator[str]:
    for key in ("license", "language", "library_name", "pipeline_tag", "tags"):
        if not data.get(key):
            yield f"`{key}` is missing from its metadata. Set it in the recipe's `card` or in the file."
    if data.get("license") == "other":
        missing = [f"`{key}`" for key in ("license_name", "license_link") if not data.get(key)]
        if missing:
            yield f"`license: other` needs {' and '.join(missing)} too. Add them to its metadata."
    languages = data.get("language")
    if languages and not isinstance(languages, (str, list)):
        yield f"`language` must be a code such as en, or a list of codes, got {languages!r}. Write [en]."
        languages = None
    for language in [languages] if isinstance(languages, str) else languages or []:
        # YAML reads Norwegian's code as the word no if it is not quoted.
        if not (isinstance(language, str) and LANGUAGE.fullmatch(language)):
            yield f"`language` must hold codes such as en, got {language!r}. Use ISO 639 codes, in quotes."
    if not data.get("eval_results"):
        yield "no `model-index`. Evaluate the model (scripts/evaluate.py), and write the card with its figures."
    for result in data.get("eval_results") or []:
        value = result.metric_value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"`model-index` gives {value!r} as {result.metric_type} of {result.dataset_name}. Write a number."
    carbon = data.get("co2_eq_emissions")
    if not (isinstance(carbon, dict) and isinstance(carbon.get("emissions"), (int, float)) and carbon.get("source")):
        yield "`co2_eq_emissions` needs `emissions`, in grams, and `source`. See modeling_mm/hub/emissions.py."


def text_problems(text: str, repo_id: str | None) -> Iterator[str]:
    for blank in BLANKS:
        if blank in text:
            yield f"{blank!r} was not filled in. Replace it."
    sections = read_sections(text)
    for name in SECTIONS:
        if not sections.get(name, "").strip():
            yield f"the section `## {name}` is missing or empty. Write it."
    if sections.get("Limits", "").strip().startswith("Not assessed"):
        yield "its limits are not assessed. Describe them in the recipe's `card.limits`."
    if "Training" in sections and not re.search(r"^\w+:", code_block(sections["Training"], "yaml") or "", re.M):
        yield "`## Training` has no ```yaml block with the recipe. Put the recipe there."
    code = code_block(sections.get("Use", ""), "python")
    if code is None:
        yield "`## Use` has no ```python block. Show how to load the model and ask it."
        return
    try:
        compile(code, CARD, "exec")
    except SyntaxError as error:
        yield f"the code in `## Use` is not valid Python ({error}). Fix it."
    loaded = set(re.findall(r"from_pretrained\(\s*[\"']([^\"']+)[\"']", code))
    if not loaded:
        yield "the code in `## Use` loads nothing with `from_pretrained`. Show how to load the model."
    elif repo_id is not None and loaded != {repo_id}:
        yield (
            f"the code in `## Use` loads {', '.join(sorted(loaded))}, but the folder goes to {repo_id}. Set "
            "`card.repo_id` in the recipe, or push to the other name."
        )


def measured_problems(text: str, folder: Path) -> Iterator[str]:
    """Find figures of other weights than those beside the card."""
    own = weights_digest(folder)
    for digest in measured_digests(text):
        if own is not None and digest != own:
            yield (
                f"its figures were measured on other weights (SHA-256 {digest[:12]}...) than those of the folder "
                f"({own[:12]}...). Evaluate the folder, and write the card with its figures."
            )


def code_block(text: str, language: str) -> str | None:
    block = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return block[1] if block else None


def read_sections(text: str) -> dict[str, str]:
    """Return the text below each `## ` title; a title inside a code block does not count."""
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
