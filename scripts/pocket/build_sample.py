"""Build the small real sample in processing/corpora/sample: captioned pictures and transcribed voice prompts.

    python -m scripts.pocket.build_sample                        # rebuild processing/corpora/sample
    python -m scripts.pocket.build_sample --output /tmp/sample   # the same bytes, elsewhere

Needs npm, apt-get and dpkg-deb on the PATH (after `apt-get update`), and pillow, soundfile, tqdm. About 100 MB of
packages is downloaded into a temporary folder, checked by SHA-256, and removed again. The output folder is
replaced in one step, at the end.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile as sf
from PIL import Image
from tqdm import tqdm

from .sample import (
    PICTURE_AND_SOUND,
    PICTURE_KIND,
    PICTURE_NAME,
    SPOKEN_KIND,
    SPOKEN_WORDS,
    ChatSample,
    training_and_new_pairs,
)

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_OUTPUT = ROOT / "processing" / "corpora" / "sample"
SECONDS = (0.4, 3.0)  # allowed length of a sound
README = "README.md"  # written by hand; carried over when the sample is rebuilt
TASKS = {
    PICTURE_NAME: "image/name",
    PICTURE_KIND: "image/category",
    SPOKEN_WORDS: "audio/words",
    SPOKEN_KIND: "audio/category",
    PICTURE_AND_SOUND: "image and audio",
}
GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Package:
    """One pinned source package; `kind` is npm or deb."""

    kind: str
    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """What the client names its download."""
        return f"{self.name}-{self.version}.tgz" if self.kind == "npm" else f"{self.name}_{self.version}_all.deb"

    @property
    def label(self) -> str:
        return f"{self.kind}:{self.name} {self.version}"


EMOJI = Package(
    "npm", "emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
)
NAMES = Package(
    "npm", "cldr-annotations-full", "48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1"
)
VOICE = Package(
    "deb", "asterisk-core-sounds-en-wav", "1.6.1-1", "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"
)
WORDS = Package(
    "deb", "asterisk-core-sounds-en", "1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"
)
PACKAGES = (EMOJI, NAMES, VOICE, WORDS)

# category -> English names as CLDR gives them; the name is the caption
PICTURES: dict[str, str] = {
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

# category -> keys of the transcript file, which are also the paths of the recordings
SOUNDS: dict[str, str] = {
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


class SampleError(RuntimeError):
    """The sample cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Row:
    """One line of pictures.jsonl or sounds.jsonl. `text` is the caption or the transcript."""

    file: str
    text: str
    category: str
    source: str
    licence: str
    text_source: str
    text_licence: str


def run(command: Sequence[str], cwd: Path) -> None:
    if shutil.which(command[0]) is None:
        raise SampleError(f"{command[0]!r} is not on the PATH; it is needed to download the sources")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SampleError(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stderr.strip()[-2000:]}")


def download(package: Package, work: Path) -> Path:
    """Download a package with its own client, check its bytes, unpack it; returns the unpacked folder."""
    if package.kind == "npm":
        run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], work)
    else:
        run(["apt-get", "download", f"{package.name}={package.version}"], work)
    archive = work / package.file
    if not archive.is_file():
        raise SampleError(f"{package.label}: the client did not write {package.file}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SampleError(f"{package.label}: SHA-256 is {digest}, expected {package.sha256}; the source has changed")
    folder = work / package.name
    if package.kind == "npm":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        run(["dpkg-deb", "-x", str(archive), str(folder)], work)
    return folder


def slug(text: str) -> str:
    """'ear of corn' -> 'ear-of-corn'."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower().replace("'", "")).split())


def characters(unified: str) -> str:
    """'1F336-FE0F' -> the emoji itself, without the variation selector, as CLDR spells its keys."""
    return "".join(chr(int(code, 16)) for code in unified.split("-") if code != "FE0F")


def images_by_name(emoji: Path, names: Path) -> dict[str, Path]:
    """English CLDR name -> the 64x64 PNG, for every emoji Google has drawn."""
    annotations = json.loads((names / "package/annotations/en/annotations.json").read_text(encoding="utf-8"))
    spoken = annotations["annotations"]["annotations"]
    entries = json.loads((emoji / "package/emoji.json").read_text(encoding="utf-8"))
    pictures = emoji / "package/img/google/64"
    named = ((spoken.get(characters(e["unified"])), e) for e in entries if e["has_img_google"])
    return {entry["tts"][0]: pictures / e["image"] for entry, e in named if entry and "tts" in entry}


def transcripts(words: Path) -> dict[str, str]:
    """Key -> what is said, without closing punctuation."""
    archive = words / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    lines = gzip.decompress(archive.read_bytes()).decode("utf-8").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    return {key.strip(): text.strip().rstrip(".!") for key, text in pairs}


def on_white(path: Path) -> Image.Image:
    with Image.open(path) as file:
        image = file.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def build_pictures(emoji: Path, names: Path, output: Path) -> list[Row]:
    known = images_by_name(emoji, names)
    wanted = [(category, name.strip()) for category, group in PICTURES.items() for name in group.split(",")]
    if missing := [name for _, name in wanted if name not in known]:
        raise SampleError(f"no picture in {EMOJI.label} for the names {missing}")
    rows = []
    for category, name in tqdm(wanted, desc="pictures", unit="file"):
        row = Row(f"pictures/{slug(name)}.png", name, category, EMOJI.label, "Apache-2.0", NAMES.label, "Unicode-3.0")
        on_white(known[name]).save(output / row.file, optimize=True)
        rows.append(row)
    return rows


def build_sounds(voice: Path, words: Path, output: Path) -> list[Row]:
    said = transcripts(words)
    wanted = [(category, key) for category, group in SOUNDS.items() for key in group.split()]
    if missing := [key for _, key in wanted if key not in said]:
        raise SampleError(f"no transcript in {WORDS.label} for {missing}")
    rows = []
    for category, key in tqdm(wanted, desc="sounds", unit="file"):
        samples, rate = sf.read(voice / f"usr/share/asterisk/sounds/en_US_f_Allison/{key}.wav", dtype="int16")
        if not SECONDS[0] <= len(samples) / rate <= SECONDS[1]:
            raise SampleError(f"{key} lasts {len(samples) / rate:.2f} s, outside {SECONDS}")
        licence = "CC-BY-SA-3.0"
        file = f"sounds/{slug(said[key])}.flac"
        row = Row(file, said[key], category, VOICE.label, licence, WORDS.label, licence)
        sf.write(output / row.file, samples, rate, format="FLAC", subtype="PCM_16")
        rows.append(row)
    return rows


def paragraphs(copyright_file: Path, keep: Iterable[str]) -> str:
    """The paragraphs of a Debian copyright file whose first line is in `keep`, verbatim."""
    blocks = {b.splitlines()[0]: b for b in copyright_file.read_text(encoding="utf-8").strip().split("\n\n")}
    if missing := [line for line in keep if line not in blocks]:
        raise SampleError(f"{copyright_file} has no paragraph {missing}")
    return "\n\n".join(blocks[line].rstrip() for line in keep) + "\n"


def write_licences(folders: dict[Package, Path], output: Path) -> None:
    """Each licence text as its own package carries it (Apache-2.0: as Debian's base-files does)."""
    apache = Path("/usr/share/common-licenses/Apache-2.0")
    if not apache.is_file():
        raise SampleError(f"{apache} is missing; install Debian's base-files")
    shutil.copyfile(apache, output / "LICENSES/Apache-2.0.txt")
    shutil.copyfile(folders[EMOJI] / "package/LICENSE", output / "LICENSES/MIT-emoji-datasource.txt")
    shutil.copyfile(folders[NAMES] / "package/LICENSE", output / "LICENSES/Unicode-3.0.txt")
    debian = folders[VOICE] / "usr/share/doc/asterisk-core-sounds-en-wav/copyright"
    header = "Format: http://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
    text = paragraphs(debian, [header, "Files: *", "License: CC-BY-SA-3.0"])
    (output / "LICENSES/CC-BY-SA-3.0-asterisk-core-sounds.txt").write_text(text, encoding="utf-8")


def write_rows(rows: Sequence[Row], text_name: str, path: Path) -> None:
    """One JSON object a line; `text` is called caption or transcript there."""
    if len({row.file for row in rows}) < len(rows) or len({row.text.lower() for row in rows}) < len(rows):
        raise SampleError(f"{path.name}: two items share a name")
    lines = [
        json.dumps(
            {key.replace("text", text_name, 1): value for key, value in asdict(row).items()}, ensure_ascii=False
        )
        for row in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_chats(folder: Path) -> None:
    """Write the questions about the sample as chats: `train.jsonl` and `new_pairs.jsonl`."""
    for name, samples in zip(("train", "new_pairs"), training_and_new_pairs(folder), strict=True):
        lines = [json.dumps(chat(sample, folder), ensure_ascii=False) + "\n" for sample in spread(samples)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def chat(sample: ChatSample, folder: Path) -> dict[str, Any]:
    """Return a question as a line of a chat file, with paths that start at the folder."""
    messages = sample.messages()
    for part in messages[0]["content"]:
        if "path" in part:
            part["path"] = Path(part["path"]).relative_to(folder).as_posix()
    return {"messages": messages, "task": TASKS[sample.question], "id": sample.about}


def spread(samples: Sequence[ChatSample]) -> list[ChatSample]:
    """Return the samples in an order in which the first N of them are spread evenly over all."""
    return [samples[i] for i in sorted(range(len(samples)), key=lambda i: i * GOLDEN_RATIO % 1)]


def replace(folder: Path, output: Path) -> None:
    """Put the finished folder in the place of the old one, so that a reader never meets half a sample."""
    old = output.with_name(output.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    folder.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def build(output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = tempfile.TemporaryDirectory(dir=output.parent, prefix=".sample-")  # one file system: rename is atomic
    with tempfile.TemporaryDirectory() as work, beside as near:
        folders = {
            package: download(package, Path(work)) for package in tqdm(PACKAGES, desc="download", unit="package")
        }
        fresh = Path(near) / "sample"
        for name in ("pictures", "sounds", "LICENSES"):
            (fresh / name).mkdir(parents=True)
        pictures = build_pictures(folders[EMOJI], folders[NAMES], fresh)
        sounds = build_sounds(folders[VOICE], folders[WORDS], fresh)
        write_rows(pictures, "caption", fresh / "pictures.jsonl")
        write_rows(sounds, "transcript", fresh / "sounds.jsonl")
        write_chats(fresh)
        write_licences(folders, fresh)
        if (note := DEFAULT_OUTPUT / README).is_file():
            shutil.copyfile(note, fresh / README)
        size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
        replace(fresh, output)
    print(f"{output}: {len(pictures)} pictures, {len(sounds)} sounds, {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder to replace (default: %(default)s)")
    try:
        build(parser.parse_args().output.resolve())
    except SampleError as error:
        raise SystemExit(f"build_sample: {error}") from error


if __name__ == "__main__":
    main()
