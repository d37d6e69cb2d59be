"""Recipes: every key and value is checked, in the file and on the command line; the shipped ones are right."""

from pathlib import Path

import pytest
from transformers import IntervalStrategy

from modeling_mm.recipes import Recipe, read_recipe, to_yaml
from modeling_mm.training import PARTS

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configuration" / "recipes").glob("*.yaml"))
SMALLEST = "model: {preset: p.json, processor: p}\ndata: {train: [{source: a.jsonl}]}\n"
EVALUATED = SMALLEST.replace("a.jsonl}]", "a.jsonl}], evaluation: [{source: b.jsonl}]")


def recipe(tmp_path, *overrides: str, text: str = SMALLEST) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_recipe(path, overrides)


# ---- The shipped recipes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_survives_being_written(path, tmp_path):
    found = read_recipe(path)
    (tmp_path / path.name).write_text(to_yaml(found))
    assert read_recipe(tmp_path / path.name) == found
    assert found.training["output_dir"].startswith("outputs/")


def test_every_kind_of_recipe_is_shipped():
    names = {path.stem for path in RECIPES}
    assert {"tiny-sample", "caption-gpt2-siglip", "transcribe-gpt2-whisper", "vqa-lora"} <= names
    assert {"retrieve-gpt2-siglip", "pretrain-gpt2-siglip", "few-labels-pretrain", "few-labels"} <= names


# ---- Unknown keys and wrong values ----------------------------------------------------------------------------------

REFUSED = {
    "trainning.max_steps=3": "trainning: unknown key 'trainning'. Did you mean 'training'?",
    "training.learing_rate=3": "training.learing_rate: unknown key 'learing_rate'. Did you mean 'learning_rate'?",
    "training.conector_learning_rate=3": "Did you mean 'connector_learning_rate'?",
    "learning_rate=1e-3": "learning_rate: unknown key 'learning_rate'. Did you mean 'training.learning_rate'?",
    "encoder_cach=x": "Did you mean 'data.encoder_cache'?",
    "model.txt=a": "model.txt: unknown key 'txt'. Did you mean 'text'?",
    "model.config.cross_attention_intervall=2": "Did you mean 'cross_attention_interval'?",
    "model.config.text_config.n_layr=2": "Did you mean 'n_layer'?",
    "data.train.0.sorce=x": "data.train.0.sorce: unknown key 'sorce'. Did you mean 'source'?",
    "data.augmentation.image.flipp=1": "data.augmentation.image.flipp: unknown key 'flipp'. Did you mean 'flip'?",
    "data.modality_dropout.imag=1": "Did you mean 'image'?",
    "frozen.visoin=always": "got \"visoin\". Did you mean 'vision'?",
    "lora.alfa=1": "Did you mean 'alpha'?",
    "qqq=1": "qqq: unknown key 'qqq'. Valid keys: alignment, card, data, ",
    "training.learning_rate=fast": 'training.learning_rate: expected a valid number, got "fast".',
    "training.max_steps=1.5": "training.max_steps: expected a valid integer, got 1.5.",
    "training.bf16=1": "training.bf16: expected a valid boolean, got 1.",
    "training.lr_scheduler_type=cosin": "got \"cosin\". Did you mean 'cosine'?",
    "training.metrics=bleu": 'training.metrics: expected a list, got "bleu".',
    "training.metrics=[1]": "training.metrics.0: expected a valid string, got 1.",
    "lora.r=many": 'lora.r: expected a valid integer, got "many".',
    "data.test=3": "data.test: expected a mapping, got 3.",
    "data.train=a.jsonl": 'data.train: expected a list, got "a.jsonl".',
    "data.train.1.source=x": "data.train: expected an index below 1, as it is a list, got '1'.",
    "frozen.vision=never": "frozen.vision: expected a valid integer or 'always', got \"never\".",
    "frozen.vision=-1": "frozen.vision: expected greater than or equal to 0 or 'always', got -1.",
    "model.config.vision_connector=3": "model.config.vision_connector: expected a valid string, got 3.",
    "model.config.freeze_vision=true": "write `frozen: {vision: always}` instead.",
    "objective=lm": "expected 'causal_lm', 'classification', 'retrieval' or 'pretraining', got \"lm\".",
    "model.pretrained=a": "expected `text` with encoders, `pretrained` or `preset`; got pretrained and",
    "model.preset=null": "got none of them",
    "model.processor=null": "`processor` is missing",
    "labels=[a]": "`labels` and `objective: classification` belong together",
    "early_stopping={}": "early_stopping: it needs evaluations",
    "training.load_best_model_at_end=true": "training.load_best_model_at_end: it needs evaluations",
    "data.train=[]": "`train` has no source",
    "data.train.0.weight=0": "data.train.0.weight: expected greater than 0, got 0.",
    "data.train.0.limit=0": "data.train.0.limit: expected greater than 0, got 0.",
    "data.evaluation=[{source: a, weight: 2}]": "`weight` in `evaluation` has no meaning",
    "data.evaluation=[{source: a, streaming: true}]": "`streaming` in `evaluation` has no meaning",
    "data.evaluation=[{source: a, per_answer: 2}]": "`per_answer` in `evaluation` has no meaning",
    "data.train=[{source: a, per_answer: 2, streaming: true}]": "`per_answer` counts all examples before training",
    "data.modality_dropout.image=2": "data.modality_dropout: `image` of ModalityDropout must lie in [0, 1], got 2",
    "data.audio_views=2": "`audio_views` must be above 1 if the `encoder_cache` keeps",
    "no equals sign": "'no equals sign': expected key=value",
    "training=[": "training: while parsing",
    "model.preset.deeper=1": "model.preset: 'p.json' is not a section and has no key 'deeper'.",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_is_wrong_is_refused_with_what_would_be_right(tmp_path, override):
    with pytest.raises(ValueError) as caught:
        recipe(tmp_path, override)
    assert REFUSED[override] in str(caught.value)


def test_the_file_is_checked_like_the_command_line(tmp_path):
    with pytest.raises(ValueError, match=r"training.learing_rate: unknown key 'learing_rate'. Did you mean"):
        recipe(tmp_path, text=SMALLEST + "training: {learing_rate: 1}\n")
    with pytest.raises(ValueError, match="Duplicate key 'training'"):
        recipe(tmp_path, text=SMALLEST + "training: {max_steps: 1}\ntraining: {seed: 1}\n")
    with pytest.raises(ValueError, match="The recipe: `data` is missing"):
        recipe(tmp_path, text="model: {pretrained: a}\n")
    with pytest.raises(FileNotFoundError, match=r"Recipes beside it: .*mine.yaml"):
        read_recipe(tmp_path / "yours.yaml")


CACHE = ("data.encoder_cache=c",)
ALIGNED = ("alignment={steps: 1, images: [{source: a}]}",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*CACHE, "frozen={vision: 5}"), "frozen.vision: it starts to learn at step 5"),
        (
            (*CACHE, "data.augmentation.image.crop=0.1"),
            "`augmentation.image`, and 1 otherwise, got 1",
        ),
        (
            (*CACHE, "data.augmentation.image={flip: 0.5, crop: 0.1}", "data.image_views=2"),
            "image.flip does not work",
        ),
        ((*CACHE, "data.augmentation.audio={mask_time_prob: 0.5}"), "augmentation.audio.mask_time_prob does not work"),
        ((*CACHE, "data.train.0.streaming=true"), "data: `encoder_cache` reads all examples before training"),
        ((*ALIGNED, "lora={}"), "alignment: it needs a whole model that generates. Leave out it or `lora`."),
        ((*ALIGNED, "objective=classification", "labels=[a, b]"), "Leave out it or `labels`."),
        (("alignment={steps: 1}",), "expected `images` or `audio`"),
        (("alignment={steps: 1, audio: [{source: a, weight: 2}]}",), "`weight` in `audio` has no meaning"),
        (("alignment={steps: 0, audio: [{source: a}]}",), "steps must be above 0, got 0"),
        (("alignment={steps: 1, images: [], image: []}",), "Did you mean 'images'?"),
        (("lora={}", "frozen={text: always}"), "Leave out `frozen`"),
        (("objective=classification", "labels=[a, a]"), "labels must be distinct"),
        (("data.clean=true", "data.train.0.streaming=true"), "`clean` reads all examples"),
        (("model={text: gpt2, config: {vision_config: {}}}",), "model.config.vision_config: for presets only"),
        (("model={vision: vit}",), "`pretrained` or `preset`; got vision."),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path, overrides, message):
    with pytest.raises(ValueError) as caught:
        recipe(tmp_path, *overrides)
    assert message in str(caught.value)


def test_metrics_of_scores_are_for_classifications(tmp_path):
    given = "task_metrics={speaker: [eer, auroc]}"
    found = recipe(tmp_path, "objective=classification", "labels=[a, b]", given)
    assert found.task_metrics == {"speaker": ["eer", "auroc"]}
    with pytest.raises(ValueError, match=r"Unknown metric 'eer'\. Did you mean"):
        recipe(tmp_path, given)


def test_views_of_an_augmentation_may_be_kept(tmp_path):
    found = recipe(tmp_path, *CACHE, "data.augmentation.image.crop=0.1", "data.image_views=3")
    assert (found.data.image_views, found.data.audio_views) == (3, 1)


# ---- Values ---------------------------------------------------------------------------------------------------------


def test_values_on_the_command_line_are_yaml_and_go_on_top(tmp_path):
    found = recipe(
        tmp_path,
        "training.learning_rate=1e-4",
        "training.max_steps=1e3",
        "training.metrics=[bleu, chrf]",
        "data.train.0.limit=5",
        "lora.r=4",
        "lora.adapt=[text]",
        "card.languages=[en, no]",
        "data.augmentation.audio.noise_decibels=[1, 2]",
    )
    assert found.training == {
        "output_dir": "outputs/mine",
        "learning_rate": 1e-4,
        "max_steps": 1000,
        "metrics": ["bleu", "chrf"],
    }
    assert found.data.train[0].limit == 5
    assert (found.lora.r, found.lora.alpha, found.lora.adapt) == (4, 16, ("text",))
    assert found.card.languages == ["en", "no"]
    assert found.data.augmentation.audio.noise_decibels == (1.0, 2.0)
    assert recipe(tmp_path, "lora=null", text=SMALLEST + "lora: {r: 2}\n").lora is None


def test_defaults_keep_the_best_where_there_is_evaluation(tmp_path):
    plain = recipe(tmp_path, "training.use_cpu=true").training_arguments()
    assert (plain.eval_strategy, plain.load_best_model_at_end, plain.report_to) == ("no", False, ["tensorboard"])
    assert (plain.logging_steps, plain.save_total_limit, plain.restore_callback_states_from_checkpoint) == (
        10,
        2,
        True,
    )
    best = recipe(tmp_path, "training={use_cpu: true, eval_strategy: steps, eval_steps: 7}", text=EVALUATED)
    arguments = best.training_arguments()
    assert (arguments.load_best_model_at_end, arguments.save_steps, arguments.metric_for_best_model) == (
        True,
        7,
        "loss",
    )
    assert arguments.save_strategy == IntervalStrategy.STEPS
    off = recipe(tmp_path, "training={use_cpu: true, eval_strategy: no}", text=EVALUATED).training_arguments()
    assert off.load_best_model_at_end is False
    mine = recipe(tmp_path, "training={use_cpu: true, report_to: none, logging_steps: 3}", text=EVALUATED)
    arguments = mine.training_arguments()
    assert (arguments.report_to, arguments.logging_steps, arguments.eval_strategy) == ([], 3, "epoch")


def test_what_is_written_leaves_out_defaults_and_overwrite(tmp_path):
    written = recipe(tmp_path, "overwrite=true", "lora={}", "frozen={}").to_dict()
    assert written == {
        "model": {"preset": "p.json", "processor": "p"},
        "data": {"train": [{"source": "a.jsonl"}]},
        "lora": {},
        "training": {"output_dir": "outputs/mine"},
    }


def test_parts_are_those_that_can_be_frozen(tmp_path):
    frozen = "{" + ", ".join(f"{part}: always" for part in PARTS) + "}"
    assert recipe(tmp_path, f"frozen={frozen}").frozen == dict.fromkeys(PARTS, "always")
