"""pipelines.py: text about media and classification through the real `pipeline`; the stock pipelines; other models."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TextClassificationPipeline,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mm import MMConfig, MMModel
from modeling_mm import pipelines as ours
from modeling_mm.data import ChatRow
from modeling_mm.training import ClassificationCollator
from tests.fakes.pipeline_parts import (
    CHATS,
    CLASSIFIED,
    COLORS,
    GREEDY,
    NEW_TOKENS,
    answer_of,
    build,
    chat,
    image,
    inputs_of,
    noise,
)
from tests.fakes.processor_parts import RATE, make_wordpiece, picture
from tests.fakes.tiny import difference

ROOT = Path(__file__).resolve().parents[2]


# ---- Text about media -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
@pytest.mark.parametrize("name", CHATS)
def test_a_chat_gets_what_generate_gives(pipes, task, name):
    pipe = pipes(task)
    assert type(pipe).__module__ == "modeling_mm.pipelines"
    inputs = inputs_of(pipe, CHATS[name])
    expected = pipe.model.generate(**inputs, **GREEDY)
    said = pipe(CHATS[name], generate_kwargs=dict(GREEDY), return_tensors=True)
    assert torch.equal(said[0]["generated_token_ids"], expected[0])


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_chats_of_all_kinds_go_into_one_batch(pipes, task):
    pipe, chats = pipes(task), list(CHATS.values())
    options = {"generate_kwargs": dict(GREEDY), "return_full_text": False}
    alone = [pipe(messages, **options) for messages in chats]
    assert [row[0]["generated_text"].strip() for row in alone] == [answer_of(pipe, messages) for messages in chats]
    assert pipe(chats, batch_size=len(chats), **options) == alone
    assert pipe(chats, batch_size=4, **options) == alone  # the last batch is shorter
    streamed = pipe((messages for messages in chats), batch_size=2, **options)
    assert not isinstance(streamed, list)
    assert list(streamed) == alone


def test_texts_with_images_beside_them_are_answered(pipes):
    pipe = pipes("image-text-to-text")
    prompt = "<|image|> What do you see?"
    inputs = pipe.processor(text=prompt, images=[picture()], return_tensors="pt")
    expected = pipe.model.generate(**inputs, **GREEDY)
    said = pipe(images=[picture()], text=prompt, generate_kwargs=dict(GREEDY), return_tensors=True)
    assert torch.equal(said[0]["generated_token_ids"], expected[0])


def test_any_to_any_takes_media_beside_the_text_and_decodes_audio_itself(pipes, tmp_path):
    """The stock pipeline would ask for torchvision, and for librosa or torchcodec to read the file."""
    pipe, path = pipes("any-to-any"), tmp_path / "sound.wav"
    soundfile.write(path, noise(), RATE, subtype="FLOAT")
    said = pipe(text="a cat", images=[picture()], audio=str(path), generate_kwargs=dict(GREEDY), return_tensors=True)
    inputs = pipe.processor(text="a cat", images=[picture()], audio=(noise(), RATE), return_tensors="pt")
    assert torch.equal(said[0]["generated_token_ids"], pipe.model.generate(**inputs, **GREEDY)[0])
    with pytest.raises(ValueError, match="image"):
        pipe({"text": "a", "image": picture()})


def test_a_model_in_memory_is_served(pipes):
    model, processor = build()
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    assert type(pipe) is ours.MMImageTextToTextPipeline
    said = pipe(CHATS["both"], generate_kwargs=dict(GREEDY), return_full_text=False)
    assert said[0]["generated_text"].strip() == answer_of(pipes("image-text-to-text"), CHATS["both"])


# ---- Classification -------------------------------------------------------------------------------------------------


def logits_of(pipe, inputs) -> torch.Tensor:
    inputs = {"text": inputs} if isinstance(inputs, str) else dict(inputs)
    images = inputs.get("images", inputs.get("image"))
    row = pipe.processor(text=inputs.get("text", ""), images=images, audio=inputs.get("audio"), return_tensors="pt")
    with torch.no_grad():
        return pipe.model(**row).logits[0]


@pytest.mark.parametrize("name", CLASSIFIED)
def test_texts_are_classified_with_the_media_beside_them(pipes, name):
    pipe = pipes("text-classification")
    assert type(pipe) is ours.MMTextClassificationPipeline
    scores = logits_of(pipe, CLASSIFIED[name]).softmax(-1).tolist()
    found = pipe(CLASSIFIED[name], top_k=None)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        {f"LABEL_{i}": score for i, score in enumerate(scores)}, abs=1e-5
    )


def test_media_change_the_class_scores(pipes):
    pipe = pipes("text-classification")
    plain, seen, heard = (
        pipe(row, top_k=None)
        for row in ({"text": "hello"}, {"text": "hello", "images": picture()}, CLASSIFIED["sound"])
    )
    assert plain != seen and plain != heard


def test_classified_rows_of_all_kinds_go_into_one_batch(pipes):
    pipe, rows = pipes("text-classification"), list(CLASSIFIED.values())
    alone = [pipe(row, top_k=1)[0] for row in rows]
    batched = pipe(rows, batch_size=4, top_k=1)
    assert [row[0]["label"] for row in batched] == [row["label"] for row in alone]
    assert [row[0]["score"] for row in batched] == pytest.approx([row["score"] for row in alone], abs=1e-5)
    streamed = list(pipe(KeyDataset([{"x": row} for row in rows], "x"), batch_size=3, top_k=1))
    assert [row[0]["label"] for row in streamed] == [row["label"] for row in alone]


def test_chats_are_classified_as_recipes_train_them(pipes):
    pipe, messages = pipes("text-classification"), chat(image(), "a dog?")
    answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    row = dict(ClassificationCollator(pipe.processor, ["yes", "no"])([ChatRow(answered)]))
    del row["labels"]
    with torch.no_grad():
        scores = pipe.model(**row).logits[0].softmax(-1)
    found = pipe(messages)
    assert found["label"] == f"LABEL_{scores.argmax()}" and found["score"] == pytest.approx(
        scores.max().item(), abs=1e-5
    )


def test_what_the_stock_text_classification_takes_is_still_taken(pipes):
    pipe = pipes("text-classification")
    assert set(pipe("hello")[0]) == {"label", "score"}  # a list for a string, as ever
    assert set(pipe({"text": "hello", "text_pair": "there"})) == {"label", "score"}
    assert len(pipe("hello " * 20, truncation=True, max_length=4)) == 1


WRONG_TO_CLASSIFY = {
    "a number": (3, {}, "expected a text, a dict .* or a chat; got an object of type int"),
    "another key": ({"text": "a", "video": 1}, {}, r"got \['video'\] too"),
    "nothing": ({}, {}, "nothing to read"),
    "a pair with media": ({"text": "a", "text_pair": "b", "images": picture()}, {}, "pair of texts"),
    "too few pictures": ({"text": "<|image|><|image|>", "images": picture()}, {}, "(?s)2.*1"),
}


@pytest.mark.parametrize("name", WRONG_TO_CLASSIFY)
def test_what_cannot_be_classified_is_a_value_error(pipes, name):
    inputs, options, message = WRONG_TO_CLASSIFY[name]
    with pytest.raises(ValueError, match=message):
        pipes("text-classification")(inputs, **options)


# ---- The stock pipelines that serve our models ----------------------------------------------------------------------


def test_text_is_generated_by_the_stock_pipeline(pipes):
    pipe = pipes("text-generation")
    assert type(pipe).__module__ == "transformers.pipelines.text_generation"
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_full_text": False}
    ids = pipe.tokenizer("hello there", return_tensors="pt", return_token_type_ids=False)
    tokens = pipe.model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    expected = pipe.tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert pipe("hello there", **options)[0]["generated_text"].strip() == expected.strip()
    messages = [{"role": "user", "content": "hello there"}]
    alone = [pipe(messages, **options), pipe([{"role": "user", "content": "a cat"}], **options)]
    assert pipe([messages, [{"role": "user", "content": "a cat"}]], batch_size=2, **options) == alone


def test_features_of_texts_are_the_base_models(pipes, folders):
    pipe = pipes("feature-extraction")
    assert type(pipe.model) is MMModel
    texts = ["hello there", "a cat"]
    alone = [pipe(words, return_tensors=True) for words in texts]
    ids = pipe.tokenizer(texts[0], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        assert difference(alone[0], pipe.model(**ids).last_hidden_state) < 1e-5
    batched = pipe(texts, batch_size=2, return_tensors=True)
    for one, other in zip(alone, batched, strict=True):  # padded on the left
        assert difference(one, other[:, -one.shape[1] :]) < 1e-4


def test_features_of_images_are_the_states_of_their_placeholders(pipes):
    pipe = pipes("image-feature-extraction")
    model, pixels = pipe.model, pipe.image_processor(picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[model.config.image_token_id]]), pixel_values=pixels)
    features = pipe(picture(), return_tensors=True)
    assert difference(features, expected.last_hidden_state) < 1e-6 and features.shape == (1, 1, 32)
    pooled = pipe(picture(), pool=True, return_tensors=True)
    assert difference(pooled, expected.last_hidden_state[:, -1]) < 1e-6
    pictures = [picture(color) for color in COLORS]
    batched = pipe(pictures, batch_size=2, return_tensors=True)
    alone = [pipe(p, return_tensors=True) for p in pictures]
    assert max(difference(one, other) for one, other in zip(alone, batched, strict=True)) < 1e-5
    assert difference(batched[0], batched[1]) > 1e-3


def test_media_without_text_are_read_through_their_placeholders_padded_on_the_left():
    model, processor = build()
    media = processor(images=[[picture()], []], audio=[[], [(noise(1.5), RATE)]], return_tensors="pt")
    media = {name: value for name, value in media.items() if name not in ("input_ids", "attention_mask")}
    image_id, audio_id, padding = model.config.image_token_id, model.config.audio_token_id, 0
    ids = {
        "input_ids": torch.tensor([[padding, image_id], [audio_id, audio_id]]),
        "attention_mask": torch.tensor([[0, 1], [1, 1]]),
    }
    with torch.no_grad():
        expected, outputs = model.model(**ids, **media), model.model(**media)
        assert difference(model(**media).logits[:, -1], model(**ids, **media).logits[:, -1]) < 1e-5
    assert difference(outputs.pooler_output, expected.last_hidden_state[:, -1]) < 1e-5
    assert expected.pooler_output is None
    with pytest.raises(ValueError, match="Pass input_ids or inputs_embeds"):
        model()


# ---- Other models, and where the pipelines come from ----------------------------------------------------------------


def test_other_models_get_the_stock_pipeline_unchanged(tmp_path):
    words = make_wordpiece()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).eval()
    in_memory = pipeline("text-classification", model=model, tokenizer=words, device="cpu")
    assert type(in_memory) is TextClassificationPipeline
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    pipe = pipeline("sentiment-analysis", str(tmp_path), device="cpu")
    assert type(pipe) is TextClassificationPipeline and pipe.processor is None
    assert pipe("hello there")[0]["score"] == pytest.approx(in_memory("hello there")[0]["score"])


def test_tasks_of_our_models_alone_refuse_other_models():
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9, bos_token_id=0, eos_token_id=0))
    _, processor = build()
    with pytest.raises(ValueError, match="serves models of the type 'mm', got a GPT2LMHeadModel"):
        pipeline("visual-question-answering", model=other, processor=processor, device="cpu")


def test_a_saved_pipeline_loads_again(pipes, tmp_path):
    pipe = pipes("automatic-speech-recognition")
    pipe.save_pretrained(tmp_path)
    again = pipeline("automatic-speech-recognition", str(tmp_path), device="cpu")
    assert again(noise(), **GREEDY) == pipe(noise(), **GREEDY)


def test_a_saved_folder_brings_the_pipelines_but_its_config_does_not_name_them(folders):
    """The config of the package would else make `pipeline` ask for `trust_remote_code`, which it does not need."""
    assert (folders / "model" / "pipelines.py").read_text() == (ROOT / "modeling_mm/pipelines.py").read_text()
    assert "custom_pipelines" not in json.loads((folders / "model" / "config.json").read_text())
    assert MMConfig.from_pretrained(folders / "model").custom_pipelines == {}


def test_pipelines_that_a_user_registered_are_kept(tmp_path):
    config, registered = build()[0].config, {"my-task": {"impl": "mine.MyPipeline", "pt": ["AutoModel"]}}
    config.custom_pipelines = registered
    config.save_pretrained(tmp_path)
    assert MMConfig.from_pretrained(tmp_path).custom_pipelines == registered
