"""What is pushed to the Hub: one folder with weights, config, processor, generation config and code. It loads with
remote code in a process that cannot import `modeling_mm`, and without it in one that can: equal both times."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMProcessor
from tests.fakes.tiny import MELS, gpt2, joined, open_gates
from tests.fakes.without_package import run_without_package

TEXTS = ["a red square", "what is this? <|image|> it is", "<|audio|> we hear <|image|> a dog"]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
CORPUS = ["a red square and a blue circle", "what is this? it is a dog", "we hear a dog and see a cat", "yes no two"]


def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def image_processor():
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def build():
    """Model and processor of the same ids."""
    words = tokenizer()
    size = len(words)
    # 0.4 s windows: 40 frames of 160 samples, as Whisper's encoder of 20 positions wants.
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=1, n_fft=400, hop_length=400)
    processor = MMProcessor(image_processor=image_processor(), feature_extractor=extractor, tokenizer=words)
    model = open_gates(joined(gpt2(vocab_size=size)))
    return model, processor


def media():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, (20, 24, 3), dtype=np.uint8) for _ in range(2)]
    return [[], [images[0]], [images[1]]], [[], [], [generator.standard_normal(12000).astype(np.float32)]]


def prepare(processor):
    images, audio = media()
    kwargs = {"return_tensors": "pt", "padding": True, "padding_side": "left", "sampling_rate": 16000}
    return processor(text=TEXTS, images=images, audio=audio, **kwargs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder; the outputs of model and processor before they were saved lie beside it."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-model"
    from transformers import WhisperConfig, WhisperModel

    from tests.fakes.tiny import seeded, whisper_config

    model, processor = build()
    frames = prepare(processor)["input_features"].shape[-1]
    if frames != 40:  # the extractor decides the window; the encoder follows
        config: WhisperConfig = whisper_config(max_source_positions=frames // 2)
        size = len(tokenizer())
        model = open_gates(joined(gpt2(vocab_size=size), audio=seeded(lambda: WhisperModel(config))))
    batch = prepare(processor)
    with torch.no_grad():
        logits = model(**batch).logits
        hidden = model.model(**batch).last_hidden_state
    tokens = model.generate(**batch, **GREEDY)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    torch.save({"logits": logits, "hidden": hidden, "tokens": tokens}, folder.parent / "expected.pt")
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    (folder.parent / "expected.json").write_text(json.dumps({"texts": texts, "batch": sorted(batch)}))
    np.savez(folder.parent / "media.npz", one=media()[0][1][0], two=media()[0][2][0], audio=media()[1][2][0])

    classifier = open_gates(joined(gpt2(vocab_size=len(tokenizer())), cls=MMForSequenceClassification, num_labels=3))
    classifier.save_pretrained(folder.parent / "classifier")
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        torch.save(classifier(**ids).logits, folder.parent / "classifier.pt")
    return folder


def test_special_ids_of_model_and_processor_agree():
    model, processor = build()
    config, words = model.config, processor.tokenizer
    assert config.image_token_id == words.convert_tokens_to_ids("<|image|>") == processor.image_token_id
    assert config.audio_token_id == words.convert_tokens_to_ids("<|audio|>") == processor.audio_token_id
    assert config.text_config.vocab_size == len(words)
    assert config.text_config.pad_token_id == words.pad_token_id


def test_the_folder_holds_weights_config_processor_and_code(folder):
    names = {path.name for path in folder.iterdir()}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "processor_config.json"}
    assert wanted <= names, wanted - names
    assert {"modeling_mm.py", "configuration_mm.py", "processing_mm.py"} <= names
    assert any(name.startswith("chat_template") for name in names)


def test_weights_are_safetensors_only_without_any_pickle(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.suffix == ".safetensors"] == ["model.safetensors"]
    text = {".json", ".py", ".jinja", ".txt", ".md", ".safetensors"}
    assert {path.suffix for path in files} <= text
    for path in files:
        if path.suffix != ".safetensors":
            assert not path.read_bytes().startswith((b"PK", b"\x80")), f"{path.name} is a pickle or an archive"
            path.read_text(encoding="utf-8")


def test_no_shipped_file_imports_the_package_by_its_name(folder):
    for path in folder.glob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("import modeling_mm", "from modeling_mm")), f"{path.name}: {line}"


def test_auto_map_names_every_auto_class(folder):
    mapped = json.loads((folder / "config.json").read_text())["auto_map"]
    wanted = {"AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"}
    assert wanted | {"AutoModelForSequenceClassification"} <= set(mapped)
    processors = [json.loads(path.read_text()).get("auto_map", {}) for path in folder.glob("*processor*.json")]
    assert any("AutoProcessor" in found for found in processors)


# Run in this process, and where the package cannot be imported.
CHECK = """
import json
import numpy as np, torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForSequenceClassification,
    AutoProcessor,
)


def check(folder, texts, **kwargs):
    expected = torch.load(folder.parent / "expected.pt", weights_only=True)
    before = json.loads((folder.parent / "expected.json").read_text())
    media = np.load(folder.parent / "media.npz")
    assert AutoConfig.from_pretrained(folder, **kwargs).model_type == "mm"
    processor = AutoProcessor.from_pretrained(folder, **kwargs)
    assert type(processor).__name__ == "MMProcessor"
    batch = processor(
        text=texts, images=[[], [media["one"]], [media["two"]]], audio=[[], [], [media["audio"]]],
        return_tensors="pt", padding=True, padding_side="left", sampling_rate=16000,
    )
    assert sorted(batch) == before["batch"]
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model = auto.from_pretrained(folder, **kwargs)
        assert type(model).__name__ == "MMForConditionalGeneration", type(model)
        assert type(model).__module__.startswith("transformers_modules") == bool(kwargs), type(model).__module__
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, expected["logits"])
        tokens = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        assert torch.equal(tokens, expected["tokens"])
        assert processor.batch_decode(tokens, skip_special_tokens=True) == before["texts"]
    base = AutoModel.from_pretrained(folder, **kwargs)
    assert type(base).__name__ == "MMModel"
    with torch.no_grad():
        assert torch.equal(base(**batch).last_hidden_state, expected["hidden"])
    classifier = AutoModelForSequenceClassification.from_pretrained(folder.parent / "classifier", **kwargs)
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(classifier(**ids).logits, torch.load(folder.parent / "classifier.pt", weights_only=True))
    chat = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}]}]
    assert processor.apply_chat_template(chat, add_generation_prompt=True)
    again = folder.parent / "again"  # a loaded model is saved with its code, and loads again
    model.save_pretrained(again)
    processor.save_pretrained(again)
    reloaded = AutoModelForImageTextToText.from_pretrained(again, **kwargs)
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, expected["logits"])
"""


def test_remote_code_gives_equal_logits_and_text_where_the_package_cannot_be_imported(folder, tmp_path):
    script = f"{CHECK}\nimport sys\nfrom pathlib import Path\n"
    script += f"check(Path({str(folder)!r}), {TEXTS!r}, trust_remote_code=True)\n"
    run_without_package(script + "assert 'modeling_mm' not in sys.modules", tmp_path)


def test_the_same_folder_loads_without_remote_code_where_the_package_is(folder):
    namespace: dict = {}
    exec(CHECK, namespace)
    namespace["check"](folder, TEXTS)


def test_the_folder_loads_into_the_classes_themselves(folder):
    model = MMForConditionalGeneration.from_pretrained(folder)
    processor = MMProcessor.from_pretrained(folder)
    expected = torch.load(folder.parent / "expected.pt", weights_only=True)
    with torch.no_grad():
        assert torch.equal(model(**prepare(processor)).logits, expected["logits"])


def test_processor_errors_name_the_row_and_both_counts():
    _, processor = build()
    images, _ = media()
    with pytest.raises(ValueError, match=r"(?is)row 1.*2.*1|1.*2.*row 1"):
        processor(text=["a", "<|image|><|image|> b"], images=[[], images[1]], return_tensors="pt")
