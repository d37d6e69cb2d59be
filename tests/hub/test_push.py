"""To the Hub and back: the real client pushes to a server on loopback, from the script, from each class and from
`Trainer`; it loads from there; what fails says why."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load, load_file

from modeling_mm.cli import main
from modeling_mm.hub import PushError, push
from tests.fakes.hub_parts import CARD, INDEX, REPO, ROOT, api, contents, edit, run
from tests.fakes.hub_server import READ_TOKEN, TOKEN, HubServer
from tests.fakes.tiny_chats import chat_model, processor
from tests.fakes.without_package import HIDE

# ---- Pushing a folder -----------------------------------------------------------------------------------------------


def test_a_folder_is_pushed_in_one_commit_with_links_as_files(good, hub):
    commit = push(good, REPO, api(hub))
    assert hub.files(REPO) == contents(good) and list(hub.repos[REPO].commits)[1:] == [commit.oid]
    assert hub.files(REPO)["modeling_mm.py"] == (ROOT / "modeling_mm" / "modeling_mm.py").read_bytes()
    again = push(good, REPO, api(hub))
    assert again.oid == commit.oid and len(hub.repos[REPO].commits) == 2 and hub.count("PUT /lfs") == 1


def test_weights_and_code_of_an_earlier_push_do_not_stay(folder, good, hub):
    """`from_pretrained` would take one file of old weights before the shards of the new."""
    (folder / "old.py").write_text("x = 1\n")
    (folder / "picture.png").write_bytes(b"shown in the card")
    (folder / "model-00001-of-00002.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    push(folder, REPO, api(hub))
    push(good, REPO, api(hub))
    assert hub.files(REPO) == {**contents(good), "picture.png": b"shown in the card"}


def test_shards_after_whole_weights_load_as_the_new_model_and_back(good, photo, hub, tmp_path):
    """`from_pretrained` looks for one file of weights before it looks for shards."""
    other = chat_model()
    with torch.no_grad():
        other.lm_head.weight.mul_(2.0)
    sharded = Path(shutil.copytree(good, tmp_path / "sharded"))
    (sharded / "model.safetensors").unlink()
    other.save_pretrained(sharded, max_shard_size="50KB")
    shards = {path.name for path in sharded.glob("*.safetensors")}
    assert len(shards) > 1 and "model.safetensors" not in shards
    for number, (folder, model) in enumerate(((good, chat_model()), (sharded, other), (good, chat_model()))):
        push(folder, REPO, api(hub))
        assert {name for name in hub.files(REPO) if name.endswith((".safetensors", INDEX))} == {
            name for name in contents(folder) if name.endswith((".safetensors", INDEX))
        }
        got = api(hub).snapshot_download(REPO, cache_dir=tmp_path / f"cache-{number}")
        loaded = type(model).from_pretrained(got)
        assert torch.allclose(said(loaded, photo), said(model, photo), atol=1e-5)


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        (
            lambda hub: hub.fail("PUT /lfs", 500),
            "Error while uploading 'model.safetensors' to the Hub. Server error '500",
        ),
        (lambda hub: hub.fail("PUT /lfs", 403), "403 Forbidden"),
        (lambda hub: hub.cut("PUT /lfs", after=1000), "Error while uploading 'model.safetensors'"),
        (lambda hub: hub.fail("POST /api/models/me/tiny/preupload", 403), "403 Forbidden: planned to fail"),
        (lambda hub: hub.fail("POST /api/models/me/tiny/commit", 500), "500"),
        (lambda hub: hub.cut("POST /api/models/me/tiny/commit", after=10), "sending the files failed"),
        (lambda hub: hub.fail("POST /api/repos/create", 500), "creating the repository failed"),
        (lambda hub: hub.fail("POST /me/tiny.git/info/lfs", 429), "429"),
    ],
)
def test_a_push_that_fails_says_why_leaves_nothing_and_can_be_repeated(good, hub, plan, word):
    plan(hub)
    with pytest.raises(PushError) as caught:
        push(good, REPO, api(hub))
    message = str(caught.value)
    assert message.startswith(f"{good} could not be pushed to {REPO} on {hub.url}: ") and word in message
    assert "developer.mozilla.org" not in message and "\n" not in message
    assert message.endswith(("that have arrived are not sent again.", "your own name.", "Retry later."))
    assert REPO not in hub.repos or hub.files(REPO) == {}
    hub.mend()
    push(good, REPO, api(hub))
    assert hub.files(REPO) == contents(good)


def test_a_connection_that_was_cut_once_is_taken_up_by_the_client(good, hub):
    hub.cut("PUT /lfs", after=1000, times=2)
    push(good, REPO, api(hub))
    assert hub.files(REPO) == contents(good) and hub.count("PUT /lfs") == 3


def test_what_has_arrived_is_not_sent_again(good, hub):
    hub.fail("POST /api/models/me/tiny/commit", 403, times=1)
    with pytest.raises(PushError, match="403 Forbidden"):
        push(good, REPO, api(hub))
    push(good, REPO, api(hub))
    assert hub.count("PUT /lfs") == 1


@pytest.mark.parametrize(
    ("token", "word"),
    [(READ_TOKEN, "may only read. Cannot access"), ("hf_unknown", "hf auth login"), (False, "hf auth login")],
)
def test_who_may_not_write_is_told(good, hub, token, word):
    with pytest.raises(PushError, match=word):
        push(good, REPO, api(hub, token))
    assert hub.repos == {}


def test_what_the_hub_does_not_accept_is_told_before_anything_is_sent(folder, hub):
    edit(folder / CARD, "\nlicense: mit\n", "\nlicense: [mit]\n")
    with pytest.raises(PushError, match=r"Invalid metadata in README\.md.*\"license\" must be a string.*Fix what"):
        push(folder, REPO, api(hub))
    assert hub.count("PUT /lfs") == 0 and hub.files(REPO) == {}
    with pytest.raises(PushError, match=r"creating the repository failed.*Fix what"):
        push(folder, "me/tiny/and/more", api(hub))


def test_a_hub_that_is_not_there(good, monkeypatch, hub):
    gone = HfApi(endpoint="http://127.0.0.1:1", token=TOKEN)
    with pytest.raises(PushError, match=r"creating the repository failed: .*refused.*Run the same command again"):
        push(good, REPO, gone)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="offline mode is enabled"):
        push(good, REPO, api(hub))


# ---- The script, and back from the Hub ------------------------------------------------------------------------------


LOAD = (
    HIDE
    + """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
name, inputs, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
assert AutoConfig.from_pretrained(name, trust_remote_code=True).model_type == "mm"
chat = [{"role": "user", "content": [{"type": "image", "path": inputs}, {"type": "text", "text": "hello there"}]}]
batch = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
with torch.no_grad():
    save_file({"logits": model(**batch).logits}, out)
print(type(model).__module__)
"""
)


def said(model, picture) -> torch.Tensor:
    """What `LOAD` asks, here."""
    chat = [{"role": "user", "content": [{"type": "image", "path": picture}, {"type": "text", "text": "hello there"}]}]
    batch = processor().apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**batch).logits


def test_the_script_checks_and_pushes_and_the_model_loads_from_the_hub_without_the_package(good, photo, tmp_path):
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home")
        program = "import sys; from modeling_mm.cli import main; sys.exit(main(['push', *sys.argv[1:]]))"
        printed = run(program, environment, str(good), REPO)
        assert f"Pushed: {hub.url}/{REPO}/commit/" in printed and "model.safetensors" in printed
        assert hub.files(REPO) == contents(good)
        module = run(LOAD, environment, REPO, photo, str(tmp_path / "out.safetensors"))
        assert module.strip().startswith("transformers_modules.")
    logits = load_file(tmp_path / "out.safetensors")["logits"]
    assert torch.allclose(logits, said(chat_model(), photo), atol=1e-5)


def test_the_script_pushes_nothing_that_has_problems(folder, hub, capsys):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    edit(folder / CARD, "\nlicense: mit\n", "\n")
    assert main(["push", str(folder), REPO]) == 1
    printed = capsys.readouterr().err
    assert "pytorch_model.bin: expected safetensors" in printed and "`license` is missing" in printed
    assert "2 problems; nothing was pushed." in printed and hub.requests == []


def test_the_script_only_checks_if_asked_to_and_says_what_failed(good, hub, monkeypatch, capsys):
    monkeypatch.setattr("modeling_mm.cli.push.check_folder", lambda *_: [])
    monkeypatch.setattr(importlib.import_module("modeling_mm.hub.push"), "HfApi", lambda: api(hub, READ_TOKEN))
    assert main(["push", str(good), REPO, "--check-only"]) == 0
    assert "is ready to be pushed" in capsys.readouterr().out and hub.requests == []
    assert main(["push", str(good), REPO]) == 1
    assert "Use a token that may write there" in capsys.readouterr().err


# ---- `push_to_hub` of each class and of Trainer ---------------------------------------------------------------------


CLASSES = """
import sys
from huggingface_hub.errors import HfHubHTTPError
from modeling_mm import MMConfig
from tests.fakes.tiny_chats import chat_model, processor
model = chat_model()
try:
    model.push_to_hub("me/classes")
except HfHubHTTPError as error:
    print("refused:", " ".join(str(error).split()))
model.push_to_hub("me/classes", tags=["tiny"])
processor().push_to_hub("me/classes")
model.config.push_to_hub("me/config")
alone, beside = MMConfig.from_pretrained("me/config"), MMConfig.from_pretrained("me/classes")
assert alone.text_config.to_dict() == beside.text_config.to_dict() == model.config.text_config.to_dict()
assert alone.cross_attention_layers == beside.cross_attention_layers and alone.auto_map == beside.auto_map
"""


def test_model_processor_and_config_push_themselves_and_a_refused_push_can_be_repeated(photo, tmp_path):
    with HubServer() as hub:
        hub.fail("POST /api/models/me/classes/commit", 403, times=1)  # the model's, after its weights have arrived
        hub.cut("PUT /lfs", after=1000, times=1)
        environment = hub.environment(tmp_path / "home")
        printed = run(CLASSES, environment)
        assert "refused: 403 Forbidden: planned to fail" in printed
        files = hub.files("me/classes")
        wanted = {"config.json", "generation_config.json", "model.safetensors", "modeling_mm.py", "processing_mm.py"}
        assert wanted | {"processor_config.json", "tokenizer.json", "chat_template.jinja", CARD} <= set(files)
        assert {"config.json", "configuration_mm.py"} <= set(hub.files("me/config"))
        assert b"- tiny" in files[CARD] and not any(name.endswith((".bin", ".pt")) for name in files)
        assert hub.count("PUT /lfs") == 2, "once cut, once whole; the second push finds it there"
        run(LOAD, environment, "me/classes", photo, str(tmp_path / "out.safetensors"))
    logits = load_file(tmp_path / "out.safetensors")["logits"]
    assert torch.allclose(logits, said(chat_model(), photo), atol=1e-5)


EACH_CLASS = """
import importlib, sys
import torch, transformers
import modeling_mm
from tests.fakes.tiny_chats import CHATS, chat_model, processor
joint = chat_model()
batch = processor().apply_chat_template(
    CHATS[4]["messages"][:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
autos = {
    "MMModel": "AutoModel",
    "MMForConditionalGeneration": "AutoModelForImageTextToText",
    "MMForSequenceClassification": "AutoModelForSequenceClassification",
    "MMForRetrieval": "AutoModelForZeroShotImageClassification",
    "MMForPreTraining": "AutoModelForPreTraining",
}
assert set(autos) == {name for name in modeling_mm.__all__ if name == "MMModel" or name.startswith("MMFor")}
for name, auto in autos.items():
    cls = getattr(modeling_mm, name)
    torch.manual_seed(1)
    model = (joint if name == "MMForConditionalGeneration" else cls(joint.config)).eval()
    repo = f"me/{name}"
    model.push_to_hub(repo)
    for loader in (cls, getattr(transformers, auto)):
        again, info = loader.from_pretrained(repo, output_loading_info=True)
        assert type(again) is cls and not any(info.values()), (name, info)
        with torch.no_grad():
            torch.testing.assert_close(again(**batch)[0], model(**batch)[0], rtol=0, atol=1e-5)
processor().push_to_hub("me/processor")
for loader in (modeling_mm.MMProcessor, transformers.AutoProcessor):
    again = loader.from_pretrained("me/processor")
    same = again.apply_chat_template(
        CHATS[4]["messages"][:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert set(same) == set(batch) and all(torch.equal(same[key], batch[key]) for key in batch)
print("all came back")
"""


def test_each_model_class_and_the_processor_come_back_from_the_hub(tmp_path):
    with HubServer() as hub:
        assert "all came back" in run(EACH_CLASS, hub.environment(tmp_path / "home"))
        heads = ("MMForConditionalGeneration", "MMForSequenceClassification", "MMForRetrieval", "MMForPreTraining")
        for name in ("MMModel", *heads):
            files = hub.files(f"me/{name}")
            assert json.loads(files["config.json"])["architectures"] == [name]
            assert {"model.safetensors", "modeling_mm.py", "configuration_mm.py", CARD} <= set(files)


TRAINER = """
import sys
import transformers
from huggingface_hub.errors import HfHubHTTPError
from modeling_mm.training import ChatCollator
from modeling_mm.training import MMTrainer
from tests.fakes.tiny_chats import chat_model, mm_trainer, processor
kind = {"MMTrainer": MMTrainer, "Trainer": transformers.Trainer}[sys.argv[3]]
more = {} if kind is MMTrainer else {"data_collator": ChatCollator(processor())}
trainer = mm_trainer(
    chat_model(), sys.argv[1], trainer_class=kind, more=more, push_to_hub=True, hub_model_id="me/trained",
    hub_strategy="every_save", save_strategy="steps", save_steps=1, save_only_model=True,
)
trainer.train()
try:
    trainer.push_to_hub(commit_message="refused", blocking=True)
except HfHubHTTPError as error:
    print("refused:", " ".join(str(error).split()))
print(trainer.push_to_hub(tags=["tiny"], blocking=True).commit_url)
trainer.model.save_pretrained(sys.argv[2])
"""


@pytest.mark.parametrize("trainer", ["MMTrainer", pytest.param("Trainer", marks=pytest.mark.slow)])
def test_a_trainer_pushes_while_and_after_it_trains_and_again_after_a_refusal(trainer, photo, tmp_path):
    with HubServer() as hub:
        hub.fail_commit("refused", 403)
        environment = hub.environment(tmp_path / "home")
        printed = run(TRAINER, environment, str(tmp_path / "run"), str(tmp_path / "model"), trainer)
        assert "refused: 403 Forbidden: planned to fail" in printed
        commits = list(hub.repos["me/trained"].commits)
        assert len(commits) >= 2 and f"/me/trained/commit/{commits[-1]}" in printed
        files = hub.files("me/trained")
        trained, pushed = load_file(tmp_path / "model" / "model.safetensors"), load(files["model.safetensors"])
        assert trained.keys() == pushed.keys() and all(torch.equal(trained[name], pushed[name]) for name in trained)
        assert {"config.json", "processor_config.json", "tokenizer.json", "modeling_mm.py", CARD} <= set(files)
        run(LOAD, environment, "me/trained", photo, str(tmp_path / "out.safetensors"))
    logits = load_file(tmp_path / "out.safetensors")["logits"]
    assert torch.allclose(logits, said(type(chat_model()).from_pretrained(tmp_path / "model"), photo), atol=1e-5)
    assert not torch.allclose(logits, said(chat_model(), photo), atol=1e-3), "it has learned nothing"
