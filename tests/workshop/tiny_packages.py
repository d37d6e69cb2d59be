"""
Unpacked packages of a few small files each, and corpora built from them.

The two synthesizers are shell scripts that write the bytes of their text as a wave.
"""

import gzip
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import signal
import threading
import wave
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from tqdm import tqdm
from transformers import EfficientNetModel

from modeling_mm.utils import write_lines
from scripts.workshop.builders import BUILDERS, CorpusBuilder
from scripts.workshop.chats import build_chats
from scripts.workshop.corpus import Description, read_description, write_corpus
from scripts.workshop.hear import HEARD_FILE, chosen_clips
from scripts.workshop.lite import SQUEEZE_EXCITE, lite_config
from scripts.workshop.packages import fetch_package
from tests.workshop.qt_writer import write_qt_resources

NUMBER = 24  # of emoji; the first half of them have a stamp of the same name too
CATEGORIES = ("Animals & Nature", "Food & Drink", "Objects")
STAMP_FOLDERS = ("animals", "food", "household")
WORDS = {"en": "thing {}", "fr": "chose {}", "es": "cosa {}", "ru": "вещь {}", "zh": "东西{}"}
HAS_SVG = importlib.util.find_spec("resvg_py") is not None
SETTINGS = {
    "images": {"held_out": {"test_concepts": 0.25, "validation": 0.2}},
    "spoken-captions": {
        "voices": {"seen": ["flite/slt", "espeak-ng/en-us"], "each": 1, "unseen": "flite/rms"},
        "share_of_unseen_voice": 0.5,
    },
    "prompts": {"held_out": {"test_prompts": 0.3, "validation": 0.2}},
    "sentences": {"count": 16, "held_out": {"validation": 0.3}},
    "spoken-words": {"count": 5},
    "studio-speech": {"frequent": 12, "mixed": 6, "others": 3, "held_out": {"test_sentences": 0.3, "validation": 0.2}},
}
LICENSE = "  1 This software and database is being provided"
# How often texts have them. The others: no text, no plain noun, too many words, and words that all concepts have.
NOUNS = dict.fromkeys(("lantern", "old_oak", "harbour", "saddle", "pebble", "quill"), 1)
NOUNS |= {"unread": 0, "Oslo": 3, "one_very_long_noun": 2} | {
    f"{word}_thing": 9 for word in ("big", "red", "old", "wet")
}
SPEAK = """#!/bin/sh
# Write the voice and the text, again and again, as the samples of a wave.
while [ $# -gt 0 ]; do
  case "$1" in
    -voice | -v) voice="$2"; shift 2 ;;
    -t | --) text="$2"; shift 2 ;;
    -o | -w) file="$2"; shift 2 ;;
  esac
done
{ cat "${0%/bin/*}/share/header"; yes "$voice $text" | head -c 8000; } > "$file"
"""


def noise_image(seed: str, size: int = 12) -> Image.Image:
    generator = np.random.default_rng(list(seed.encode()))
    return Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_audio(path: Path, seconds: float = 0.2, rate: int = 8000, **options) -> None:
    """Write noise that depends on the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list("/".join(path.parts[-3:]).encode()))
    soundfile.write(path, generator.uniform(-0.5, 0.5, round(seconds * rate)), rate, **options)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def write_packages(root: Path) -> Path:
    """Write all packages of the descriptions below `root`."""
    for name in BUILDERS:
        for package in read_description(name).packages.values():
            folder_of(root, package).mkdir(parents=True, exist_ok=True)
    write_emoji(root)
    write_stamps(folder_of(root, "debian:tuxpaint-stamps-default"))
    write_prompts(root)
    write_synthesizers(root)
    write_photographs(root)
    sentences = [f'0{n} | a gloss; "the {word} is here"' for n, word in enumerate("abcdefghijklmnopqrst")]
    for number, kind in enumerate(("noun", "verb", "adj", "adv")):
        text(
            folder_of(root, "debian:wordnet-base") / f"usr/share/wordnet/data.{kind}",
            "\n".join(sentences[number::4]) + "\n",
        )
    nouns = [f"{name} n 1 1 @ 1 {tagged} 0174{number}" for number, (name, tagged) in enumerate(NOUNS.items())]
    text(folder_of(root, "debian:wordnet-base") / "usr/share/wordnet/index.noun", "\n".join([LICENSE, *nouns]) + "\n")
    return root


def folder_of(root: Path, package: str) -> Path:
    """Make the folder of a package, so that `fetch_package` downloads nothing."""
    registry, _, name = package.partition(":")
    folder = root / f"{registry}-{name.replace('/', '-').replace('@', '-').strip('-')}"
    folder.mkdir(parents=True, exist_ok=True)
    assert fetch_package(package, root) == folder
    return folder


def write_emoji(root: Path) -> None:
    packages = read_description("images").packages
    codes = [f"{0x1F400 + number:X}" for number in range(NUMBER)]
    google, twitter = folder_of(root, packages["noto"]), folder_of(root, packages["twemoji"])
    fluent, openmoji = folder_of(root, packages["fluent"]), folder_of(root, packages["openmoji"])
    entries = [{"unified": code, "category": CATEGORIES[n % 3]} for n, code in enumerate(codes)]
    entries += [{"unified": "1F5FF", "category": "Component"}]  # of an unknown kind
    text(google / "package/emoji.json", json.dumps(entries))
    for number, code in enumerate(codes):
        save(noise_image(f"noto {code}"), google / f"package/img/google/64/{code.lower()}.png")
        save(noise_image(f"twemoji {code}"), twitter / f"package/img/twitter/64/{code.lower()}.png")
        if number % 3 == 0:
            save(noise_image(f"fluent {code}"), fluent / f"package/assets/{code.lower()}.webp")
        if HAS_SVG and number % 6 == 0:
            drawing = f'viewBox="0 0 30 30"><rect width="5" height="{number + 1}"/>'
            drawing = f'<svg xmlns="http://www.w3.org/2000/svg" {drawing}</svg>'
            text(openmoji / f"package/color/svg/{code}.svg", drawing)
    for language, form in WORDS.items():
        names = {
            chr(int(code, 16)): {"default": ["beast", "big", f"sort {number % 3}"], "tts": [form.format(number)]}
            for number, code in enumerate(codes)
        }
        path = folder_of(root, packages["names"]) / f"package/annotations/{language}/annotations.json"
        text(path, json.dumps({"annotations": {"annotations": names}}))


def write_stamps(folder: Path) -> None:
    """
    Write a stamp for every even number.

    It shares the English name of an emoji, or only its Russian one. Another stamp is of an unknown kind.
    """
    root = folder / "usr/share/tuxpaint/stamps"
    for number in range(0, NUMBER, 2):
        path = root / STAMP_FOLDERS[number % 3] / f"stamp_{number}"
        english = f"A thing {number}." if number % 4 == 0 else f"An odd {number}."
        russian = f"Вещь {number}."
        text(path.with_suffix(".txt"), f"{english}\nfr.utf8=Un truc {number}.\nru.utf8={russian}\n")
        save(noise_image(f"stamp {number}"), path.with_suffix(".png"))
    text(root / "symbols/letter.txt", "The letter A.\n")  # of an unknown kind
    save(noise_image("letter"), root / "symbols/letter.png")


def write_prompts(root: Path) -> None:
    """Write a dozen prompts, a signal, a missing and a silent recording."""
    lines = ["; a comment: not spoken", *(f"digits/{number}: prompt {number}" for number in range(12))]
    lines += ["beep: [a tone]", "lost: no such sound", "still: nothing to hear"]
    package = folder_of(root, "debian:asterisk-core-sounds-en")
    path = package / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    voice = folder_of(root, "debian:asterisk-core-sounds-en-wav") / "usr/share/asterisk/sounds/voice_en"
    for name in (*(f"digits/{number}" for number in range(12)), "beep"):
        write_audio(voice / f"{name}.wav")
    soundfile.write(voice / "still.wav", np.zeros(4000), 8000)


def write_synthesizers(root: Path) -> None:
    header = io.BytesIO()
    with wave.open(header, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(8000))
    for name in ("flite", "espeak-ng"):
        script = folder_of(root, f"debian:{name}") / f"usr/bin/{name}"
        text(script, SPEAK)
        script.chmod(0o755)
        share = script.parents[1] / "share"
        share.mkdir()
        (share / "header").write_bytes(header.getvalue()[:44])


SEEN = 7  # the class that the tiny packages' classifier sees in every photograph


def write_photographs(root: Path) -> None:
    """Write a photograph for each folder of the description, drawings beside them and one that is left out."""
    description = read_description("photographs")
    folder = folder_of(root, description.packages["photographs"])
    for activity, names in description.settings["folders"].items():
        base = f"gcompris/src/activities/{activity}"
        files = {f"{base}/{activity}.svg": b"<svg/>", f"{base}/README": b"Nothing of interest."}
        for name in names:
            buffer = io.BytesIO()
            noise_image(f"{activity} {name}", 12).resize((480, 240)).save(buffer, "WEBP", lossless=True)
            path = f"{base}/{name}"
            files[f"{path}/thing.webp"] = buffer.getvalue()
            files[f"{path}/drawing.svg"] = b"<svg/>"
            files[f"{path}/README"] = b"Copyright: Somebody\nLicense: CC0-1.0\nFiles:\nthing.webp\n"
        for left_out in description.settings["left_out"]:
            if left_out.startswith(f"{activity}/"):
                files[f"{base}{left_out.removeprefix(activity)}.webp"] = b"never read"
        write_qt_resources(folder / f"usr/share/gcompris-qt/rcc/{activity}.rcc", files)
    info = folder_of(root, description.packages["names"]) / "timm/data/_info"
    text(info / "imagenet_synsets.txt", "".join(f"n{number}\n" for number in range(1000)))
    text(info / "imagenet_synset_to_lemma.txt", "".join(f"n{n}\tname {n}, other {n}\n" for n in range(1000)))
    bias = torch.zeros(1000)
    bias[SEEN] = 8.0
    write_lite(folder_of(root, description.packages["weights"]) / "models/lite2.pth", torch.zeros(1000, 1280), bias)


def write_lite(path: Path, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write EfficientNet-Lite2 with this head, and weights so wide that its tokens tell images apart."""
    state = EfficientNetModel(lite_config("lite2")).state_dict()
    tensors = {f"_{name}": tensor for name, tensor in state.items() if SQUEEZE_EXCITE not in name}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.ndim == 4:  # of a convolution
            tensors[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith("weight"):  # of a batch norm
            tensors[name] = torch.ones_like(tensor)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**tensors, "_fc.weight": weight, "_fc.bias": bias}, path)


# ---- Corpora --------------------------------------------------------------------------------------------------------


def tiny_description(name: str) -> Description:
    """Read a description, with settings for the tiny packages."""
    description = read_description(name)
    return replace(description, settings={**description.settings, **SETTINGS.get(name, {})})


def make_builder(packages: Path) -> CorpusBuilder:
    return CorpusBuilder(packages, tiny_description("images"))


def build_tiny(name: str, builder: CorpusBuilder, folder: Path, workers: int = 2) -> Counter:
    description = tiny_description(name)
    return write_corpus(folder / name, description, BUILDERS[name](builder, description), workers)


def build_all(packages: Path, folder: Path, workers: int = 2) -> Path:
    """Build all corpora below `folder`, chats included."""
    builder = make_builder(packages)
    for name in BUILDERS:
        build_tiny(name, builder, folder, workers)
    write_heard(folder)
    build_chats(folder)
    return folder


def write_heard(folder: Path) -> None:
    """Write down other words than the transcript for each clip that examples with audio and an image are made of."""
    heard = [{"file_name": name, "heard": f"heard in {Path(name).stem}"} for name in chosen_clips(folder)]
    write_lines(folder / HEARD_FILE, heard)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def killed(build, call: int, before: bool) -> None:
    """Run `build` in a process that is killed before or after file number `call` gets its name."""

    def run():
        tqdm.set_lock(threading.RLock())  # the default lock is shared with this process and would never be released
        replace_file, calls = os.replace, itertools.count(1)

        def replace_or_die(source, target):
            number = next(calls)  # of this thread: others may count before a list's length is read
            if not before:
                replace_file(source, target)
            if number == call:
                os.kill(os.getpid(), signal.SIGKILL)
            if before:
                replace_file(source, target)

        os.replace = replace_or_die
        build()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
