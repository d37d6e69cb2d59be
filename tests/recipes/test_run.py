"""From a recipe to a trained folder: it learns, stops, keeps the best, goes on exactly, and refuses what it must."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
    GenerationConfig,
    TrainerCallback,
)

from modeling_mm import MMForConditionalGeneration, MMForPreTraining, MMForRetrieval
from modeling_mm.data import ChatDataset, load_chats
from modeling_mm.recipes import (
    RECIPE_FILE,
    Alignment,
    DataSource,
    RecipeData,
    load_data,
    make_collator,
    make_model,
    make_processor,
    mixture,
    report,
    run,
    search,
    to_yaml,
)
from modeling_mm.training import ModalityDropout, TimerCallback, part_of
from tests.fakes.recipe_runs import SAMPLE, recipe
from tests.fakes.tiny import difference
from tests.test_readme import save_parts

running = importlib.import_module("modeling_mm.recipes.run")  # the face has the function of this name


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def state_of(folder) -> dict[str, torch.Tensor]:
    """Under the names of the model: files have the names of published checkpoints for some encoders."""
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


# ---- What a run leaves ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    test_set = [{"source": SAMPLE, "split": "new_pairs", "limit": 3}]
    values = {"data.test": {"new pairs": test_set}, "card.summary": "Knows nothing.", "card.languages": ["en"]}
    options = {"predict_with_generate": True, "generation_max_new_tokens": 3, "report_to": "tensorboard"}
    found = recipe(folder, values, **options)
    return folder, found, run(found)


def test_the_folder_goes_to_the_hub_as_it_is(trained):
    folder, _, _ = trained
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "processor_config.json"} <= names
    assert {"modeling_mm.py", "processing_mm.py", "README.md", "recipe.yaml", "run.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    prompt = load_chats(SAMPLE, "new_pairs")[0].prompt
    inputs = processor.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_the_result_is_told_three_times_alike(trained, capsys):
    folder, found, result = trained
    assert json.loads((folder / "run.json").read_text()) == result
    assert set(result["figures"]) == {"new pairs"}
    figures = result["figures"]["new pairs"]
    assert set(figures) == {"samples", "loss", "exact_match", "image and audio_exact_match"}
    assert (figures["samples"], result["steps"], result["processes"]) == (3, 4, 1)
    report(result, found)
    assert f"{figures['loss']:.4f}" in capsys.readouterr().out
    assert f"| new pairs | all | 3 | {figures['loss']:.3f} |" in (folder / "README.md").read_text()


def test_tensorboard_has_the_curves(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((trained[0] / "runs").iterdir())))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/loss")] == [2, 4]
    assert "train/learning_rate" not in events.Tags()["scalars"]  # 4 steps are fewer than the 10 between two logs


def test_it_learns(tmp_path):
    found = recipe(tmp_path / "a", max_steps=30, eval_steps=15, learning_rate=4e-3, per_device_train_batch_size=12)
    first = run(recipe(tmp_path / "b", max_steps=1, eval_steps=1))["figures"]["evaluation"]["loss"]
    assert run(found)["figures"]["evaluation"]["loss"] < 0.5 * first


# ---- Going on, refusing, starting anew ------------------------------------------------------------------------------


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run that was stopped after 3 of its 4 steps, one after its checkpoint; and its recipe."""
    found = recipe(tmp_path / "mine", {"frozen": {"vision": 1, "audio": 3}, "early_stopping": {"patience": 9}})
    with monkeypatch.context() as patch:
        callbacks = running.make_callbacks
        patch.setattr(running, "make_callbacks", lambda recipe: [*callbacks(recipe), Interrupt()])
        with pytest.raises(KeyboardInterrupt):
            run(found)
    return found


def test_a_run_that_goes_on_ends_with_the_same_weights(interrupted, tmp_path):
    assert not (tmp_path / "mine" / "run.json").exists()
    result = run(interrupted)
    whole = run(replace(interrupted, training=interrupted.training | {"output_dir": str(tmp_path / "whole")}))
    assert result["figures"] == whole["figures"]
    ours, theirs = weights(tmp_path / "mine"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert max(difference(ours[name], theirs[name]) for name in ours) == 0.0


def test_a_finished_run_is_left_alone_unless_it_is_to_be_overwritten(tmp_path):
    found = recipe(tmp_path / "mine", max_steps=2)
    first = run(found)
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"holds a finished run. Set overwrite=true"):
        run(found)
    again = run(replace(found, overwrite=True, training=found.training | {"max_steps": 1, "eval_steps": 1}))
    assert (first["steps"], again["steps"]) == (2, 1)
    assert not (tmp_path / "mine" / "checkpoint-2").exists()
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"


def test_another_recipe_does_not_go_on_with_a_run(interrupted):
    changed = replace(interrupted, frozen={"vision": 1}, training=interrupted.training | {"learning_rate": 1.0})
    with pytest.raises(ValueError, match=r"differs in frozen.audio, training.learning_rate\. To resume"):
        run(changed)
    longer = replace(interrupted, training=interrupted.training | {"max_steps": 6})
    assert run(longer)["steps"] == 6


def test_what_may_change_when_a_run_goes_on():
    before = {"model": {"text": "a"}, "training": {"max_steps": 3, "seed": 1}}
    assert running.changed_keys(before, {"model": {"text": "a"}, "training": {"max_steps": 9, "seed": 1}}) == []
    assert running.changed_keys(before, {"model": {"text": "b"}, "training": {"seed": 2}, "lora": {}}) == [
        *("model.text", "training.seed", "lora"),
    ]


def test_a_model_that_no_run_has_written_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds config.json, but no run"):
        run(recipe(tmp_path))


def test_the_stopwatch_counts_the_time_before_an_interruption():
    watch = TimerCallback.from_state(TimerCallback(100.0).state())
    watch.on_train_begin(None, None, None)
    assert 100.0 < watch.seconds < 101.0
    watch.on_train_end(None, None, None)
    assert watch.seconds == watch.seconds > 100.0


# ---- Stopping early, keeping the best -------------------------------------------------------------------------------


def test_it_stops_when_evaluation_gets_no_better(tmp_path):
    options = {"max_steps": 9, "eval_steps": 1, "learning_rate": 0.0}
    assert run(recipe(tmp_path / "a", {"early_stopping": {"patience": 2}}, **options))["steps"] == 3
    assert run(recipe(tmp_path / "b", **options))["steps"] == 9


def test_the_best_state_is_kept_of_every_part(tmp_path):
    """With a learning rate so high that each step makes it worse, the best is the first that was evaluated."""
    found = recipe(tmp_path / "best", max_steps=3, eval_steps=1, learning_rate=0.3, save_total_limit=3)
    result = run(found)
    states = [state_of(tmp_path / "best" / f"checkpoint-{step}") for step in (1, 3)]
    kept = state_of(tmp_path / "best")
    assert max(difference(kept[name], states[0][name]) for name in kept) == 0.0
    moved = {part_of(name) for name in kept if difference(states[0][name], states[1][name]) > 1e-3}
    assert moved == {"text", "cross_attention", "connectors", "vision", "audio"}
    assert result["best"] == pytest.approx(result["figures"]["evaluation"]["loss"], abs=1e-6)


def test_no_state_is_called_the_best_where_the_last_is_kept(tmp_path):
    result = run(recipe(tmp_path, max_steps=2, eval_steps=1, load_best_model_at_end=False))
    assert result["best"] is None and "best state" not in (tmp_path / "README.md").read_text(encoding="utf-8")


# ---- Models ---------------------------------------------------------------------------------------------------------


def trained_parts(found) -> set[str]:
    """The parts that differ from what they were."""
    start = make_model(replace(found, lora=None), make_processor(found.model), 42).state_dict()
    end = state_of(found.training["output_dir"])
    return {part_of(name) for name in end if difference(start[name], end[name]) > 0.0}


def test_frozen_parts_stay_as_they_were_until_they_thaw(tmp_path):
    frozen = {"text": "always", "audio": 3, "vision": 4}
    found = recipe(tmp_path, {"frozen": frozen, "data.evaluation": []}, eval_strategy="no", save_strategy="no")
    run(found)
    assert trained_parts(found) == {"cross_attention", "connectors", "audio"}  # vision would begin with the fifth step


def test_a_part_that_is_not_there_cannot_be_frozen(tmp_path):
    parts = save_parts(tmp_path)
    model = {"text": parts["openai-community/gpt2"], "vision": parts["google/vit-base-patch16-224"]}
    found = recipe(tmp_path, {"model": model, "frozen": {"audio": "always"}})
    with pytest.raises(ValueError, match=r"frozen.audio: the model has no such part. It has text, cross_attention"):
        make_model(found, make_processor(found.model), 0)


def test_pretrained_parts_are_joined_and_the_joint_model_is_gone_on_with(tmp_path):
    parts = save_parts(tmp_path / "parts")
    model = dict(zip(("text", "vision", "audio"), parts.values(), strict=True))
    model["config"] = {"cross_attention_interval": 2, "vision_connector": "linear"}
    found = recipe(tmp_path / "one", {"model": model}, max_steps=1, eval_steps=1)
    run(found)
    joined = AutoModelForImageTextToText.from_pretrained(tmp_path / "one")
    assert joined.config.vision_connector == "linear"
    assert joined.config.cross_attention_layers == [1, 3]
    further = recipe(tmp_path / "two", {"model": {"pretrained": str(tmp_path / "one")}})
    start = make_model(further, make_processor(further.model), 0).state_dict()
    assert max(difference(start[name], tensor) for name, tensor in joined.state_dict().items()) == 0.0


def test_a_preset_gets_the_processors_tokens_and_its_answers_end(tmp_path):
    found = recipe(tmp_path, {"model.config": {"text_config": {"n_layer": 3}}, "model.dtype": "bfloat16"})
    processor = make_processor(found.model)
    model = make_model(found, processor, 0)
    assert model.config.image_token_id == processor.image_token_id
    assert model.config.end_token_id in model.generation_config.eos_token_id
    assert (model.config.text_config.n_layer, model.dtype) == (3, torch.bfloat16)
    again, other = (make_model(found, processor, seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    assert not all(torch.equal(other[name], tensor) for name, tensor in model.state_dict().items())


def test_a_changed_field_of_a_pretrained_model_is_no_generation_setting(tmp_path):
    first = recipe(tmp_path)
    model = make_model(first, make_processor(first.model), 0)
    model.generation_config = GenerationConfig(max_new_tokens=5, eos_token_id=model.config.end_token_id)
    model.save_pretrained(tmp_path / "one")
    make_processor(first.model).save_pretrained(tmp_path / "one")
    section = {"pretrained": str(tmp_path / "one"), "config": {"connector_dropout": 0.25}}
    further = recipe(tmp_path / "two", {"model": section})
    changed = make_model(further, make_processor(further.model), 0)
    assert changed.config.connector_dropout == 0.25 != model.config.connector_dropout
    assert "connector_dropout" not in changed.generation_config.to_dict()


def test_attention_is_the_recipes(tmp_path):
    found = recipe(tmp_path, {"model.attn_implementation": "eager"})
    model = make_model(found, make_processor(found.model), 0)
    assert model.model.language_model.config._attn_implementation == "eager"


def test_lora_trains_adapters_and_leaves_a_whole_model(tmp_path):
    from peft import PeftModel

    options = {"adapt": ["text", "cross_attention"], "r": 2}
    found = recipe(tmp_path / "mine", {"lora": options}, learning_rate=1e-2)
    run(found)
    assert trained_parts(found) == {"text", "cross_attention", "connectors"}
    base = make_model(replace(found, lora=None), make_processor(found.model), 42)
    adapted = PeftModel.from_pretrained(base, tmp_path / "mine" / "adapter").merge_and_unload().state_dict()
    merged = state_of(tmp_path / "mine")
    assert max(difference(merged[name], adapted[name]) for name in merged) <= 1e-6
    small = sum(tensor.numel() for tensor in load_file(tmp_path / "mine/adapter/adapter_model.safetensors").values())
    assert small < 0.2 * sum(tensor.numel() for tensor in merged.values())


def test_classification_learns_which_label_the_answer_is(tmp_path):
    kinds = {"cat": "animal", "dog": "animal", "bus": "vehicle", "train": "vehicle"}
    lines = [json.dumps({"prompt": name, "completion": kind}) for name, kind in kinds.items()]
    (tmp_path / "kinds.jsonl").write_text("\n".join(lines))
    source = [{"source": str(tmp_path / "kinds.jsonl")}]
    labels = {"objective": "classification", "labels": ["vehicle", "animal"]}
    values = {"data.train": source, "data.evaluation": source, **labels}
    options = {"max_steps": 16, "eval_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 4e-3}
    result = run(recipe(tmp_path / "out", values, **options))
    assert result["figures"]["evaluation"]["accuracy"] == 1.0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "vehicle", 1: "animal"}
    assert "model.config.id2label" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"expected an answer among the labels vehicle; got 'animal'"):
        run(recipe(tmp_path / "bad", {**values, "labels": ["vehicle"]}))


def test_a_label_that_no_example_has_is_refused_before_training(tmp_path):
    lines = [json.dumps({"prompt": str(i), "completion": ("yes", "no")[i % 2]}) for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = [{"source": str(tmp_path / "a.jsonl")}]
    values = {"objective": "classification", "labels": ["yes", "no", "maybe", "never"], "data.evaluation": source}
    with pytest.raises(ValueError, match=r"no example of data.train has the answer 'maybe' or 'never'.*'yes' \(2\)"):
        load_data(recipe(tmp_path / "out", {**values, "data.train": source}))
    few = {"data.train": [{**source[0], "per_answer": 1}], "labels": ["no", "yes"]}
    assert len(load_data(recipe(tmp_path / "out", {**values, **few})).train[0]) == 2


# ---- Data -----------------------------------------------------------------------------------------------------------


def chats(*answers: str) -> ChatDataset:
    return ChatDataset([{"prompt": "?", "completion": answer} for answer in answers])


def test_sources_are_mixed_by_weights_or_else_by_their_sizes():
    two = [chats(*"aaa"), chats(*"b")]
    weighted = mixture([DataSource("a", weight=1), DataSource("b", weight=3)], two, 0)
    assert sorted(row.answer for row in weighted) == ["a", "b", "b", "b"]
    assert sorted(row.answer for row in mixture([DataSource("a"), DataSource("b")], two, 0)) == ["a", "a", "a", "b"]
    assert mixture([DataSource("a", weight=9)], two[:1], 0) is two[0]
    with pytest.raises(ValueError, match="Give every source one, or none to mix by size"):
        mixture([DataSource("a", weight=1), DataSource("b")], two, 0)
    with pytest.raises(ValueError, match="streams have no known size"):
        mixture([DataSource("a", streaming=True), DataSource("b", streaming=True)], two, 0)


def test_few_examples_of_each_answer_are_drawn_by_the_seed(tmp_path):
    lines = [json.dumps({"prompt": str(i), "completion": ("yes", "no")[i % 2]}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    values = {"data.train": [{"source": str(tmp_path / "a.jsonl"), "per_answer": 2}], "data.evaluation": []}
    drawn = []
    for seed in (1, 1, 2):
        data = load_data(recipe(tmp_path / "out", values, eval_strategy="no", seed=seed))
        assert sorted(row.answer for row in data.train[0]) == ["no", "no", "yes", "yes"]
        drawn.append([row.messages for row in data.train[0]])
    assert drawn[0] == drawn[1] != drawn[2]


def test_evaluation_takes_all_of_its_sources(tmp_path):
    source = {"source": SAMPLE, "limit": 2}
    data = load_data(recipe(tmp_path, {"data.evaluation": [source, {**source, "split": "new_pairs"}]}))
    assert (len(data.evaluation), data.evaluation[3].task, data.test) == (4, "image and audio", {})


def test_cleaning_leaves_out_and_lists(tmp_path, capsys):
    lines = [json.dumps({"prompt": "?", "completion": text}) for text in ("yes", "yes", "no", "")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    values = {"data.train": [{"source": str(tmp_path / "a.jsonl")}], "data.evaluation": []}
    found = recipe(tmp_path / "out", {**values, "data.clean": True}, eval_strategy="no")
    assert [row.answer for row in load_data(found).train[0]] == ["yes", "no"]
    report = json.loads((tmp_path / "out" / "cleaning" / "train-0" / "cleaning.json").read_text())
    assert report["counts"] == {"duplicate": 1, "no answer": 1}
    assert "2 examples kept, 2 left out" in capsys.readouterr().out
    assert len(load_data(replace(found, data=replace(found.data, clean=False))).train[0]) == 4


def test_augmentation_and_dropout_reach_training_and_no_measurement(tmp_path):
    values = {"data.augmentation.image.color": 0.9, "data.modality_dropout.image": 1.0}
    found = recipe(tmp_path, {**values, "data.modality_dropout.unchanged_tasks": []})
    processor = make_processor(found.model)
    collate = make_collator(found, processor, RecipeData([], None, {}), None)
    plain = collate.for_evaluation()
    pairs = list(load_chats(SAMPLE, "new_pairs", limit=2))
    pictures = [row for row in load_chats(SAMPLE) if row.task == "image/name"][:2]
    assert "pixel_values" not in collate(pairs) and "pixel_values" in plain(pairs)
    assert difference(collate(pictures)["pixel_values"], plain(pictures)["pixel_values"]) > 0.1
    assert collate.modality_dropout == ModalityDropout(image=1.0, unchanged_tasks=())


@pytest.mark.parametrize("objective", ["causal_lm", "pretraining", "retrieval", "classification"])
def test_the_decoders_positions_limit_a_sample(tmp_path, objective):
    answers = sorted({row.answer for row in load_chats(SAMPLE, "train", limit=12)})
    values = {"objective": objective, **({"labels": answers} if objective == "classification" else {})}
    config = {"text_config": {"n_positions": 1}, "text_position_encoding": "learned"}
    for cached in (None, str(tmp_path / "cache")):
        frozen = {"frozen": {"vision": "always", "audio": "always"}, "data.encoder_cache": cached}
        found = recipe(tmp_path, {**values, **frozen, "model.config": config})
        data, processor = load_data(found), make_processor(found.model)
        collate = make_collator(found, processor, data, make_model(found, processor, 0))
        with pytest.raises(ValueError, match=r"^Row 0, sample .*: \d+ text tokens, but the decoder has 1 positions"):
            collate([data.train[0][0]])
    free = recipe(tmp_path, {**values, "model.config": {**config, "text_position_encoding": "sinusoidal"}})
    make_collator(free, processor, data, make_model(free, processor, 0))([data.train[0][0]])


def test_the_encoder_cache_gives_the_same_figures(tmp_path):
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    frozen = {"frozen": {"vision": "always", "audio": "always"}, "model.config": {"text_config": no_dropout}}
    options = {"max_steps": 2, "predict_with_generate": True, "generation_max_new_tokens": 2}
    plain = run(recipe(tmp_path / "a", frozen, **options))
    cached = run(recipe(tmp_path / "b", {**frozen, "data.encoder_cache": str(tmp_path / "cache")}, **options))
    assert len(list((tmp_path / "cache").glob("*/states.bin"))) == 2
    one, other = plain["figures"]["evaluation"], cached["figures"]["evaluation"]
    assert one.keys() == other.keys()
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)  # the cache holds float16
    with pytest.raises(ValueError, match="encoder is not frozen"):
        run(recipe(tmp_path / "c", {"data.encoder_cache": str(tmp_path / "cache")}, **options))


def test_a_classification_from_the_encoder_cache_gives_the_same_figures(tmp_path):
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    answers = sorted({row.answer for row in load_chats(SAMPLE, "train", limit=12)})
    values = {"frozen": {"vision": "always", "audio": "always"}, "model.config": {"text_config": no_dropout}}
    values |= {"objective": "classification", "labels": answers}
    options = {"max_steps": 2, "predict_with_generate": False}
    plain = run(recipe(tmp_path / "a", values, **options))["figures"]["evaluation"]
    cached = run(recipe(tmp_path / "b", {**values, "data.encoder_cache": str(tmp_path / "cache")}, **options))
    assert len(list((tmp_path / "cache").glob("*/states.bin"))) == 2
    assert plain.keys() == cached["figures"]["evaluation"].keys() >= {"loss", "accuracy"}
    assert plain["loss"] == pytest.approx(cached["figures"]["evaluation"]["loss"], abs=1e-3)


# ---- Alignment ------------------------------------------------------------------------------------------------------


def write_chats(folder: Path, task: str) -> str:
    """Write the sample's first questions of a task as a file of chats."""
    lines = [line for line in (Path(SAMPLE) / "train.jsonl").read_text().splitlines() if f'"task": "{task}"' in line]
    path = folder / f"{task.replace('/', '-')}.jsonl"
    path.write_text("\n".join(lines[:6]).replace('"path": "', f'"path": "{SAMPLE}/'))
    return str(path)


@pytest.mark.parametrize("cached", [False, True], ids=["raw", "cached"])
def test_connectors_are_aligned_before_training_begins(tmp_path, capsys, cached):
    tasks = {"images": "image/name", "audio": "audio/words"}
    sources = {name: [{"source": write_chats(tmp_path, task)}] for name, task in tasks.items()}
    values = {"alignment": {"steps": 3, "image_batch_size": 4, "audio_batch_size": 4, **sources}}
    values |= {"frozen": {"vision": "always", "audio": "always"}}
    values |= {"data.encoder_cache": str(tmp_path / "cache")} if cached else {}
    still = {"learning_rate": 0.0, "max_steps": 1, "weight_decay": 0.0}
    run(recipe(tmp_path / "plain", {"frozen": values["frozen"]}, **still))
    assert "aligned" not in capsys.readouterr().out
    run(recipe(tmp_path / "aligned", values, **still))
    assert "aligned: image_loss" in capsys.readouterr().out
    before, after = weights(tmp_path / "plain"), weights(tmp_path / "aligned")
    moved = {part_of(name) for name in before if difference(before[name], after[name]) > 0}
    assert moved == {"connectors", "text"}  # of the text the words alone, which the head shares
    assert not any(".h." in name and difference(before[name], after[name]) > 0 for name in before)


def test_a_run_that_goes_on_is_not_aligned_again(interrupted, monkeypatch):
    monkeypatch.setattr(running, "align_model", lambda *given: pytest.fail("aligned again"))
    section = Alignment(steps=1, images=[DataSource("a")])
    recipe_file = Path(interrupted.training["output_dir"]) / RECIPE_FILE
    recipe_file.write_text(to_yaml(replace(interrupted, alignment=section)))
    monkeypatch.setattr(running, "load_data", lambda found: load_data(replace(found, alignment=None)))
    run(replace(interrupted, alignment=section))


def test_what_a_recipe_cannot_say_is_prepared_before_alignment(tmp_path, monkeypatch):
    calls = []

    def prepare(trainer, data):
        assert isinstance(data, RecipeData) and trainer.state.global_step == 0
        calls.append(("prepared", trainer))
        trainer.train_dataset = chats("a cat", "a dog")

    monkeypatch.setattr(running, "align_model", lambda *given: calls.append(("aligned", given[-1])))
    sources = [{"source": write_chats(tmp_path, "image/name")}]
    run(recipe(tmp_path / "run", {"alignment": {"steps": 1, "images": sources}}, max_steps=1), prepare)
    (first, trainer), (second, same) = calls
    assert (first, second) == ("prepared", "aligned") and trainer is same
    assert len(trainer.train_dataset) == 2


def test_a_search_does_not_align(tmp_path):
    section = {"steps": 1, "images": [{"source": "a"}]}
    space = {"training.learning_rate": [1e-3, 1e-2]}
    with pytest.raises(ValueError, match=r"A search cannot align models.*model\.pretrained"):
        search(recipe(tmp_path, {"alignment": section, "search": {"space": space}}), 1)


# ---- Retrieval ------------------------------------------------------------------------------------------------------


def test_a_model_that_embeds_learns_the_same_from_the_encoder_cache(tmp_path):
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    values = {"objective": "retrieval", "frozen": {"vision": "always", "audio": "always"}}
    values |= {"model.config": {"projection_dim": 8, "text_config": no_dropout}}
    plain = run(recipe(tmp_path / "a", values))
    cached = run(recipe(tmp_path / "b", {**values, "data.encoder_cache": str(tmp_path / "cache")}))
    assert len(list((tmp_path / "cache").glob("*/states.bin"))) == 2
    one, other = plain["figures"]["evaluation"], cached["figures"]["evaluation"]
    assert one.keys() == other.keys() and "text_to_image_recall_at_1" in one
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)  # the cache holds float16
    before, after = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert max(difference(before[name], after[name]) for name in before) < 1e-3
    with pytest.raises(ValueError, match="encoder is not frozen"):
        values.pop("frozen")
        run(recipe(tmp_path / "c", {**values, "data.encoder_cache": str(tmp_path / "cache")}))


def test_a_recipe_trains_a_model_that_embeds(tmp_path):
    values = {
        "objective": "retrieval",
        "gradient_cache": 3,
        "model.config": {"projection_dim": 8, "matryoshka_dims": [4]},
    }
    found = recipe(tmp_path / "run", values)
    result = run(found)
    figures = result["figures"]["evaluation"]
    assert figures["samples"] == 12 and {"loss", "text_to_image_recall_at_1", "image_to_text_map"} <= set(figures)
    model, processor = AutoModel.from_pretrained(tmp_path / "run"), AutoProcessor.from_pretrained(tmp_path / "run")
    assert type(model) is MMForRetrieval and model.config.matryoshka_dims == [4]
    embeds = model.embed(**processor(text=["a dog", "a cat"], padding=True, return_tensors="pt"))
    assert embeds.shape == (2, 8)
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "model.embed(" in card and "generate" not in card.split("## Data")[0]
    assert "pipeline_tag: feature-extraction" in card and "- sentence-transformers\n" in card
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1]
    compile(code, "README.md", "exec")
    assert 'SentenceTransformer("run", trust_remote_code=True)' in code and 'model.encode(["image.png"])' in code


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"masking": {"tokens": 0.2}}, "masking: only `objective: pretraining` has one"),
        ({"objective": "pretraining", "gradient_cache": 4}, "only `objective: retrieval` has one"),
        ({"objective": "pretraining", "lora": {"r": 2}}, "lora: not with `objective: pretraining`"),
        ({"objective": "pretraining", "masking": {"tokens": 2}}, "must lie in"),
        ({"gradient_cache": 4}, "only `objective: retrieval` has one"),
        ({"objective": "retrieval", "lora": {"r": 2}}, "lora: not with `objective: retrieval`"),
        ({"objective": "retrieval", "labels": ["a", "b"]}, "belong together"),
    ],
)
def test_what_does_not_go_with_comparing_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        recipe(tmp_path, values)


# ---- Pre-training ---------------------------------------------------------------------------------------------------


def test_a_recipe_pretrains_a_model_that_every_head_starts_from(tmp_path):
    values = {"objective": "pretraining", "masking": {"tokens": 0.4, "modalities": 0.5}}
    values |= {"model.config": {"projection_dim": 8, "contrastive_weight": 2}}
    values |= {"frozen": {"vision": "always", "audio": "always"}, "data.encoder_cache": str(tmp_path / "cache")}
    result = run(recipe(tmp_path / "run", values))
    figures = result["figures"]["evaluation"]
    losses = {"causal_lm_loss", "masked_lm_loss", "matching_loss", "contrastive_loss"}
    assert losses | {"loss", "masked_lm_accuracy", "matching_accuracy", "text_to_image_recall_at_1"} <= set(figures)
    assert figures["loss"] == pytest.approx(sum(figures[n] for n in losses) + figures["contrastive_loss"], abs=1e-3)
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "run")
    assert type(model) is MMForPreTraining and model.config.contrastive_weight == 2
    generator = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    assert type(generator) is MMForConditionalGeneration
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    assert processor.tokenizer.convert_tokens_to_ids("<|end|>") in generator.generation_config.eos_token_id
    assert "AutoModelForImageTextToText" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
