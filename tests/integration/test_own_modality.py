"""A modality of a user's own by one row and one registered encoder: from chats to a folder that loads again."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, pipeline
from transformers.modeling_outputs import BaseModelOutput

from modeling_mm import MMConfig, MMForConditionalGeneration, MMForRetrieval, MMProcessor
from modeling_mm.data import ChatDataset, clean
from modeling_mm.encoders import encode
from modeling_mm.evaluation import generate_answers
from modeling_mm.explain import explain, make_target, modality_contributions
from modeling_mm.modalities import Modality, register_modality, unregister_modality
from modeling_mm.training import (
    CachedCollator,
    ChatCollator,
    EncoderCache,
    MMTrainingArguments,
    add_lora,
    encode_conversation,
    parts_of,
)
from tests.fakes.processor_parts import ids, make, picture
from tests.fakes.radar import SENSORS, RadarConfig, RadarEncoder, radar_registered
from tests.fakes.tiny import difference, gpt2, open_gates, seeded, vit
from tests.fakes.tiny_chats import DEFAULTS

QUESTION = {"type": "text", "text": "What do you see?"}
WORDS = {0.8: "a cat", -0.8: "a dog"}


@pytest.fixture(autouse=True)
def radar():
    with radar_registered():
        yield


def echoes(level: float, steps: int = 5) -> np.ndarray:
    return np.full((steps, SENSORS), level, dtype=np.float32)


def prompt(*media: dict) -> list[dict]:
    return [{"role": "user", "content": [*media, QUESTION]}]


def radar_part(level: float, steps: int = 5) -> dict:
    return {"type": "radar", "radar": echoes(level, steps)}


def answered(level: float, steps: int = 5) -> dict:
    return {"messages": [*prompt(radar_part(level, steps)), {"role": "assistant", "content": WORDS[level]}]}


def joint_model(processor: MMProcessor, cls=MMForConditionalGeneration, **fields):
    encoder = seeded(lambda: RadarEncoder(RadarConfig()))
    text = gpt2(vocab_size=len(processor.tokenizer), n_positions=128)
    fields = {"cross_attention_layers": [1, 3], "tokenizer": processor, **fields}
    vision = vit(image_size=8, patch_size=4)
    model = seeded(lambda: cls.from_text_vision_audio_pretrained(text, vision, radar=encoder, **fields))
    return open_gates(model)


def train(model, samples, collator, folder, steps: int = 60) -> None:
    fields = {**DEFAULTS, "optim": "adamw_torch", "learning_rate": 5e-3, "max_steps": steps, "max_grad_norm": 1.0}
    del fields["generation_max_new_tokens"]
    Trainer(model, TrainingArguments(str(folder), **fields), collator, samples).train()


def test_chats_with_it_train_answer_and_come_back_from_a_folder(tmp_path):
    processor = make(audio=False)
    model = joint_model(processor)
    samples = ChatDataset([answered(level, steps) for level in WORDS for steps in (3, 5, 6)])
    train(model, samples, ChatCollator(processor), tmp_path / "run")
    prompts = [prompt(radar_part(level, steps)) for level, steps in ((-0.8, 4), (0.8, 6), (0.8, 2))]
    expected = ["a dog", "a cat", "a cat"]
    assert generate_answers(model, processor, prompts) == expected
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    its_processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(again.config.radar_config) is RadarConfig and type(its_processor) is MMProcessor
    assert its_processor.radar_token_id == processor.radar_token_id == again.config.radar_token_id
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert generate_answers(again, its_processor, prompts) == expected
    pipe = pipeline("image-text-to-text", model=again, processor=its_processor)
    said = pipe(text=prompts[0], max_new_tokens=8, return_full_text=False)
    assert said[0]["generated_text"].startswith("a dog")


def test_every_way_of_giving_it_makes_the_same_inputs(tmp_path):
    processor = make(audio=False)
    np.save(tmp_path / "drive.npy", echoes(0.5))
    parts = [
        radar_part(0.5),
        {"type": "radar", "path": str(tmp_path / "drive.npy")},
        {"type": "radar", "radar": echoes(0.5).tolist()},
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    rows = [processor.apply_chat_template(prompt(part), **options) for part in parts]
    text = f"<|user|><|radar|>{QUESTION['text']}<|end|><|assistant|>"
    assert processor.apply_chat_template(prompt(parts[1]), add_generation_prompt=True) == text
    rows.append(processor(text=text, radars=echoes(0.5), return_tensors="pt"))
    rows.append(
        processor.apply_chat_template(
            prompt({"type": "radar"}), processor_kwargs={"radars": [[echoes(0.5)]]}, **options
        )
    )
    for row in rows:
        assert set(row) == {"input_ids", "attention_mask", "echoes", "echo_mask"}
        assert all(torch.equal(row[name], rows[0][name]) for name in row)
    assert set(row) <= set(processor.model_input_names)
    with pytest.raises(ValueError, match=r"Row 0: the number of <\|radar\|> tokens .* has 1 and 2 were given"):
        processor(text="<|radar|>", radars=[[echoes(0.5)] * 2])


def test_columns_and_marked_placeholders_are_as_for_media():
    """TRL's columns, a `datasets` dataset, and a control token in a text, which is text."""
    processor = make(audio=False)
    column = {"prompt": QUESTION["text"], "completion": "a cat", "radars": [echoes(0.8).tolist()]}
    expected = encode_conversation(processor, answered(0.8)["messages"])
    for sample in (column, Dataset.from_list([column])[0], {**column, "radars": [echoes(0.8)]}):
        row = encode_conversation(processor, ChatDataset([sample])[0])
        assert all(torch.equal(row[name], expected[name]) for name in expected)
    written = processor.apply_chat_template([{"role": "user", "content": "<|radar|>"}], tokenize=True)
    assert processor.radar_token_id not in written[0]


def test_a_model_and_a_processor_that_are_there_already_take_it_and_forget_nothing():
    unregister_modality("radar")
    processor = make(audio=False)
    fields = {"tokenizer": processor, "cross_attention_layers": [1, 3]}
    text, vision = gpt2(vocab_size=len(processor.tokenizer), n_positions=128), vit(image_size=8, patch_size=4)
    model = open_gates(MMForConditionalGeneration.from_text_vision_audio_pretrained(text, vision, **fields))
    seen = processor(text="<|image|>hello", images=picture(), return_tensors="pt")
    with torch.no_grad():
        before = model(**seen).logits
    with radar_registered():
        with torch.no_grad():
            assert torch.equal(model(**seen).logits, before)
        with pytest.raises(ValueError, match=r"given radars, but it has no encoder for them \(radar_config is None\)"):
            model(input_ids=torch.tensor([[5]]), echoes=torch.zeros(1, 1, 2, SENSORS))
        encoder = seeded(lambda: RadarEncoder(RadarConfig()))
        both = model.add_modality("radar", encoder, freeze_encoder=False)
        assert model.config.radar_config is None and "radar_config" not in model.config.to_dict()
        learns = {name.split(".")[1] for name, each in both.named_parameters() if each.requires_grad}
        assert learns == {"radar_tower", "radar_connector", "language_model"}
        assert not both.config.freeze_radar and both.config.freeze_vision and both.config.freeze_text
        frozen = model.add_modality("radar", encoder)
        assert not any(each.requires_grad for each in frozen.model.radar_tower.parameters())
        row = encode_conversation(processor, answered(0.8)["messages"])
        row = {name: tensor[None] for name, tensor in row.items()}
        assert processor.radar_token_id == both.config.radar_token_id
        both.train()(**row).loss.backward()
        both.model.language_model.radar_cross_blocks["0"].cross_attn.c_proj.weight.data.add_(0.1)
        both.eval()
        with torch.no_grad():
            assert difference(both(**seen).logits[..., : before.shape[-1]], before) < 1e-6


def test_its_states_are_cached_by_file(tmp_path):
    processor = make(audio=False)
    model = joint_model(processor, freeze_radar=True, freeze_vision=True)
    np.save(tmp_path / "near.npy", echoes(0.8))
    np.save(tmp_path / "far.npy", echoes(-0.8, steps=3))
    samples = []
    for name, word in (("near", "a cat"), ("far", "a dog")):
        messages = [*prompt({"type": "radar", "path": f"{name}.npy"}), {"role": "assistant", "content": word}]
        samples.append({"messages": messages, "id": name})
    rows = ChatDataset(samples, tmp_path)
    cache = EncoderCache(tmp_path / "cache", model, processor)
    cache.fill(rows, progress=False)
    assert [len(cache.states(rows[number].messages[0]["content"][0])[0]) for number in range(2)] == [5, 3]
    cached, raw = CachedCollator(processor, cache)(list(rows)), ChatCollator(processor)(list(rows))
    assert "radar_states" in cached and "echoes" not in cached
    with torch.no_grad():
        assert difference(model(**cached).logits, model(**raw).logits) < 5e-2  # states are kept in float16
        assert difference(model(**cached).loss, model(**raw).loss) < 1e-3


def test_its_files_are_checked_and_kept_apart_when_chats_are_cleaned(tmp_path):
    np.save(tmp_path / "near.npy", echoes(0.8))
    np.save(tmp_path / "again.npy", echoes(0.8))
    np.save(tmp_path / "far.npy", echoes(-0.8))
    (tmp_path / "broken.npy").write_bytes(b"neither image nor audio")
    names = ("near", "again", "far", "broken", "missing")
    samples = [
        {"messages": [*prompt({"type": "radar", "path": f"{name}.npy"}), {"role": "assistant", "content": "a cat"}]}
        for name in names
    ]
    kept, report = clean(samples, tmp_path, check_wording=False, progress=False)
    paths = [row.messages[0]["content"][0]["path"] for row in kept]
    assert paths == [str(tmp_path / f"{name}.npy") for name in ("near", "far")]
    assert report.counts == {"duplicate": 1, "unreadable": 1, "missing": 1}


def test_its_parts_have_learning_rates_and_its_connector_is_trained_beside_adapters(tmp_path):
    model = joint_model(make(audio=False))
    parts = {part: {name for name, _ in named} for part, named in parts_of(model).items()}
    assert parts["radar"] == {"model.radar_tower.linear.weight", "model.radar_tower.linear.bias"}
    assert {name.split(".")[1] for name in parts["connectors"]} == {"vision_connector", "radar_connector"}
    assert tuple(parts) == ("text", "cross_attention", "connectors", "vision", "audio", "radar")
    rates = MMTrainingArguments(str(tmp_path), use_cpu=True, encoder_learning_rate=0.25, learning_rate=0.5)
    assert {part: rates.rate_of(part) for part in parts} == {
        **dict.fromkeys(parts, 0.5), "vision": 0.25, "audio": 0.25, "radar": 0.25,
    }  # fmt: skip
    adapted = add_lora(model, {"adapt": ["text"], "train": ["connectors"]})
    assert "model.radar_connector" in adapted.peft_config["default"].modules_to_save


def test_frames_may_be_the_last_axis_of_an_item():
    """An encoder that reads (N, sensors, T) sees recordings of one length at a time, too."""
    modality = Modality("sonar", dimensions=(2,), frame_axes=(3,))
    register_modality(modality)

    class SonarEncoder(RadarEncoder):
        main_input_name = "sonar_values"

        def forward(self, sonar_values: torch.Tensor, return_dict: bool | None = None) -> BaseModelOutput:
            states = self.linear(sonar_values.transpose(1, 2)).tanh()
            return BaseModelOutput(last_hidden_state=states + states.mean(1, keepdim=True))

    try:
        encoder = seeded(lambda: SonarEncoder(RadarConfig()))
        items, mask = torch.randn(2, SENSORS, 5), torch.ones(2, 5, dtype=torch.bool)
        mask[1, 3:] = False
        _, tokens, real = encode(encoder, items, mask)
        assert real.tolist() == mask.tolist()
        alone = encode(encoder, items[1:, :, :3])[1]
        assert difference(tokens[1:, :3], alone) < 1e-6
    finally:
        unregister_modality("sonar")


def test_it_is_a_side_of_retrieval():
    processor = make(audio=False)
    model = joint_model(processor, cls=MMForRetrieval)
    inputs = processor(text=["a cat", "a dog"], padding=True, return_tensors="pt")
    media = processor(radars=[[echoes(0.8)], [echoes(-0.8)]], return_tensors="pt")
    media = {name: media[name] for name in ("echoes", "echo_mask")}
    loss = model(**inputs, **media, return_loss=True).loss
    loss.backward()
    assert model.model.radar_connector.projector.linear.weight.grad.abs().sum() > 0
    assert model.embed(**media).shape == (2, 32)


def test_what_it_adds_to_an_answer_is_told_and_a_map_is_refused():
    processor = make(audio=False)
    model = joint_model(processor)
    model.set_attn_implementation("eager")
    answer = {"answer_ids": ids(processor, "a cat")}
    target = make_target(model, processor, prompt(radar_part(0.8)), **answer)
    found = modality_contributions(target)
    assert set(found.values) == {"radar", "text"}
    torch.testing.assert_close(sum(found.values.values()), found.full - found.base)
    for method in ("attention", "occlusion"):
        with pytest.raises(ValueError, match=r"neither an image nor audio.*modality_contributions"):
            explain(model, processor, prompt(radar_part(0.8)), method=method, **answer)


def test_a_folder_names_the_modality_that_is_missing(tmp_path):
    processor = make(audio=False)
    model = joint_model(processor)
    model.save_pretrained(tmp_path)
    without = MMConfig.from_text_vision_audio_configs(copy.deepcopy(model.config.text_config))
    without.save_pretrained(tmp_path / "text")
    assert not any("radar" in name for name in json.loads((tmp_path / "text/config.json").read_text()))
    unregister_modality("radar")
    with pytest.raises(ValueError, match=r"radar_config is the config of an encoder whose modality is not registered"):
        AutoConfig.from_pretrained(tmp_path)
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "text"), "radar_config")
