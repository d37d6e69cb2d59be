"""pipeline_base.py: rows as they come, read as they are needed; which heads are served; processors and assistants."""

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel, MMProcessor, pipelines
from modeling_mm.configuration_mm import PIPELINES
from modeling_mm.pipeline_base import load_processor
from tests.fakes.pipeline_parts import GREEDY, answer_of, audio, build, chat, image, noise
from tests.fakes.processor_parts import picture

CHAT_TASKS = ("image-text-to-text", "any-to-any")
GENERATING = (*CHAT_TASKS, "automatic-speech-recognition", "visual-question-answering", "multimodal-translation")
ROWS = {
    "image-text-to-text": chat(image(), "a cat?"),
    "any-to-any": chat(image(), audio(), "a cat?"),
    "automatic-speech-recognition": noise(),
    "visual-question-answering": {"image": picture(), "question": "a cat?"},
    "multimodal-translation": {"text": "a cat", "image": picture(), "tgt_lang": "fr"},
}


@pytest.fixture(scope="module")
def parts():
    """A model that writes, and its processor."""
    return build()


@pytest.fixture(scope="module")
def pipes(parts):
    """`pipes(task)` is the pipeline of the model in memory, made once."""
    return {task: make(task, *parts) for task in GENERATING}.__getitem__


def make(task: str, model, processor, **options):
    """The pipeline of a model in memory; of some tasks it wants the parts of a processor too."""
    given = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    given = given if task == "automatic-speech-recognition" else {}
    return pipeline(task, model=model, processor=processor, device="cpu", **given, **options)


class Calls:
    """What `generate` of a model is called with, one dict a call."""

    def __init__(self, model, monkeypatch):
        self.given, generate = [], model.generate
        monkeypatch.setattr(model, "generate", lambda **kwargs: self.given.append(kwargs) or generate(**kwargs))


# ---- Rows -----------------------------------------------------------------------------------------------------------

CHATS = [
    chat(image("red"), "a cat?"),
    chat(audio(), "hello"),
    chat("a dog"),
    chat(image("blue"), audio(), "?"),
    chat("a"),
]


class Rows(Dataset):
    """`CHATS`, which remembers what was read of it."""

    def __init__(self, wrap=lambda row: row):
        self.read, self.wrap = [], wrap

    def __len__(self):
        return len(CHATS)

    def __getitem__(self, number):
        self.read.append(number)
        return self.wrap(CHATS[number])


class Stream(IterableDataset):
    def __init__(self, rows: Rows):
        self.rows = rows

    def __iter__(self):
        return (self.rows[number] for number in range(len(self.rows)))


STREAMS = {
    "a KeyDataset of chats": lambda: (rows := Rows(lambda row: {"x": row}), KeyDataset(rows, "x")),
    "a KeyDataset of dicts": lambda: (rows := Rows(lambda row: {"x": {"messages": row}}), KeyDataset(rows, "x")),
    "a dataset of chats": lambda: (rows := Rows(), rows),
    "a dataset of dicts": lambda: (rows := Rows(lambda row: {"messages": row}), rows),
    "an iterable dataset": lambda: (rows := Rows(), Stream(rows)),
    "a generator of chats": lambda: (rows := Rows(), (rows[number] for number in range(5))),
    "a generator of dicts": lambda: (
        rows := Rows(lambda row: {"messages": row}),
        (rows[number] for number in range(5)),
    ),
}


@pytest.mark.parametrize("task", CHAT_TASKS)
@pytest.mark.parametrize("name", STREAMS)
def test_chats_are_streamed_in_batches(pipes, monkeypatch, task, name):
    pipe, options = pipes(task), {"generate_kwargs": GREEDY, "return_full_text": False}
    calls = Calls(pipe.model, monkeypatch)
    rows, stream = STREAMS[name]()
    answers = iter(pipe(stream, batch_size=2, **options))
    first = next(answers)
    assert set(rows.read) == {0, 1}, "rows were read that are not in the first batch"
    rest = [next(answers) for _ in CHATS[1:]]  # a second `iter` would begin again
    texts = [row[0]["generated_text"].strip() for row in (first, *rest)]
    assert [len(call["input_ids"]) for call in calls.given] == [2, 2, 1]
    monkeypatch.undo()
    assert texts == [answer_of(pipe, messages) for messages in CHATS]


@pytest.mark.parametrize("task", CHAT_TASKS)
def test_rows_may_be_dicts_of_a_text_with_media_chats_and_texts_in_one_batch(pipes, task):
    pipe, options = pipes(task), {"generate_kwargs": GREEDY, "return_tensors": True}
    rows = [
        {"text": "<|image|> a cat?", "images": [picture()]},
        {"messages": CHATS[3]},
        {"text": "hello", "images": None, "audio": (noise(), 16_000)},
    ]
    alone = [pipe(row, **options)[0]["generated_token_ids"] for row in rows]
    inputs = pipe.processor(text=rows[0]["text"], images=[picture()], return_tensors="pt")
    assert torch.equal(alone[0], pipe.model.generate(**inputs, **GREEDY)[0])
    batched = [row[0]["generated_token_ids"] for row in pipe(rows, batch_size=3, **options)]
    new = GREEDY["max_new_tokens"]
    assert [row[-new:].tolist() for row in batched] == [row[-new:].tolist() for row in alone]


WRONG_ROWS = {
    "another key": ({"text": "a", "image": picture()}, {}, r"got \['image'\] too"),
    "a chat and more": ({"messages": CHATS[0], "images": []}, {}, r"keys among messages; got \['images'\] too"),
    "nothing": ({"text": None}, {}, "nothing to read"),
    "a timeout": ({"text": "a"}, {"timeout": 3.0}, "`timeout` is not for this processor"),
}


@pytest.mark.parametrize("task", CHAT_TASKS)
@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_wrong_row_is_a_value_error(pipes, task, name):
    row, options, message = WRONG_ROWS[name]
    with pytest.raises(ValueError, match=message):
        pipes(task)([row], generate_kwargs=GREEDY, **options)


# ---- Heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", GENERATING)
@pytest.mark.parametrize("head", [MMModel, MMForSequenceClassification])
def test_pipelines_that_generate_name_the_class_they_want(parts, task, head):
    model = build(head)[0]
    with pytest.raises(ValueError, match=f"MMForConditionalGeneration, got a {head.__name__}"):
        make(task, model, parts[1])


@pytest.mark.parametrize("head", [MMModel, MMForConditionalGeneration])
def test_classification_names_the_class_it_wants(parts, head):
    with pytest.raises(ValueError, match=f"MMForSequenceClassification, got a {head.__name__}"):
        pipeline("text-classification", model=build(head)[0], tokenizer=parts[1].tokenizer, device="cpu")


# ---- Processors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [task for task, (impl, _) in PIPELINES.items() if "Answering" not in impl])
def test_other_models_are_loaded_with_what_the_stock_pipeline_loads(task):
    ours = getattr(pipelines, PIPELINES[task][0].split(".")[1])
    for part in ("processor", "tokenizer", "feature_extractor", "image_processor") if ours.stock else ():
        assert getattr(ours, f"_load_{part}") == getattr(ours.stock, f"_load_{part}"), part


@pytest.mark.parametrize("task", ["automatic-speech-recognition", "text-classification"])
def test_tasks_whose_stock_pipeline_has_no_processor_load_ours_with_all_that_was_saved(parts, tmp_path, task):
    cls = MMForSequenceClassification if task == "text-classification" else MMForConditionalGeneration
    model, processor = build(cls)
    processor.chat_template = "{{ messages[0]['content'][0]['type'] }}"
    processor.audio_window_seconds = 7.0
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline(task, str(tmp_path), device="cpu")
    assert isinstance(pipe.processor, MMProcessor) and pipe.processor.tokenizer is pipe.tokenizer
    assert pipe.processor.audio_window_seconds == 7.0 and pipe.processor.chat_template == processor.chat_template
    assert pipe.processor.image_processor is not None and pipe.processor.feature_extractor is not None
    given = pipeline(task, str(tmp_path), processor=processor, device="cpu")
    assert given.processor is processor


def test_the_processor_is_of_the_models_revision(parts, tmp_path, monkeypatch):
    model, asked = build()[0], []
    model.config.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path, revision="v1")
    monkeypatch.setattr(MMProcessor, "from_pretrained", lambda *args, **kwargs: asked.append((args, kwargs)))
    load_processor(loaded, {"tokenizer": parts[1].tokenizer, "image_processor": None})
    assert asked == [((str(tmp_path),), {"revision": "v1", "tokenizer": parts[1].tokenizer})]


def test_a_model_without_a_processor_to_load_gets_one_of_the_parts_or_an_error(parts):
    model, processor = parts
    made = load_processor(model, {"tokenizer": processor.tokenizer, "image_processor": None})
    assert isinstance(made, MMProcessor) and made.image_processor is None
    with pytest.raises(ValueError, match=r"with a tokenizer among them; got image_processor.*pass `processor=`"):
        load_processor(model, {"tokenizer": None, "image_processor": processor.image_processor})


# ---- Assistants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", GENERATING)
def test_an_assistant_of_the_call_or_of_the_pipeline_reaches_generate(parts, pipes, monkeypatch, task):
    model, processor = parts
    assistant, other = build()[0], build()[0]
    made = make(task, model, processor, assistant_model=assistant)
    expected = pipes(task)(ROWS[task], generate_kwargs=GREEDY)
    calls = Calls(model, monkeypatch)
    answers = [
        pipes(task)(ROWS[task], generate_kwargs=GREEDY, assistant_model=assistant),
        made(ROWS[task], generate_kwargs=GREEDY),
        made(ROWS[task], generate_kwargs=GREEDY, assistant_model=other),
        pipes(task)(ROWS[task], generate_kwargs=GREEDY),
    ]
    assert [call.get("assistant_model") for call in calls.given] == [assistant, assistant, other, None]
    assert answers == [expected] * 4
    assert "assistant_model" not in GREEDY


def test_an_assistant_with_another_vocabulary_wants_its_tokenizer(pipes):
    other = MMForConditionalGeneration(build()[0].config)
    other.config.text_config.vocab_size += 1
    with pytest.raises(ValueError, match="assistant"):
        pipes("image-text-to-text")(ROWS["image-text-to-text"], assistant_model=other)
