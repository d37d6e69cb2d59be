"""converted_processing.py: processors of converted encoder-decoders and the prompts that they write."""

import pytest
from jinja2 import TemplateError
from transformers import WhisperProcessor

from modeling_mm import MMForConditionalGeneration, MMProcessor
from tests.fakes.encoder_decoders import captioner, transcriber
from tests.fakes.processor_parts import make_bpe, make_vit, make_whisper, picture, sound
from tests.fakes.tiny import EOS
from tests.fakes.whisper_parts import converted, timed_tokenizer, tokenizer, whisper

AUDIO = {"type": "audio", "audio": sound()}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def prompt(processor, messages, **options) -> str:
    return processor.apply_chat_template(messages, **{"add_generation_prompt": True, **options})


def test_whispers_prompt_of_english():
    _, processor = converted()
    start = "<|startoftranscript|><|notimestamps|>"
    assert prompt(processor, user(AUDIO)) == f"<|audio|>{start}"
    assert prompt(processor, user(text(" names "), AUDIO)) == f"<|audio|><|startofprev|> names{start}"
    assert prompt(processor, user(AUDIO), timestamps=True) == "<|audio|><|startoftranscript|>"
    assert prompt(processor, user(AUDIO), language="en", task="transcribe") == f"<|audio|>{start}"
    answered = [*user(AUDIO), {"role": "assistant", "content": "A cat."}]
    assert prompt(processor, answered, add_generation_prompt=False) == f"<|audio|>{start} A cat.<|endoftext|>"
    assert prompt(processor, user(AUDIO), add_generation_prompt=False) == "<|audio|>"


IMAGE = {"type": "image", "image": picture()}


def test_a_question_about_images_alone_stands_next_to_its_answer():
    processor = converted()[1].add_part("image", make_vit())
    start = "<|startoftranscript|><|notimestamps|>"
    ask, answer = text(" What is this? "), {"role": "assistant", "content": "A cat."}
    assert prompt(processor, user(IMAGE, ask)) == f"<|image|>{start} What is this?"
    assert prompt(processor, user(ask, IMAGE), timestamps=True) == f"<|image|>{start} What is this?"
    written = prompt(processor, [*user(IMAGE, IMAGE, ask), answer], add_generation_prompt=False)
    assert written == f"<|image|><|image|>{start} What is this? A cat.<|endoftext|>"
    assert prompt(processor, user(IMAGE)) == f"<|image|>{start}"
    heard = prompt(processor, user(IMAGE, AUDIO, text("What is said?")))
    assert heard == f"<|image|><|audio|><|startofprev|> What is said?{start}", "speech is transcribed as ever"
    several = converted(is_multilingual=True)[1].add_part("image", make_vit())
    assert prompt(several, user(IMAGE, ask), language="de").endswith(
        "<|startoftranscript|><|de|><|transcribe|><|notimestamps|> What is this?"
    )


def test_whispers_prompt_of_many_languages():
    _, processor = converted(is_multilingual=True)
    stamps = "<|notimestamps|>"
    assert prompt(processor, user(AUDIO)).endswith(f"<|startoftranscript|><|en|><|transcribe|>{stamps}")
    assert prompt(processor, user(AUDIO), language="de", task="translate").endswith(f"<|de|><|translate|>{stamps}")
    answered = [*user(AUDIO), {"role": "assistant", "content": "猫"}]
    written = prompt(processor, answered, add_generation_prompt=False, language="zh")
    assert written.endswith(f"<|zh|><|transcribe|>{stamps}猫<|endoftext|>"), "Chinese has no space in front"


def test_another_default_language():
    parts = WhisperProcessor(make_whisper(), timed_tokenizer(is_multilingual=True))
    processor = MMProcessor.from_encoder_decoder(parts, language="de")
    assert "<|de|>" in prompt(processor, user(AUDIO)) and "<|en|>" in prompt(processor, user(AUDIO), language="en")
    with pytest.raises(ValueError, match="a language among en, de, zh, got 'fr'"):
        MMProcessor.from_encoder_decoder(parts, language="fr")


WRONG_CHATS = {
    "a system turn": (False, [{"role": "system", "content": "Hm."}, *user(AUDIO)], {}, "has no roles.*system, user"),
    "two questions": (False, [*user(AUDIO), {"role": "assistant", "content": "A"}, *user(AUDIO)], {}, "has no roles"),
    "an unknown language": (True, user(AUDIO), {"language": "fr"}, "fr: expected one of en, de, zh"),
    "an unknown task": (True, user(AUDIO), {"task": "sing"}, "sing: expected transcribe or translate"),
    "a language of English alone": (False, user(AUDIO), {"language": "de"}, "English alone"),
    "a translation into English": (False, user(AUDIO), {"task": "translate"}, "English alone"),
    "a file": (False, user({"type": "file"}), {}, "Unknown content type file"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CHATS)
def test_whispers_template_refuses_what_it_cannot_say(name):
    is_multilingual, messages, options, message = WRONG_CHATS[name]
    with pytest.raises(TemplateError, match=message):
        prompt(converted(is_multilingual)[1], messages, **options)


def test_a_model_that_hears_alone_says_what_to_do_with_a_video():
    with pytest.raises(ValueError, match="no `image_processor`; join a vision encoder, or pass the file as an audio"):
        prompt(converted()[1], user({"type": "video", "path": "clip.mp4"}))


def test_whispers_control_tokens_in_a_users_text_are_text():
    _, processor = converted()
    words = "<|startoftranscript|><|0.02|><|endoftext|><|audio|>"
    options = {"add_generation_prompt": True, "tokenize": True}
    (ids,) = processor.apply_chat_template(user(AUDIO, text(words)), **options)
    start = processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    assert ids[0] == processor.audio_token_id and ids[-2:] == start
    assert max(ids[2:-2]) < processor.tokenizer.eos_token_id, "only words between"
    # Whisper's own `decode` takes out what looks like a timestamp.
    assert processor.tokenizer.backend_tokenizer.decode(ids[2:-2]) == f" {words}"


def test_the_prompt_is_the_one_that_the_model_has_learned():
    for is_multilingual in (False, True):
        model, processor = converted(is_multilingual)
        (ids,) = processor.apply_chat_template(user(AUDIO), add_generation_prompt=True, tokenize=True)
        assert ids == [model.config.audio_token_id, *model.config.prompt_token_ids]


def test_timestamps_that_a_tokenizer_lacks_have_the_ids_of_the_weights():
    processor = MMProcessor.from_encoder_decoder(WhisperProcessor(make_whisper(), tokenizer()))
    _, original = whisper()
    names = ["<|0.00|>", "<|0.02|>", "<|30.00|>"]
    expected = original.tokenizer.convert_tokens_to_ids(names)
    assert processor.tokenizer.convert_tokens_to_ids(names) == expected
    assert processor.image_token_id == expected[-1] + 1, "our tokens lie behind"
    taken = tokenizer()
    taken.add_tokens(["mine"])
    with pytest.raises(ValueError, match=r"has <\|0.00\|> at .* without tokens of yours"):
        MMProcessor.from_encoder_decoder(WhisperProcessor(make_whisper(), taken))


class Parts:
    """The parts of a captioner's processor, as one object."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


def test_a_captioners_prompt_and_what_it_refuses():
    processor = MMProcessor.from_encoder_decoder(Parts(image_processor=make_vit(), tokenizer=make_bpe()))
    assert processor.placeholders == "hidden" and processor.feature_extractor is None
    image = {"type": "image", "image": picture()}
    assert prompt(processor, user(image)) == "<|image|><|endoftext|>"
    answered = [*user(image), {"role": "assistant", "content": "a cat"}]
    assert prompt(processor, answered, add_generation_prompt=False) == "<|image|><|endoftext|>a cat<|endoftext|>"
    begun = prompt(processor, answered, add_generation_prompt=False, continue_final_message=True)
    assert begun == "<|image|><|endoftext|>a cat"
    for messages, message in (
        (user(image, text("What is it?")), "takes no question"),
        ([{"role": "system", "content": "Be brief."}, *user(image)], "has no roles"),
    ):
        with pytest.raises(TemplateError, match=message):
            prompt(processor, messages)


@pytest.mark.parametrize("kind", ["vision", "speech", "whisper"])
def test_saved_checkpoints_are_read_by_their_kind(tmp_path, kind):
    if kind == "whisper":
        model, parts = whisper()
        parts.save_pretrained(tmp_path)
    else:
        model = captioner(decoder_start_token_id=EOS) if kind == "vision" else transcriber(decoder_start_token_id=EOS)
        make_bpe().save_pretrained(tmp_path)
        (make_vit() if kind == "vision" else make_whisper()).save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    processor = MMProcessor.from_encoder_decoder(tmp_path)
    held = {name for name in ("image_processor", "feature_extractor") if getattr(processor, name) is not None}
    assert held == {"image_processor" if kind == "vision" else "feature_extractor"}
    media = {"type": "image", "image": picture()} if kind == "vision" else AUDIO
    written = prompt(processor, user(media))
    assert written.startswith("<|image|>" if kind == "vision" else "<|audio|>")
    processor.save_pretrained(tmp_path / "saved")
    assert prompt(MMProcessor.from_pretrained(tmp_path / "saved"), user(media)) == written


def test_other_sources_are_refused(tmp_path):
    captioner().config.encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model type 'vit'; expected one of whisper"):
        MMProcessor.from_encoder_decoder(tmp_path)
    with pytest.raises(ValueError, match="got a Parts without one"):
        MMProcessor.from_encoder_decoder(Parts(image_processor=make_vit()))
    parts = Parts(image_processor=make_vit(), tokenizer=make_bpe())
    with pytest.raises(ValueError, match="`language` is for multilingual Whisper, got 'en'"):
        MMProcessor.from_encoder_decoder(parts, language="en")
    parts.tokenizer.bos_token = None
    with pytest.raises(ValueError, match="no token that begins"):
        MMProcessor.from_encoder_decoder(parts)


def test_the_model_and_its_processor_answer_as_one():
    model, processor = converted()
    inputs = processor.apply_chat_template(
        user(AUDIO), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert isinstance(model, MMForConditionalGeneration) and inputs["attention_mask"][0, 0] == 0
    assert model.generate(**inputs).shape[1] > inputs["input_ids"].shape[1]
