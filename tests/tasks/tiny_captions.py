"""Corpora of a few named images and voices, as lists without their files: what the tests of three tasks share."""

import json
from pathlib import Path

from modeling_mm.utils import write_lines
from scripts.tasks.examples import Example, Sources
from scripts.workshop.corpus import read_description

LANGUAGES = ("en", "fr", "es", "ru", "zh")
KNOWN_HANDS, UNSEEN_HAND, VOICE = ("noto", "fluent"), "twemoji", "flite/rms"
# Code, category, concept and names in `LANGUAGES`. English says the same of two judges once "man" is left out.
KNOWN = [
    ("1f400", "role", "en:judge", ("man judge", "juge homme", "juez", "судья", "男法官")),
    ("1f401", "role", "en:judge", ("woman judge", "juge femme", "jueza", "судья", "女法官")),
    ("1f402", "role", "en:cook", ("cook", "cuisinier", "cocinero", "повар", "厨师")),
    ("1f403", "role", "en:pilot", ("pilot", "pilote", "piloto", "пилот", "飞行员")),
    ("1f404", "fruit", "en:pear", ("pear", "poire", "pera", "груша", "梨")),
    ("1f405", "fruit", "en:plum", ("plum", "prune", "ciruela", "слива", "李子")),
    ("1f406", "fruit", "en:fig", ("fig", "figue", "higo", "инжир", "无花果")),
    ("1f407", "fruit", "en:kiwi", ("kiwi", "kiwi", "kiwi", "киви", "猕猴桃")),
]
UNSEEN = [
    ("1f408", "fruit", "en:date", ("date", "datte", "dátil", "финик", "椰枣")),
    ("1f409", "fruit", "en:lime", ("lime", "citron vert", "lima", "лайм", "青柠")),
    ("1f40a", "fruit", "en:melon", ("melon", "melon", "melón", "дыня", "甜瓜")),
    ("1f40b", "role", "en:guard", ("guard", "garde", "guardia", "страж", "卫兵")),
]

WORDS = ("harbour", "lantern")  # that are spoken and have no image


def write_corpora(folder: Path) -> Sources:
    """Write the lists of images and of spoken captions, and the package with the categories."""
    every = (*KNOWN_HANDS, UNSEEN_HAND)
    images = {
        "train": rows(KNOWN, KNOWN_HANDS),
        "test_hand": rows(KNOWN, [UNSEEN_HAND]),
        "test_concepts": rows(UNSEEN, every),
    }
    stamp = {"file_name": "tuxpaint-food_pear.png", "concept": "en:pear", "hand": "tuxpaint", "kind": "food"}
    names = dict.fromkeys(f"name_{language}" for language in LANGUAGES)
    images["train"].append({**stamp, **names, "name_en": "A pear.", "name_fr": "Une poire."})
    for split, lines in images.items():
        write_lines(folder / "corpora/images" / split / "metadata.jsonl", lines)
    for split, things, voices in (
        ("train", KNOWN, ["flite/slt", "flite/awb"]),
        ("test_voice", KNOWN[:4], [VOICE]),
        ("test_concepts", UNSEEN[:3], [VOICE]),
    ):
        write_lines(folder / "corpora/spoken-captions" / split / "metadata.jsonl", clips(things, voices))
    words = [{"file_name": f"{word}.flac", "text": word, "voice": "flite/slt"} for word in WORDS]
    write_lines(folder / "corpora/spoken-words/train/metadata.jsonl", words)
    package = read_description("images").packages["noto"].partition(":")[2].replace("@", "-")
    path = folder / f"packages/npm-{package}/package/emoji.json"
    path.parent.mkdir(parents=True)
    entries = [{"unified": code.upper(), "category": "All", "subcategory": kind} for code, kind, *_ in KNOWN + UNSEEN]
    path.write_text(json.dumps(entries))
    return Sources(folder / "corpora", folder / "packages", folder / "task")


def rows(things: list, hands: list | tuple) -> list[dict]:
    return [
        {"file_name": f"{hand}-{code}.png", "concept": concept, "hand": hand, "kind": kind}
        | {f"name_{language}": name for language, name in zip(LANGUAGES, names, strict=True)}
        for code, kind, concept, names in things
        for hand in hands
    ]


def clips(things: list, voices: list) -> list[dict]:
    return [
        {"file_name": f"{voice.replace('/', '_')}-{code}.flac", "text": names[0], "concept": concept, "voice": voice}
        for code, _, concept, names in things
        for voice in voices
    ]


def media(row: Example) -> list[str]:
    """Return the names of an example's files."""
    return [Path(part["path"]).name for part in row["messages"][0]["content"] if "path" in part]


def asked(row: Example) -> str:
    return row["messages"][0]["content"][-1]["text"]
