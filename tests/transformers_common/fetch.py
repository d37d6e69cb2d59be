"""Bring transformers' own common tests to this machine: `python tests/transformers_common/fetch.py`.

They are in the source distribution of transformers on PyPI, not in its wheel. This module downloads the one that fits
the installed version once, into `.cache/` (never committed), and unpacks its `tests` folder as the package
`transformers_tests`, a name that no other `tests` folder has. `conftest.py` beside this file calls `make_importable`.

The source distribution leaves out some files that the common tests import. `STAND_INS` fills these gaps, each with the
least that lets the import pass: a missing suite becomes an empty mixin, so it runs nothing and claims nothing.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from filelock import FileLock
from PIL import Image

PACKAGE = "transformers_tests"
CACHE = Path(__file__).resolve().parents[2] / ".cache"
ATTEMPTS = 4

MARK = "# Stand-in written by tests/transformers_common/fetch.py: the source distribution lacks this file.\n"
# Path below `transformers_tests` -> contents. Written only where the distribution has no such file.
STAND_INS = {
    "__init__.py": "",
    # test_modeling_common.py: ModelTesterMixin inherits both.
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # test_configuration_common.py: arguments that ConfigTester tries on configs without sub-configs, so never on ours.
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    # test_processing_common.py imports it from the folder above the package; there it looks up files that were
    # downloaded for their CI. Here it gives a picture and a sound of our own for those on the Hub.
    "../fetch_hub_objects_for_ci.py": """from pathlib import Path

KINDS = {".png": "picture.png", ".jpg": "picture.png", ".mp3": "sound.wav", ".wav": "sound.wav"}


def url_to_local_path(url, return_url_if_not_found=True):
    name = KINDS.get(Path(url).suffix)
    return url if name is None else str(Path(__file__).with_name(name))
""",
}


def transformers_version() -> str:
    return importlib.metadata.version("transformers")


def make_importable() -> Path:
    """Fetch the tests if they are not here yet, put them on `sys.path`, return the folder that holds the package."""
    root = fetch()
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return root


def fetch() -> Path:
    version = transformers_version()
    root = CACHE / f"transformers-{version}"
    CACHE.mkdir(parents=True, exist_ok=True)
    # Test workers start together: the first one fetches, the others wait here.
    with FileLock(CACHE / "transformers-tests.lock"):
        if not (root / PACKAGE / "test_modeling_common.py").is_file():
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                unpacked = unpack(download(version, Path(folder)), Path(folder) / "unpacked")
                shutil.rmtree(root, ignore_errors=True)
                # One rename, so that a run that is broken off leaves no half of a copy behind.
                os.replace(unpacked, root)
        write_stand_ins(root)
        write_media(root)
    return root


def download(version: str, folder: Path) -> Path:
    """The source distribution as a file in `folder`. Only its archive is wanted; pip also reads its metadata."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder), f"transformers=={version}"]
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        archives = list(folder.glob("transformers-*.tar.gz"))
        if archives:  # also when pip failed later, while it read the metadata
            return archives[0]
        if attempt < ATTEMPTS:
            time.sleep(5 * attempt)
    raise RuntimeError(
        f"The common tests of transformers {version} could not be fetched: {ATTEMPTS} times\n  {' '.join(command)}\n"
        f"failed, at last with\n{done.stdout.decode(errors='replace')}\n"
        "They come from PyPI once and are kept in .cache/. Without network run the other tests alone: "
        "pytest --ignore=tests/transformers_common"
    )


def unpack(archive: Path, target: Path) -> Path:
    """Write the archive's `tests` folder to `target/transformers_tests`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts  # transformers-X.Y.Z, tests, ...
            if member.isfile() and len(parts) > 2 and parts[1] == "tests" and ".." not in parts:
                path = target.joinpath(PACKAGE, *parts[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
    if not (target / PACKAGE / "test_modeling_common.py").is_file():
        raise RuntimeError(f"{archive.name} holds no tests/test_modeling_common.py: does this release still ship it?")
    return target


def write_stand_ins(root: Path) -> None:
    for name, contents in STAND_INS.items():
        path, text = root / PACKAGE / name, MARK + contents
        if path.is_file() and (path.read_text() == text or not path.read_text().startswith(MARK)):
            continue  # up to date, or transformers' own
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_media(root: Path) -> None:
    """What the stand-in for `fetch_hub_objects_for_ci.py` names: 64 x 48 pixels, half a second of a rising tone."""
    if (root / "sound.wav").is_file():
        return
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(root / "picture.png")
    rate = 16_000
    times = np.arange(rate // 2) / rate
    soundfile.write(root / "sound.wav", 0.5 * np.sin(2 * np.pi * (300 + 400 * times) * times), rate)


if __name__ == "__main__":
    print(f"transformers' common tests: {os.path.relpath(fetch())}")
