"""Every task: data sets, precision, devices, orders of imports, and from a folder without the package."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from tests.fakes.pipeline_parts import CHATS, CLASSIFIED, COLORS, GREEDY, NEW_TOKENS, folder_of, noise
from tests.fakes.processor_parts import picture
from tests.fakes.quick_python import BARE_PYTHON
from tests.fakes.tiny import difference
from tests.fakes.without_package import run_without_package

ROOT = Path(__file__).resolve().parents[2]


def rows_of(task: str) -> list:
    """Three rows for a task, and how they are answered: see `OPTIONS`."""
    rows = {
        "image-text-to-text": list(CHATS.values())[1:4],
        "any-to-any": list(CHATS.values())[3:],
        "automatic-speech-recognition": [noise(seed=i) for i in range(3)],
        "text-generation": ["hello there", "a cat", "a dog and a bird"],
        "feature-extraction": ["hello there", "a cat", "a dog and a bird"],
        "image-feature-extraction": [picture(color) for color in COLORS],
        "text-classification": [CLASSIFIED["both"], CLASSIFIED["text"], CHATS["both"]],
        "image-classification": [picture(color) for color in COLORS],
        "audio-classification": [noise(seed=i) for i in range(3)],
        "zero-shot-image-classification": [picture(color) for color in COLORS],
        "zero-shot-audio-classification": [noise(seed=i) for i in range(3)],
        "visual-question-answering": [{"image": picture(color), "question": "a cat?"} for color in COLORS],
        "multimodal-translation": [{"text": "a cat", "image": picture(color), "tgt_lang": "fr"} for color in COLORS],
    }
    return rows[task]


GENERATED = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
OPTIONS: dict[str, dict] = {
    "image-text-to-text": {"generate_kwargs": GREEDY, "return_full_text": False},
    "any-to-any": {"generate_kwargs": GREEDY, "return_full_text": False},
    "automatic-speech-recognition": {"chunk_length_s": 0.5, **GREEDY},
    "text-generation": GENERATED,
    "feature-extraction": {},
    "image-feature-extraction": {},
    "text-classification": {"top_k": None},
    "image-classification": {"top_k": 3},
    "audio-classification": {"top_k": 3},
    "zero-shot-image-classification": {"candidate_labels": ["a cat", "a dog and a bird"]},
    "zero-shot-audio-classification": {"candidate_labels": ["a cat", "a dog and a bird"]},
    "visual-question-answering": GREEDY,
    "multimodal-translation": GREEDY,
}


def said(pipe, task: str, inputs, **options) -> list:
    return list(pipe(inputs, **{**OPTIONS[task], **options}))


def numbers(results) -> torch.Tensor:
    """Scores and features, flat, of nested lists."""
    if isinstance(results, dict):
        results = [results["score"]]
    return torch.cat([numbers(r) for r in results]) if isinstance(results, list) else torch.tensor([results])


@pytest.mark.parametrize("task", OPTIONS)
def test_a_key_dataset_is_answered_like_its_rows_for_every_task(pipes, task):
    pipe, rows = pipes(task), rows_of(task)
    alone = [pipe(row, **OPTIONS[task]) for row in rows]
    streamed = pipe(KeyDataset([{"x": row} for row in rows], "x"), batch_size=2, **OPTIONS[task])
    assert not isinstance(streamed, list)
    if task.endswith("feature-extraction"):
        for one, other in zip(alone, streamed, strict=True):
            assert difference(torch.tensor(one), torch.tensor(other)) < 1e-4
    elif task.endswith("classification"):
        for one, other in zip(alone, streamed, strict=True):
            assert [row["label"] for row in one] == [row["label"] for row in other]
            assert difference(numbers(one), numbers(other)) < 1e-5
    else:
        assert list(streamed) == alone


@pytest.mark.parametrize("task", OPTIONS)
def test_every_pipeline_runs_in_bfloat16(folders, task):
    pipe = pipeline(task, str(folders / folder_of(task)), device="cpu", dtype=torch.bfloat16)
    assert pipe.model.dtype == torch.bfloat16
    first = rows_of(task)[0]
    results = said(pipe, task, [first, first], batch_size=2)
    assert len(results) == 2 and results[0] == results[1]
    if "generate_kwargs" not in OPTIONS[task] and not OPTIONS[task].get("max_new_tokens"):
        assert numbers(results).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", OPTIONS)
def test_every_pipeline_runs_on_a_device(folders, pipes, task, dtype):
    pipe = pipeline(task, str(folders / folder_of(task)), device="cuda:0", dtype=dtype)
    assert pipe.model.device.type == "cuda"
    results = said(pipe, task, rows_of(task), batch_size=2)
    assert len(results) == 3
    if dtype == torch.float32 and ("generate_kwargs" in OPTIONS[task] or "max_new_tokens" in OPTIONS[task]):
        assert results == said(pipes(task), task, rows_of(task), batch_size=2)


ORDERS = {
    "before transformers": "import modeling_mm; from transformers import pipeline",
    "after the tables were read": (
        "import transformers; tiny = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9); "
        "transformers.AutoModel.from_config(tiny); import modeling_mm; from transformers import pipeline"
    ),
    "after the pipelines": "from transformers import pipeline; import modeling_mm",
    "only a module of ours": "from modeling_mm.modeling_mm import MMModel; from transformers import pipeline",
}
CHECK = """
import sys
assert type(pipeline("vqa", sys.argv[1], device="cpu")).__name__ == "MMVisualQuestionAnsweringPipeline"
from transformers.pipelines import check_task
from transformers.pipelines.automatic_speech_recognition import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
found = {task: check_task(task)[1] for task in
         ("automatic-speech-recognition", "visual-question-answering", "vqa", "multimodal-translation")}
assert all("modeling_mm.pipeline" in str(task["impl"]) for task in found.values()), found
assert MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES["mm"] == "MMForConditionalGeneration"
assert check_task("fill-mask")[1]["impl"] is not None
print("registered")
"""


@pytest.mark.parametrize("order", ORDERS)
def test_the_registry_knows_our_tasks_in_every_order_of_imports(folders, order):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [BARE_PYTHON, "-W", "ignore", "-c", ORDERS[order] + CHECK, str(folders / "model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 and done.stdout.endswith("registered\n"), done.stdout + done.stderr[-3000:]


# Run in this process, and where the package cannot be imported.
ANSWERS = """
def answers(folders, **kwargs):
    import numpy as np
    from PIL import Image
    from transformers import pipeline

    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 1}
    picture = Image.new("RGB", (20, 24), "red")
    sound = np.sin(np.arange(30000) / 20).astype("float32")
    content = [{"type": "image", "image": picture}, {"type": "audio", "audio": (sound, 16000)},
               {"type": "text", "text": "hello"}]
    chat = [{"role": "user", "content": content}]

    def make(task, name="model"):
        return pipeline(task, str(folders / name), device="cpu", **kwargs)

    said = {}
    for task in ("image-text-to-text", "any-to-any"):
        rows = make(task)([chat, chat], batch_size=2, generate_kwargs=dict(greedy), return_full_text=False)
        said[task] = [row[0]["generated_text"] for row in rows]
    said["long speech"] = make("automatic-speech-recognition")(sound, chunk_length_s=1.0, batch_size=2, **greedy)
    generated = make("text-generation")("hello", max_new_tokens=4, do_sample=False)
    said["text-generation"] = generated[0]["generated_text"]
    said["features"] = np.round(np.array(make("feature-extraction")("hello")), 3).tolist()
    said["image features"] = np.round(np.array(make("image-feature-extraction")(picture)), 3).tolist()
    row = {"text": "hello", "images": picture, "audio": (sound, 16000)}
    classified = make("text-classification", "classifier")(row)
    said["class"] = [classified["label"], round(classified["score"], 3)]
    for task, row in (("image-classification", picture), ("audio-classification", sound)):
        best = make(task, "classifier")(row, prompt="a cat?")[0]
        said[task] = [best["label"], round(best["score"], 3)]
    for task, row in (("zero-shot-image-classification", picture), ("zero-shot-audio-classification", sound)):
        best = make(task, "retriever")(row, candidate_labels=["a cat", "a dog"])[0]
        said[task] = [best["label"], round(best["score"], 3)]
    embedded = make("feature-extraction", "retriever")("hello", images=picture, pool=True)
    said["embedding"] = np.round(np.array(embedded), 3).tolist()
    said["question"] = make("visual-question-answering")(picture, "a cat?", **greedy)
    drawn = make("text-to-image", "writer")("a cat", image=picture, do_sample=False)
    said["drawn"] = np.asarray(drawn).tolist()
    any_to_any = make("any-to-any", "writer")(chat, generation_mode="image", do_sample=False)
    said["drawn from a chat"] = np.asarray(any_to_any[0]["generated_image"]).tolist()
    say = make("text-to-audio", "writer")
    spoken = say("a cat", do_sample=False)["audio"]
    streamed = np.concatenate(list(say.stream("a cat", do_sample=False, chunk_seconds=0.02)))
    said["spoken"] = [np.round(each, 3).tolist() for each in (spoken, streamed)]
    said["translation"] = make("multimodal-translation")("a cat", image=picture, tgt_lang="fr", **greedy)
    return said
"""
REMOTE = (
    """
import json
from pathlib import Path
"""
    + ANSWERS
    + """
folders = Path(FOLDERS)
said = answers(folders, trust_remote_code=True)
from transformers import pipeline
pipe = pipeline("automatic-speech-recognition", str(folders / "model"), device="cpu", trust_remote_code=True)
assert type(pipe).__module__.startswith("transformers_modules."), type(pipe).__module__
pipe.save_pretrained(folders / "again")  # what was loaded is saved with its pipelines again
pipeline("visual-question-answering", str(folders / "again"), device="cpu", trust_remote_code=True)
lost = pipe.model.config
lost.name_or_path = str(folders / "gone")
lost.save_pretrained(folders / "lost")  # warns that the code of the pipelines is not found
assert not (folders / "lost" / "pipelines.py").exists() and (folders / "lost" / "configuration_mm.py").exists()
try:
    pipeline("visual-question-answering", str(folders / "model"), device="cpu", trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
import sys
assert "modeling_mm" not in sys.modules
print(json.dumps(said))
"""
)


def test_every_task_gives_the_same_from_a_folder_where_the_package_cannot_be_imported(folders, tmp_path):
    namespace: dict = {}
    exec(ANSWERS, namespace)
    expected = json.loads(json.dumps(namespace["answers"](folders)))
    printed = run_without_package(f"FOLDERS = {str(folders)!r}\n" + REMOTE, tmp_path)
    assert json.loads(printed.splitlines()[-1]) == expected


INPUTS = {
    "visual-question-answering": {"image": picture(), "question": "a cat?"},
    "multimodal-translation": {"text": "a cat", "tgt_lang": "fr"},
    "feature-extraction": "a cat",
}


def one_row(task: str):
    return INPUTS.get(task) or rows_of(task)[0]


@pytest.mark.parametrize("task", OPTIONS)
def test_an_unknown_option_is_refused_by_name(pipes, task):
    for option in ("nonsense", "part", "return_all"):  # the second is a word of the chat template
        with pytest.raises(ValueError, match=option):
            pipes(task)(one_row(task), **{option: 3})


@pytest.mark.parametrize("task", ["image-text-to-text", "text-classification", "feature-extraction"])
def test_an_unknown_option_is_refused_when_a_pipeline_is_made(folders, task):
    with pytest.raises(ValueError, match="nonsense"):
        pipeline(task, str(folders / folder_of(task)), device="cpu", nonsense=3)


GENERATING = [task for task in OPTIONS if "generate_kwargs" in OPTIONS[task] or "max_new_tokens" in OPTIONS[task]]


def words_of(results) -> str:
    """The text of an answer, wherever a pipeline puts it."""
    result = results[0] if isinstance(results, list) else results
    return next(value for name, value in result.items() if name != "input_text")


@pytest.mark.parametrize("task", GENERATING)
def test_options_of_generate_reach_it_by_every_way(pipes, task, monkeypatch):
    """`stop_strings` needs the tokenizer, which the pipeline has."""
    pipe, given = pipes(task), []
    generate = pipe.model.generate
    monkeypatch.setattr(pipe.model, "generate", lambda **kwargs: given.append(kwargs) or generate(**kwargs))
    full = {} if "return_full_text" not in OPTIONS[task] and task != "text-generation" else {"return_full_text": False}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, **full}
    free = words_of(pipe(one_row(task), **options))
    stop = next(letter for letter in free.strip() if letter != "\ufffd")
    stopped = words_of(pipe(one_row(task), stop_strings=[stop], **options))
    assert len(stopped) < len(free) and free.strip().startswith(stopped.strip())
    assert given[-1]["tokenizer"] is pipe.processor.tokenizer
    if task != "text-generation":  # the stock one has no such option
        nested = {name: options[name] for name in ("max_new_tokens", "do_sample", "eos_token_id")}
        again = pipe(one_row(task), generate_kwargs={"stop_strings": [stop], **nested}, **full)
        assert words_of(again) == stopped
    cold = words_of(pipe(one_row(task), **{**options, "do_sample": True, "temperature": 1e-8}))
    assert cold == free


@pytest.mark.parametrize("task", ["image-text-to-text", "automatic-speech-recognition", "text-generation"])
def test_an_answer_as_long_as_the_positions_is_kept(pipes, task):
    """The pipelines' own length, 256 new tokens, is more than the positions left."""
    full = {"return_full_text": False} if "return_full_text" in OPTIONS[task] or task == "text-generation" else {}
    assert words_of(pipes(task)(one_row(task), eos_token_id=None, do_sample=False, **full))


def test_options_of_generate_are_kept_by_the_pipeline(folders):
    made = pipeline("visual-question-answering", str(folders / "model"), device="cpu", stop_strings=["e"])
    assert made._generate_kwargs["stop_strings"] == ["e"]
    assert made(one_row("visual-question-answering"), max_new_tokens=2)
