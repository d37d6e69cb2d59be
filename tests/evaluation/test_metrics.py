"""Metrics of answers: exact values on answers that can be scored by hand."""

import math
import sys

import pytest
import torch

from modeling_mm.evaluation import METRICS, check_metrics, plain_words, score, single_spaced, spoken_form


@pytest.mark.parametrize(
    "name, answers, truths, expected",
    [
        ("exact_match", ["a cat ", "A cat", "dog"], ["a cat", "a cat", "dog"], 2 / 3),
        ("accuracy", ["animal", "plant"], ["animal", "animal"], 1 / 2),
        ("wer", ["a red cat sat", "one"], ["a red dog", "one two"], 3 / 5),
        ("cer", ["你们", "ab"], ["你好", "ab"], 1 / 4),
        ("bleu", ["the cat sat on the mat"], ["the cat sat on the mat"], 100.0),
        ("bleu", ["no word of it is right"], ["the cat sat on a mat"], 0.0),
        ("chrf", ["a small bird"], ["a small bird"], 100.0),
        ("chrf", ["xyz"], ["abc"], 0.0),
        ("chrf", ["a", "你"], ["a", "你"], 100.0),
    ],
)
def test_exact_values(name, answers, truths, expected):
    if name in ("wer", "cer", "bleu", "chrf"):
        pytest.importorskip("jiwer" if name in ("wer", "cer") else "sacrebleu")
    assert score(name, answers, truths) == pytest.approx(expected, abs=1e-9)


def test_answers_and_truths_are_not_mixed_up():
    """Words by those of the truth: three missing of four is 0.75, three added to one is 3."""
    pytest.importorskip("jiwer")
    assert score("wer", ["a"], ["a b c d"]) == 0.75
    assert score("wer", ["a b c d"], ["a"]) == 3.0


def test_sentences_of_different_lengths_count_by_their_words():
    pytest.importorskip("jiwer")
    assert score("wer", ["x", "a b c d e f g h i"], ["a", "a b c d e f g h i"]) == pytest.approx(1 / 10)


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"Unknown metric 'exact_mach'. Did you mean 'exact_match'\? Known: exact_match, acc"
    ):
        score("exact_mach", ["a"], ["a"])
    with pytest.raises(ValueError, match=r"Unknown metric 'zzz'\. Known"):
        check_metrics(["wer", "zzz"])
    check_metrics(METRICS)


@pytest.mark.parametrize("answers, truths", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_as_many_answers_as_truths_and_at_least_one(answers, truths):
    with pytest.raises(ValueError, match=rf"got {len(answers)} answers and {len(truths)} truths"):
        score("exact_match", answers, truths)


@pytest.mark.parametrize(
    "name, module", [("wer", "jiwer"), ("cer", "jiwer"), ("bleu", "sacrebleu"), ("rougeL", "torchmetrics")]
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch, name, module):
    for each in [module, *(each for each in sys.modules if each.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, each, None)
    with pytest.raises(ImportError, match=rf"'{name}' needs {module}.*pip install modeling_mm\[train\]"):
        score(name, ["a"], ["a"])
    assert score("exact_match", ["a"], ["a"]) == 1.0


def test_f1_is_the_mean_over_classes_of_truths_and_answers():
    """By hand: a has 2 right of 3 given and 2 true, b 0, c is only answered."""
    assert score("f1", ["a", "a", "a", "c"], ["a", "a", "b", "b"]) == pytest.approx((2 * 2 / 5 + 0 + 0) / 3)
    assert score("f1", ["a", "b"], ["a", "b"]) == 1.0


def test_f1_is_that_of_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.functional.classification").multiclass_f1_score
    truths, answers = [0, 1, 2, 2, 1, 0, 4, 4], [0, 2, 2, 2, 1, 4, 4, 0]
    value = float(theirs(torch.tensor(answers), torch.tensor(truths), num_classes=6, average="macro"))
    assert score("f1", list(map(str, answers)), list(map(str, truths))) == pytest.approx(value, abs=1e-6)


# ---- Spaces, empty texts, scripts -----------------------------------------------------------------------------------

SPACES = {
    "newline": "\n",
    "no-break": "\u00a0",
    "ideographic": "\u3000",
    "zero width": "\u200b",
    "several": " \t\r\n ",
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", ["wer", "cer", "spoken_wer"])
def test_every_white_space_is_a_space(name, space):
    pytest.importorskip("jiwer")
    text = f"one{space}two three{space}"
    assert score(name, [text], ["one two three"]) == score(name, ["one two three"], [text]) == 0


def test_composed_and_decomposed_letters_are_the_same():
    pytest.importorskip("jiwer")
    assert score("wer", ["cafe\u0301 noir"], ["caf\u00e9 noir"]) == score("cer", ["e\u0301"], ["\u00e9"]) == 0


@pytest.mark.parametrize(
    "name, answers, truths, expected",
    [
        ("spoken_wer", ["hello"], ["..."], 1.0),
        ("spoken_wer", ["hello there you"], ["..."], 3.0),  # the number of words: nothing to divide by
        ("spoken_wer", ["?!"], ["..."], 0.0),
        ("spoken_wer", ["so it is", "a b"], ["...", "a b"], 3 / 2),
        ("spoken_wer", ["", "a b"], ["a b", "a b"], 2 / 4),
        ("wer", ["hello"], [""], 1.0),
        ("wer", [""], [""], 0.0),
        ("wer", ["", "a"], ["a b c", "a"], 3 / 4),
        ("cer", ["abc", "d"], ["", "d"], 3.0),
        ("exact_match", ["", "a"], ["", ""], 1 / 2),
    ],
)
def test_empty_truths_and_empty_answers_count(name, answers, truths, expected):
    pytest.importorskip("jiwer")
    assert score(name, answers, truths) == pytest.approx(expected)


@pytest.mark.parametrize("name", METRICS)
def test_empty_texts_break_no_metric(name):
    for module in ("jiwer", "sacrebleu", "torchmetrics"):
        pytest.importorskip(module)
    for answers, truths in (([""], [""]), (["", "a b"], ["a b", ""]), (["..."], ["a"]), (["a"], ["\n"])):
        assert 0 <= score(name, answers, truths) <= 100


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello, YOU! [laughs] <noise> (a door)", "hello you"),
        ("don't", "don t"),  # as Whisper's
        ("कल मेला है।", "कल मेला है"),
        ("قالَ مُحَمَّدٌ، نعم؟", "قالَ مُحَمَّدٌ نعم"),
        ("你好，世界。", "你好 世界"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("❤️ 1️⃣ soft\u00adly می\u200cخواهم", "1 softly میخواهم"),
        ("́ alone", "alone"),
        ("", ""),
    ],
)
def test_spoken_forms(text, expected):
    assert spoken_form(text) == expected


def test_a_wrong_vowel_sign_is_a_wrong_word():
    """Whisper's normalizer drops the signs: there all three words are right."""
    pytest.importorskip("jiwer")
    assert score("spoken_wer", ["कल माला है"], ["कल मेला है"]) == pytest.approx(1 / 3)
    assert score("spoken_wer", ["قالَ"], ["قالُ"]) == 1


@pytest.mark.parametrize(
    "text", ["Where's the «cat»? (There!)", "¿Qué tal, señor?", "Ёлка — это: ёж…", "Ça va, l'été.", "你好!"]
)
def test_other_languages_have_the_form_of_whispers_normalizer(text):
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    assert spoken_form(text) == BasicTextNormalizer()(text).strip()


def test_words_without_punctuation():
    assert " ".join(plain_words("A red, RED cat's 你好 ねこ x2")) == "a red red cat s 你 好 ね こ x2"
    assert single_spaced(" a\u3000b ") == "a b"


# ---- ROUGE and CIDEr ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, answer, truth, expected",
    [
        ("rouge1", "the cat sat", "The cat, it sat down!", 2 * (1 * 3 / 5) / (1 + 3 / 5)),
        ("rouge2", "the cat sat", "the cat it sat down", 2 * (1 / 2 * 1 / 4) / (1 / 2 + 1 / 4)),
        ("rougeL", "sat the cat", "the cat it sat down", 2 * (2 / 3 * 2 / 5) / (2 / 3 + 2 / 5)),
        ("rouge1", "你们好", "你好", 2 * (2 / 3 * 1) / (2 / 3 + 1)),
        ("rouge1", "мама", "мама", 1),
        ("rouge2", "cat", "cat", 0),
        ("rougeL", "", "cat", 0),
    ],
)
def test_rouge_by_hand(name, answer, truth, expected):
    pytest.importorskip("torchmetrics")
    assert score(name, [answer], [truth]) == pytest.approx(expected, abs=1e-6)
    assert score(name, [answer, "x y"], [truth, "x y"]) == pytest.approx((expected + 1) / 2, abs=1e-6)


ANSWERS = ["a red cat sits on a mat", "a dog runs", "two birds", "a red red red cat", ""]
TRUTHS = ["a red cat sits on the mat", "a big dog runs on a mat", "two birds", "a red cat", "a tree"]


def test_cider_is_that_of_cocos_package():
    """The figure is that of pycocoevalcap 1.2, whose scorer of n-grams runs without Java."""
    assert score("cider", ANSWERS, TRUTHS) == pytest.approx(3.0201377242428245, abs=1e-12)
    assert score("cider", [text.upper() + "!" for text in ANSWERS], TRUTHS) == pytest.approx(3.0201377242428245)
    assert score("cider", ANSWERS[::-1], TRUTHS[::-1]) == pytest.approx(3.0201377242428245), "no order"


@pytest.mark.parametrize("words, ceiling", [(1, 2.5), (2, 5.0), (3, 7.5), (4, 10.0), (6, 10.0)])
def test_short_captions_have_a_ceiling_of_cider(words, ceiling):
    truths = [" ".join(f"{kind}{i}" for i in range(words)) for kind in ("cat", "dog", "cow")]
    assert score("cider", truths, truths) == pytest.approx(ceiling)


def test_cider_by_hand():
    """Two truths, so that log(2) is the weight of a rare word and "a" has none; lengths in pairs are 1 and 1."""
    cosine_of_words = 1 / math.sqrt(2)  # of (cat) with (cat, red)
    half = score("cider", ["a cat", "dog"], ["a red cat", "a dog"])
    assert half == pytest.approx(10 * (cosine_of_words / 4 * math.exp(-1 / 72) + 1 / 4 * math.exp(-1 / 72)) / 2)
    assert score("cider", ["cat cat cat"], ["cat"]) == 0, "one truth: every word is in all of them"
