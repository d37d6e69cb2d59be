"""cli/checks.py: help and slips are answered at once, in one line, before torch and transformers are imported."""

import json
import os
import re
import shlex
import subprocess
import sys

from modeling_mm.cli import COMMANDS
from tests.fakes.ranks import ROOT


def light(calls: list[list[str]], at_end: str = "") -> list[tuple[int, str]]:
    """Exit code and the last line of each call, in a process that has imported neither torch nor transformers."""
    code = f"""
import contextlib, io, json, sys
from modeling_mm.cli import main
ended = []
for arguments in {calls!r}:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    ended.append((code, said.getvalue()))
    heavy = {{"torch", "transformers", "datasets", "accelerate"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
print(json.dumps(ended))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return [(code, said) for code, said in json.loads(done.stdout)]


def test_help_imports_no_torch_and_no_transformers():
    helps = light([["--help"], *([name, "--help"] for name in COMMANDS)])
    for name, (code, said) in zip(["COMMAND", *COMMANDS], helps, strict=True):
        assert code == 0 and said.startswith("usage: modeling-mm")
        assert f"usage: modeling-mm {name}" in said or name == "COMMAND"


SCRIPTS = [
    path
    for path in sorted((ROOT / "scripts").glob("**/*.py"))
    if "__main__" in (text := path.read_text(encoding="utf-8")) or "# %%" in text
]


def test_the_help_of_every_script_imports_no_torch_and_no_transformers():
    """Each as the main module, those of a package as `python -m` runs them."""
    code = f"""
import contextlib, io, runpy, sys
for path in {[str(path.relative_to(ROOT)) for path in SCRIPTS]!r}:
    sys.argv, said = [path, "--help"], io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            if "workshop" in path or "tasks" in path:
                runpy.run_module(path.removesuffix(".py").replace("/", "."), run_name="__main__")
            else:
                runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert not end.code, path
    assert "usage: " in said.getvalue() or "takes no arguments" in said.getvalue(), (path, said.getvalue())
    heavy = {{"torch", "transformers", "datasets", "openai"}} & set(sys.modules)
    assert not heavy, (path, heavy)
"""
    assert {"ask.py", "demo_train.py", "compare.py", "release.py", "caption_a_folder.py"} <= {p.name for p in SCRIPTS}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


# What a user mistypes, and a part of the answer.
SLIPS = {
    "train nothing": "No 'nothing' in recipes. Available: ",
    "train caption-gpt2-siglop": "Did you mean 'caption-gpt2-siglip'?",
    "train nothing.yaml": "There is no recipe nothing.yaml",
    "train tiny-sample trainin.seed=3": "trainin: unknown key 'trainin'. Did you mean 'training'?",
    "train tiny-sample training.lerning_rate=3": "Did you mean 'learning_rate'?",
    "train tiny-sample training.encoder_learning_rat=3": "Did you mean 'encoder_learning_rate'?",
    "train tiny-sample training.learning_rate=fast": 'training.learning_rate: expected a valid number, got "fast".',
    "train tiny-sample training.lr_scheduler_type=cosin": "Did you mean 'cosine'?",
    "train tiny-sample model.config.vision_conector=mlp": "Did you mean 'vision_connector'?",
    "train tiny-sample model.config.text_config.n_layers=1": "Did you mean 'n_layer'?",
    "train tiny-sample data.train.0.limit=0": "data.train.0.limit: expected greater than 0, got 0.",
    "train tiny-sample data.augmentation.image.crp=1": "Did you mean 'crop'?",
    "train tiny-sample frozen.vison=always": "Did you mean 'vision'?",
    "train tiny-sample lora.rr=1": "lora.rr: unknown key 'rr'.",
    "train tiny-sample data={}": "data: `train` is missing.",
    "train tiny-sample data": "expected key=value",
    "train tiny-sample data.train.0.source=no.jsonl": "inputs that are not here: data.train.0.source=no.jsonl.",
    "train tiny-sample training.output_dir=README.md": "training.output_dir: ",
    "train tiny-sample --search 0": "--search: expected at least 1, got 0.",
    "evaluate tiny-sample nothing/at/all": "There is no folder nothing/at/all.",
    "evaluate tiny-sample model_cards/mm-whisper-tiny data.tests={}": "Did you mean 'test'?",
    "ask model_cards/mm-whisper-tny What?": "Did you mean 'model_cards/mm-whisper-tiny'?",
    "ask model_cards What?": (
        "it has no config.json. These folders in it do: model_cards/mm-studio, model_cards/mm-whisper-tiny."
    ),
    "ask README.md What?": "README.md is a file. Expected a folder or Hub id",
    "ask configuration/presets/tiny-processor What?": "it has no config.json.",
    "ask model_cards/mm-whisper-tiny": "Give either a question",
    "ask model_cards/mm-whisper-tiny ' '": "Give either a question",
    "ask model_cards/mm-whisper-tiny What? --questions a.jsonl": "Give either a question",
    "ask model_cards/mm-whisper-tiny --questions a.jsonl": "The file a.jsonl does not exist.",
    "ask model_cards/mm-whisper-tiny --questions README.md": "--questions README.md: expected a .jsonl file",
    "ask model_cards/mm-whisper-tiny --image redme.md What?": "--image: there is no file redme.md.",
    "ask model_cards/mm-whisper-tiny --image scripts/ap.png What?": "Did you mean 'scripts/app.png'?",
    "ask model_cards/mm-whisper-tiny What? --attention a.png": "no image and no audio to attend to",
    "ask model_cards/mm-whisper-tiny --image scripts/app.png --attention scripts What?": "scripts is a folder.",
    "ask model_cards/mm-whisper-tiny What? --explain occlusion": "--explain occlusion needs a file to draw into.",
    "ask model_cards/mm-whisper-tiny --questions processing --match cat": "Leave --questions out.",
    "ask model_cards/mm-whisper-tiny What? --max-new-tokens 0": "--max-new-tokens: expected at least 1, got 0.",
    "faithfulness model_cards/mm-whisper-tiny a.jsonl": "The file a.jsonl does not exist.",
    "faithfulness model_cards/mm-whisper-tiny README.md": "README.md: expected a .jsonl file, or a folder of chats.",
    "faithfulness model_cards/mm-whisper-tiny processing/corpora/unseen/questions.jsonl --points 0": "--points: ",
    "convert nothing/at/all new": "Expected a folder or Hub id of an encoder-decoder.",
    "convert model_cards/mm-whisper-tiny new": "model_cards/mm-whisper-tiny is a joint model already.",
    "convert openai/whisper-tiny scripts": "scripts is not empty. Choose a new folder",
    "convert openai/whisper-tiny scripts --overwrite": "scripts holds no model, as it has no config.json.",
    "convert openai/whisper-tiny README.md": "README.md is a file, not a folder.",
    "serve nothing/at/all": "There is no folder nothing/at/all.",
    "serve model_cards/mm-whisper-tiny --allow-files nothing": "--allow-files: there is no folder nothing.",
    "serve model_cards/mm-whisper-tiny --max-tokens 0": "--max-tokens: expected at least 1, got 0.",
    "app nothing": "There is no folder nothing.",
    "app model_cards/mm-whisper-tiny --index nothing": "nothing holds no index. Build one: modeling-mm index build.",
    "app model_cards/mm-whisper-tiny --port 99999": "--port: expected 0 to 65535, got 99999.",
    "push nothing me/nothing": "There is no folder nothing.",
    "benchmark txt": "There is no part txt. Expected text, image, hearing, speech, ",
    "info tny": "No folder and no preset 'tny'. Did you mean 'tiny'?",
    "info --path acelerate/ddp": "--path acelerate/ddp: expected presets, ",
    "info --path accelerate/dpd": "Did you mean 'ddp'?",
}


def test_a_slip_is_answered_in_one_line_before_torch_is_imported():
    answers = light([shlex.split(call) for call in SLIPS])
    for (call, part), (code, said) in zip(SLIPS.items(), answers, strict=True):
        assert code == 2, (call, said)
        assert part in said and re.fullmatch(rf"modeling-mm {call.split()[0]}: .+\n", said), (call, said)


def test_a_folder_that_is_no_model_says_what_it_is(tmp_path):
    folders = {
        "nothing": ({}, "has no config.json"),
        "broken": ({"config.json": "{"}, "config.json is not the configuration of a model: JSONDecodeError"),
        "list": ({"config.json": "[]"}, "config.json is not the configuration of a model: TypeError"),
        "untyped": ({"config.json": "{}"}, "config.json is not the configuration of a model: KeyError"),
        "bert": ({"config.json": '{"model_type": "bert"}'}, "a model of type 'bert'. Expected a joint model"),
        "adapter": ({"adapter_config.json": "{}"}, "holds an adapter, not a model"),
    }
    for name, (files, _) in folders.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    for (name, (_, part)), (code, said) in zip(
        folders.items(), light([["serve", str(tmp_path / name)] for name in folders]), strict=True
    ):
        assert code == 2 and part in said and said.count("\n") == 1, (name, said)


def test_a_reader_that_has_enough_ends_the_command_without_a_word():
    """As `modeling-mm info | head -1` does."""
    command = f"{sys.executable} -m modeling_mm.cli info | head -1; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stderr == "" and done.stdout.splitlines()[-1] in ("141", "0")


def test_an_interrupt_ends_the_command_without_a_traceback():
    code = """
import signal, threading, os
from modeling_mm.cli import main
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
raise SystemExit(main(["ask", "model_cards/mm-whisper-tiny", "What?"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (130, "")
