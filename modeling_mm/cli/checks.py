# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Checks of a command's arguments before its module is imported, so that a slip is answered in a second.

They need neither torch nor transformers. What only these can tell is left to the command.
"""

import json
import os
from argparse import Namespace
from collections.abc import Callable, Collection
from pathlib import Path
from typing import get_args

from ..modalities import MODALITIES, VIDEO
from ..utils.resources import Kind, find_resource, list_resources
from ..utils.spelling import suggestion
from .arguments import AUDIO_SUFFIXES, BENCHMARKS, IMAGE_FORMATS
from .recipe import check_recipe

CONFIG = "config.json"
INDEX_FILE = "index.json"
EXPORT_FILE = "export.json"
OURS = "mm"  # the type of joint models
CONVERTIBLE = ("vision-encoder-decoder", "speech-encoder-decoder", "whisper")
COUNTS = ("max_new_tokens", "limit", "search", "max_tokens", "tokens", "repeats")
OUR_FOLDERS = ("configuration", "model_cards", "outputs", "processing")  # no owners on the Hub, but of a checkout


def check_arguments(options: Namespace) -> None:
    """
    Check what files and arguments tell by themselves.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        PermissionError: if nothing can be written where the results go.
        ValueError: if a value is wrong.
    """
    for name, low in {
        "max_new_tokens": 1,
        "limit": 1,
        "search": 1,
        "max_tokens": 1,
        "max_audio_seconds": 1,
        "max_requests": 1,
        "tokens": 1,
        "points": 1,
        "repeats": 1,
        "top": 1,
        "batch_size": 1,
        "count": 1,
    }.items():
        value = getattr(options, name, None)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {low}, got {value}.")
    if not 0 <= getattr(options, "port", 0) < 2**16:
        raise ValueError(f"--port: expected 0 to 65535, got {options.port}.")
    if check := CHECKS.get(options.command):
        check(options)


def check_ask(options: Namespace) -> None:
    files = {name: getattr(options, name) for name in (*MODALITIES, VIDEO)}
    for name, paths in files.items():
        for path in paths:
            if not Path(path).is_file():
                raise FileNotFoundError(f"--{name}: there is no file {path}.{beside(Path(path))}")
    has_question = any(files.values()) or bool((options.question or "").strip())
    if has_question == (options.questions is not None):
        raise ValueError("Give either a question (with files if it is about some), or --questions FILE.")
    if options.questions is not None:
        check_questions("--questions ", options.questions)
        if options.match:
            raise ValueError("--match compares one row with others. Leave --questions out.")
    if options.explain and not options.attention:
        raise ValueError(f"--explain {options.explain} needs a file to draw into. Add --attention FILE.")
    if options.attention:
        if options.questions is None and not any(files.values()) and not options.match:
            raise ValueError("--attention: the question has no image and no audio to attend to. Add one.")
        check_writable("--attention", Path(options.attention))
    check_model(options.model)


def check_draw(options: Namespace) -> None:
    path = Path(options.out)
    check_text(options.text, "draw")
    if path.suffix:
        check_suffix(path, IMAGE_FORMATS)
    check_writable("--out", path if path.suffix else path / "any")
    check_given("--like", options.like)
    check_model(options.model)


def check_say(options: Namespace) -> None:
    check_text(options.text, "say")
    check_suffix(Path(options.out), AUDIO_SUFFIXES)
    check_writable("--out", Path(options.out))
    check_given("--voice", options.voice)
    check_model(options.model)


def check_find(options: Namespace) -> None:
    if not Path(options.image).is_file():
        raise FileNotFoundError(f"There is no file {options.image}.{beside(Path(options.image))}")
    if options.text is not None:
        check_text(options.text, "find")
    if options.out is not None:
        check_suffix(Path(options.out), IMAGE_FORMATS)
        check_writable("--out", Path(options.out))
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold {options.threshold}: scores are from 0 to 1.")
    check_model(options.model)


def check_text(text: str, verb: str) -> None:
    if not text.strip():
        raise ValueError(f"The text is empty, so there is nothing to {verb}.")


def check_suffix(path: Path, known: Collection[str]) -> None:
    if path.suffix.lower() not in known:
        raise ValueError(f"--out {path}: expected a file of type {', '.join(known)}.")


def check_given(option: str, path: str | None) -> None:
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"{option}: there is no file {path}.{beside(Path(path))}")


def check_questions(option: str, path: str) -> None:
    if Path(path).suffix not in ("", ".jsonl"):
        raise ValueError(f"{option}{path}: expected a .jsonl file, or a folder of chats.")
    if not Path(path).exists():
        raise FileNotFoundError(f"The file {path} does not exist.{beside(Path(path))}")


def check_faithfulness(options: Namespace) -> None:
    check_questions("", options.questions)
    if options.out:
        check_writable("--out", Path(options.out))
    check_model(options.model)


def check_train(options: Namespace) -> None:
    values = check_recipe(options.recipe, options.overrides)
    folder = values.get("training", {}).get("output_dir") or f"outputs/{Path(options.recipe).stem}"
    check_writable("training.output_dir", Path(folder, "any"))


def check_evaluate(options: Namespace) -> None:
    check_recipe(options.recipe, options.overrides, ("data",))
    check_model(options.model)
    if options.examples < 0:
        raise ValueError(f"--examples: expected at least 0, got {options.examples}.")
    check_writable("--out", Path(options.out, "any"))


def check_index(options: Namespace) -> None:
    if options.action == "build":
        check_model(options.model)
        check_writable("--out", Path(options.out, "any"))
        source = Path(options.source)
        if not source.exists() and (source.suffix == ".jsonl" or is_path(options.source)):
            raise FileNotFoundError(f"There is no file or folder {options.source}.{beside(source)}")
        return
    check_index_folder(options.index)
    if getattr(options, "page", None):
        check_writable("--page", Path(options.page))
    if options.action == "search":
        check_query(options)
        if options.model:
            check_model(options.model)
    if options.action == "recommend" and not options.like:
        raise ValueError("Recommending needs at least one row that is liked. Add --like ID.")


def check_index_folder(folder: str) -> None:
    if not Path(folder, INDEX_FILE).is_file():
        hint = beside(Path(folder))
        raise FileNotFoundError(f"{folder} holds no index. Build one: modeling-mm index build.{hint}")


def check_query(options: Namespace) -> None:
    files = {name: getattr(options, name) for name in MODALITIES if getattr(options, name)}
    for name, path in files.items():
        if not Path(path).is_file():
            raise FileNotFoundError(f"--{name}: there is no file {path}.{beside(Path(path))}")
    given = [f"--{name}" for name in files] + (["--text"] if options.text is not None else [])
    options_of_query = ", ".join(f"--{name}" for name in ("text", *MODALITIES))
    if not given:
        raise ValueError(f"There is nothing to search by. Give one of {options_of_query}.")
    if options.text is not None and not options.text.strip():
        raise ValueError("--text: the text is empty, so there is nothing to search by.")
    if len(given) > 1 and not options.mixed:
        raise ValueError(f"{' and '.join(given)}: add --mixed to search by them together, or give one.")


def check_convert(options: Namespace) -> None:
    source, folder = Path(options.source), Path(options.folder)
    if (kind := check_named(options.source, "an encoder-decoder")) == OURS:
        raise ValueError(f"{source} is a joint model already.")
    if kind is not None and kind not in CONVERTIBLE:
        raise ValueError(
            f"{source} is a model of type {kind!r}, which cannot be converted. Expected {', '.join(CONVERTIBLE)}."
        )
    check_writable("FOLDER", folder / "any")
    if folder.is_dir() and any(folder.iterdir()):
        if not options.overwrite:
            raise ValueError(f"{folder} is not empty. Choose a new folder, or replace its model with --overwrite.")
        check_model(options.folder)  # nothing else is deleted


def check_export(options: Namespace) -> None:
    check_model(options.model)
    files = [(name, path) for name in MODALITIES for path in getattr(options, name)]
    if not files:
        expected = " or ".join(f"--{name}" for name in MODALITIES)
        raise ValueError(f"The graphs are for media like some of yours. Give {expected} with a file.")
    for name, path in files:
        if not Path(path).is_file():
            raise FileNotFoundError(f"--{name}: there is no file {path}.{beside(Path(path))}")
    folder = Path(options.folder)
    check_writable("FOLDER", folder / "any")
    if folder.is_dir() and any(folder.iterdir()):
        if not options.overwrite:
            raise ValueError(f"{folder} is not empty. Choose a new folder, or replace its graphs with --overwrite.")
        if not (folder / EXPORT_FILE).is_file():  # nothing else is deleted
            raise ValueError(f"{folder} holds no exported graphs. Choose a new folder.")


def check_serve(options: Namespace) -> None:
    if options.allow_files is not None and not Path(options.allow_files).is_dir():
        raise ValueError(f"--allow-files: there is no folder {options.allow_files}.")
    check_model(options.model)


def check_app(options: Namespace) -> None:
    if options.examples is not None and not Path(options.examples).is_file():
        raise FileNotFoundError(f"--examples: there is no file {options.examples}.{beside(Path(options.examples))}")
    if options.index is not None:
        check_index_folder(options.index)
    check_model(options.model)


def check_push(options: Namespace) -> None:
    if not Path(options.folder).is_dir():
        raise FileNotFoundError(f"There is no folder {options.folder}.{beside(Path(options.folder))}")


def check_benchmark(options: Namespace) -> None:
    if unknown := sorted(set(options.parts) - set(BENCHMARKS)):
        raise ValueError(f"There is no part {', '.join(unknown)}. Expected {', '.join(BENCHMARKS)}.")


def check_info(options: Namespace) -> None:
    if options.path:
        kind, _, name = options.path.partition("/")
        if kind not in get_args(Kind):
            raise ValueError(f"--path {options.path}: expected {', '.join(get_args(Kind))}, then a slash and a name.")
        find_resource(kind, name)
    elif options.model and options.model not in list_resources("presets"):
        if "/" not in options.model and not Path(options.model).exists():
            raise FileNotFoundError(unknown_preset(options.model))
        check_model(options.model)


def unknown_preset(name: str) -> str:
    """Return the message for a plain name that is neither a preset nor a folder."""
    presets = list_resources("presets")
    return f"No folder and no preset {name!r}.{suggestion(name, presets)} Presets: {', '.join(presets)}."


def check_model(name: str) -> None:
    """
    Check that a folder holds a joint model; a name that may be a Hub id is left to the Hub.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds another model, or none.
    """
    kind = check_named(name, "a joint model")
    if kind not in (None, OURS):
        raise ValueError(f"{name} is a model of type {kind!r}. Expected a joint model, of type {OURS!r}.")


def check_named(name: str, expected: str) -> str | None:
    """
    Check that a folder holds a model, and return its type; `None` for a name that may be a Hub id.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no model.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_file():
            raise ValueError(f"{name} is a file. Expected a folder or Hub id of {expected}.")
        if is_path(name) or name.count("/") != 1:
            hint = beside(folder)
            raise FileNotFoundError(f"There is no folder {name}. Expected a folder or Hub id of {expected}.{hint}")
        return None
    path = folder / CONFIG
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"{name} holds an adapter, not a model. Merge it into its model and save that.")
        inside = ", ".join(str(each.parent) for each in sorted(folder.glob(f"*/{CONFIG}")))
        hint = f" These folders in it do: {inside}." if inside else ""
        raise FileNotFoundError(f"{name} holds no model, as it has no {CONFIG}.{hint}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the configuration of a model: {type(error).__name__}, {error}.") from error


def is_path(name: str) -> bool:
    """Return if a name cannot be that of something on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.partition("/")[0] in OUR_FOLDERS


def check_writable(what: str, path: Path) -> None:
    """Check that a file can be written, before the work whose result it holds."""
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir():
        raise ValueError(f"{what}: {folder} is a file, not a folder.")
    if path.is_dir():
        raise ValueError(f"{what}: {path} is a folder. Expected the name of a file.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PermissionError(f"{what}: {path if path.exists() else folder} cannot be written to.")


def beside(path: Path) -> str:
    """Return a suggestion for a misspelled path, from the names in its folder."""
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = suggestion(path.name, names)
    return hint.replace("'", f"'{path.parent}/", 1) if hint and path.parent != Path() else hint


CHECKS: dict[str, Callable[[Namespace], None]] = {
    "ask": check_ask,
    "draw": check_draw,
    "say": check_say,
    "find": check_find,
    "train": check_train,
    "evaluate": check_evaluate,
    "faithfulness": check_faithfulness,
    "index": check_index,
    "convert": check_convert,
    "export": check_export,
    "serve": check_serve,
    "app": check_app,
    "push": check_push,
    "benchmark": check_benchmark,
    "info": check_info,
}
