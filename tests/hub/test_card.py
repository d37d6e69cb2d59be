"""The model card: every blank of the template is filled in from the recipe, the model and the figures."""

import importlib
import re
from dataclasses import replace

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from jinja2 import UndefinedError
from packaging.version import Version

from modeling_mm.evaluation import Figure
from modeling_mm.hub import (
    check_card,
    estimate,
    measured_digests,
    measured_on,
    render_card,
    weights_digest,
    write_card,
)
from modeling_mm.recipes import card_content, make_model, make_processor, read_recipe
from tests.fakes.hub_server import HubServer
from tests.fakes.recipe_runs import recipe

cards = importlib.import_module("modeling_mm.hub.card")
read_sections = importlib.import_module("modeling_mm.hub.check").read_sections

RESULT = {
    "figures": {
        "captions": {"samples": 20, "loss": 1.25, "cer": 0.5, "caption/en_cer": 0.25, "caption/fr_cer": 0.75},
        "sounds": {"samples": 4, "loss": 2.0, "cer": 1.0},
    },
    "seconds": 7300.0,
    "steps": 40,
    "epochs": 2.5,
    "best": 1.2,
    "processes": 2,
    "device": "a GPU",
    "versions": {"torch": "2.13"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    found = recipe(tmp_path_factory.mktemp("model"))
    return make_model(found, make_processor(found.model), 0)


def hub_recipe(folder, **values):
    """A recipe of parts and data on the Hub, for the card alone."""
    model = {"text": "openai-community/gpt2", "vision": "google/vit-base-patch16-224", "audio": "openai/whisper-tiny"}
    source = {"source": "someone/pictures", "subset": "en", "weight": 2, "note": "Pictures by someone, CC0."}
    other = {"source": str(folder), "weight": 1, "limit": 5}
    held_out = {"source": "someone/pictures", "split": "test"}
    test = {"captions": [held_out], "sounds": [held_out]}
    card = {"name": "Mine", "repo_id": "me/mine", "license": "mit", "languages": ["en", "no"], "limits": "Many."}
    frozen = {"vision": "always", "audio": 500}
    data = {"train": [source, other], "evaluation": [], "test": test}
    training = {"output_dir": str(folder / "out"), "use_cpu": True}
    plain = {"model": model, "data": data, "card": card, "frozen": frozen, "training": training}
    return recipe(folder, plain | values)


def whole_card(folder, model):
    return write_card(folder, card_content(hub_recipe(folder), model, RESULT))


def test_a_card_says_which_weights_its_figures_are_of(tmp_path, model):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    text = whole_card(tmp_path, model).read_text(encoding="utf-8")
    assert f"{measured_on(weights_digest(tmp_path))}\n\n## Limits" in text
    content = card_content(hub_recipe(tmp_path), model, RESULT)
    assert "SHA-256" not in render_card(content)  # of no folder
    others = write_card(tmp_path, replace(content, weights="0" * 64)).read_text(encoding="utf-8")
    assert measured_digests(others) == ["0" * 64]
    nothing = card_content(hub_recipe(tmp_path), model, RESULT | {"figures": {}})
    assert "SHA-256" not in write_card(tmp_path, nothing).read_text(encoding="utf-8")


def test_a_whole_card(tmp_path, model):
    path = whole_card(tmp_path, model)
    text, sections = path.read_text(), read_sections(path.read_text())
    assert path.name == "README.md" and not list(tmp_path.glob(".*"))
    assert "{{" not in text and "{%" not in text and "None" not in text
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "mit" and head["pipeline_tag"] == "image-text-to-text"
    assert head["base_model"] == ["openai-community/gpt2", "google/vit-base-patch16-224", "openai/whisper-tiny"]
    assert head["datasets"] == ["someone/pictures"]
    assert head["language"] == ["en", "no"]
    parts = dict(re.findall(r"^\| ([\w -]+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE))
    assert {name: parts[name] for name in parts if name != "part"} == {
        "decoder": "yes",
        "cross-attention": "yes",
        "connectors": "yes",
        "vision encoder": "no",
        "audio encoder": "from step 500",
    }
    assert "| decoder | `openai-community/gpt2` |" in text and "| connectors | new |" in text
    assert sections["Training"].startswith(
        "\n40 steps (2.5 epochs) in 2 h 02 min on a GPU by 2 processes; torch 2.13. The best state in evaluation was "
        "kept (1.2000). Carbon: about 643.4 g of CO2 equivalents (estimated, not measured: 2.03 h x 2 GPUs x 200 W x"
    )
    assert sections["Data"].strip().splitlines() == [
        "| used for | source | split | weight | at most |",
        "| --- | --- | --- | --- | --- |",
        "| training | `someone/pictures (en)` | train | 2 | all |",
        f"| training | `{tmp_path}` | train | 1 | 5 |",
        "| captions | `someone/pictures` | test |  | all |",
        "| sounds | `someone/pictures` | test |  | all |",
        "",
        "Pictures by someone, CC0.",
    ]
    assert text.endswith("## Limits\n\nMany.\n")
    assert sections["Use"].count('from_pretrained("me/mine", trust_remote_code=True)') == 2


def test_the_head_of_a_card_is_what_the_hub_reads(tmp_path, model):
    path = whole_card(tmp_path, model)
    data = ModelCard.load(path).data
    assert data.model_name == "Mine" and data.license_name is None
    found = [(r.dataset_name, r.dataset_config, r.metric_type, r.metric_value) for r in data.eval_results]
    assert found == [
        ("captions", None, "loss", 1.25),
        ("captions", None, "cer", 0.5),
        ("captions, caption/en", "caption/en", "cer", 0.25),
        ("captions, caption/fr", "caption/fr", "cer", 0.75),
        ("sounds", None, "loss", 2.0),
        ("sounds", None, "cer", 1.0),
    ]
    assert {result.task_type for result in data.eval_results} == {"image-text-to-text"}
    carbon = data.co2_eq_emissions
    assert carbon["emissions"] == pytest.approx(2 * 0.2 * 7300 / 3600 * 1.67 * 475, abs=0.1)
    assert carbon["training_type"] == "fine-tuning" and carbon["hardware_used"] == "a GPU"
    assert yaml.safe_load(data.to_yaml()) == yaml.safe_load(path.read_text().split("---")[1])


def test_figures_of_a_release_take_the_place_of_the_runs_own(tmp_path, model):
    names = {"task_types": {"transcribe": "automatic-speech-recognition"}, "metric_types": {"spoken_wer": "wer"}}
    figures = [
        Figure("unseen hand", "caption/en", "exact_match", 0.51239, 0.1, 0.2, 40),
        Figure("unseen hand", "transcribe/en", "spoken_wer", 0.3, 1.0, None, 9),
    ]
    write_card(tmp_path, replace(card_content(hub_recipe(tmp_path), model, RESULT), figures=figures, **names))
    first, second = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (first.dataset_type, first.dataset_config) == ("unseen-hand", "caption/en")
    assert (first.metric_type, first.metric_value, first.task_type) == ("exact_match", 0.5124, "image-text-to-text")
    assert (second.metric_type, second.metric_name) == ("wer", "spoken_wer")
    assert second.task_type == "automatic-speech-recognition"
    assert "| caption/en | exact_match | 0.512 | 0.100 | 0.200 | 40 |" in (tmp_path / "README.md").read_text()


def test_a_licence_without_a_short_name_says_where_it_is_told(tmp_path, model):
    found = hub_recipe(tmp_path, card={"license": "other", "name": "Mine", "repo_id": "me/mine"})
    data = cards.metadata(card_content(found, model, RESULT))
    assert data.license == "other" and data.license_name == "as-told-in-the-card"
    assert data.license_link == "https://huggingface.co/me/mine#limits"
    unplaced = hub_recipe(tmp_path, card={"license": "other", "name": "Mine", "languages": ["en"], "limits": "Many."})
    problems = check_card(write_card(tmp_path, card_content(unplaced, model, RESULT)))
    assert len(problems) == 1 and "`license: other` needs `license_link` too" in problems[0]


@pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2"), reason="older clients ask huggingface.co alone"
)
def test_the_hub_accepts_the_card(tmp_path, model, monkeypatch):
    """The Hub's own check of a card, asked through its client; what the check refuses is refused here too."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = whole_card(tmp_path, model)
    with HubServer() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        ModelCard.load(path).validate()
        path.write_text(path.read_text().replace("\nlicense: mit\n", "\nlicense: [mit]\n", 1))
        with pytest.raises(ValueError, match="must be a string"):
            ModelCard.load(path).validate()
        assert hub.count("POST /api/validate-yaml") == 2


def test_the_model_index_is_what_the_hub_reads(tmp_path, model):
    """From the client's own reading and back: one model, each result with its task, set, metric, name and number."""
    head = yaml.safe_load(whole_card(tmp_path, model).read_text().split("---")[1])
    (index,) = head["model-index"]
    name, results = model_index_to_eval_results(head["model-index"])
    assert name == index["name"] == "Mine" and len(results) == 6
    (again,) = eval_results_to_model_index(name, results)
    assert again == index
    for result in index["results"]:
        assert set(result["task"]) >= {"type"} and set(result["dataset"]) >= {"type", "name"}
        for metric in result["metrics"]:
            assert set(metric) >= {"type", "value", "name"} and isinstance(metric["value"], float)


def test_carbon_counts_cores_or_gpus():
    cores, half = estimate(3600, "cpu, 2 cores", 1), estimate(1800, "cpu, 2 cores", 2)
    assert cores.grams == pytest.approx(2 * 12 * 1.67 * 0.475) == 2 * half.grams  # processes share the cores
    one, two = estimate(3600, "NVIDIA H100 80GB HBM3", 1), estimate(3600, "NVIDIA H100 80GB HBM3", 2)
    assert one.grams == pytest.approx(700 * 1.67 * 0.475) and two.grams == 2 * one.grams
    assert str(two) == "1.1 kg of CO2 equivalents" and str(cores) == "19.0 g of CO2 equivalents"
    assert "2 CPU cores x 12 W" in cores.how and "not measured" in one.how


def test_the_recipe_in_the_card_can_be_followed(tmp_path, model):
    found = hub_recipe(tmp_path)
    text = render_card(card_content(found, model, RESULT))
    (tmp_path / "again.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert read_recipe(tmp_path / "again.yaml") == found


def test_figures_have_a_row_for_each_set_and_task(tmp_path, model):
    content = card_content(hub_recipe(tmp_path), model, RESULT)
    table = [
        "| set | task | samples | loss | cer |",
        "| --- | --- | --- | --- | --- |",
        "| captions | all | 20 | 1.250 | 0.500 |",
        "| captions | caption/en |  |  | 0.250 |",
        "| captions | caption/fr |  |  | 0.750 |",
        "| sounds | all | 4 | 2.000 | 1.000 |",
    ]
    assert read_sections(render_card(content))["Figures"].strip().splitlines() == table
    assert cards.metric_names(RESULT["figures"]) == ["loss", "cer"]
    assert "chosen by this set" in render_card(replace(content, has_test_sets=False))
    assert "None were measured" in render_card(replace(content, result={**RESULT, "figures": {}}))


def test_unknown_facts_are_left_out(tmp_path, model):
    result = {**RESULT, "best": None, "processes": 1, "figures": {}}
    text = render_card(card_content(recipe(tmp_path / "thing"), model, result))
    head = yaml.safe_load(text.split("---")[1])
    assert set(head) == {"library_name", "pipeline_tag", "tags", "co2_eq_emissions"}
    assert head["co2_eq_emissions"]["training_type"] == "pre-training"
    assert "# thing\n" in text and "| decoder | random |" in text
    assert "best state" not in text and "processes" not in text and "Not assessed beyond" in text


def test_lora_and_classification_are_told(tmp_path, model):
    content = card_content(recipe(tmp_path, {"lora": {"r": 4}}), model, RESULT)
    assert [(component.name, component.trained) for component in content.components] == [
        *(("decoder", "LoRA, r = 4"), ("cross-attention", "yes"), ("connectors", "yes")),
        *(("vision encoder", "no"), ("audio encoder", "no")),
    ]
    labels = recipe(tmp_path, {"objective": "classification", "labels": ["a", "b"]})
    text = render_card(card_content(labels, model, RESULT))
    assert "pipeline_tag: text-classification" in text and "AutoModelForSequenceClassification.from_pretrained" in text
    assert "model.generate" not in text


@pytest.mark.parametrize(
    ("modalities", "lines"),
    [
        ((), []),
        (("image",), ['    {"type": "image", "path": "image.png"},']),
        (("audio",), ['    {"type": "audio", "path": "audio.wav"},']),
    ],
)
def test_the_example_shows_what_the_model_takes(tmp_path, model, modalities, lines):
    content = card_content(recipe(tmp_path), model, RESULT)
    assert list(content.modalities) == ["image", "audio"]
    code = re.search(r"```python\n(.*?)```", render_card(replace(content, modalities=modalities)), re.DOTALL)[1]
    compile(code, "README.md", "exec")
    example = code[code.index("content = [") : code.index("]\n") + 1].splitlines()
    assert example == ["content = [", *lines, '    {"type": "text", "text": "What is this?"},', "]"]


def test_a_name_in_the_template_without_a_value_is_an_error(tmp_path, model):
    (tmp_path / "template.md").write_text("{{ sumary }}")
    with pytest.raises(UndefinedError, match="sumary"):
        render_card(card_content(recipe(tmp_path), model, RESULT), tmp_path / "template.md")


def test_numbers_as_text():
    assert [cards.short_number(count) for count in (12, 1234, 1_250_000, 7_000_000_000)] == [
        "12",
        "1.2k",
        "1.2M",
        "7.0B",
    ]
    assert [cards.duration(seconds) for seconds in (42, 150, 7500)] == ["42 s", "2 min", "2 h 05 min"]


def test_hub_ids_and_paths(tmp_path):
    sources = ["openai-community/gpt2", "gpt2", "gpt2", str(tmp_path), "./a", "a/b/c", "/a/b", "tests"]
    assert cards.hub_ids(sources) == ["openai-community/gpt2", "gpt2"]
