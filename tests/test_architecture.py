"""The house of the design: what may import what, what may ship to the Hub, what lies where."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "modeling_mm"
FLAT = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}
NESTED = sorted(path for path in PACKAGE.glob("*/**/*.py"))
SHIPPED_FROM = ("configuration_mm", "processing_mm", "modeling_mm", "retrieval", "pretraining", "pipelines")

BASE = {"code_tokens", "compat", "configuration_codec", "configuration_mm", "folders", "modalities", "sentence_files"}

CODECS = {"codec_interface", "audio_codecs", "image_codecs", "codecs"}
OWN_CODEC = {"bottlenecks", "codec_layers", "spectrograms", "modeling_codec"}

# A module may import from a lower floor, or from its own where that makes no circle.
FLOORS = (
    BASE,
    {"device_reads", "onednn", "layers", "int8", "loading", "attention", "masks", "outputs", "ranks", "suppression"},
    {
        "media_cache",
        "cross_attention",
        "decoder",
        "quick_steps",
        "encoder_padding",
        "encoder_shapes",
        "encoders",
        "feature_layers",
        "connectors",
        "tags",
        "losses",
        "head_loss",
        "contrastive",
        "fingerprints",
        *CODECS,
        *OWN_CODEC,
    },
    {
        "media",
        "joining",
        "conversion",
        "converted_weights",
        "adding",
        "codec_adding",
        "code_generation",
        "generation",
        "shared_prefix",
    },
    {"modeling_mm"},
    {"retrieval"},
    {"pretraining", "pretraining_batch"},
)
TASKS = {
    "pipeline_answers",
    "pipeline_classification",
    "pipeline_codes",
    "pipeline_features",
    "pipeline_speech",
    "pipeline_whisper",
    "pipeline_zero_shot",
}
PIPELINES = {"pipelines", "pipeline_base", *TASKS, "prompts", "transcripts", "whisper_generation"}
AUDIO_FILES = {"audio_files", "audio_av", "audio_containers", "audio_streams"}
CHAT = {"audio_streamer", "chat", "code_parts", "control_tokens"}
PLACES = {"boxes", "detections"}
VIDEOS = {"videos", "video_files", "video_parts"}
PROCESSING = {
    "processing_mm",
    "converted_processing",
    "audio",
    *AUDIO_FILES,
    "images",
    "image_files",
    "item_reader",
    "sources",
    "placeholders",
    "batching",
    *PLACES,
    *CHAT,
    *VIDEOS,
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports, of our own package and of others, wherever in the file."""
    package = list(path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return names


def own(path: Path) -> set[str]:
    """The flat modules of our package that a file imports."""
    parts = [name.split(".") for name in imports(path) if name.split(".")[0] == "modeling_mm"]
    return {part[1] for part in parts if len(part) > 1 and part[1] in FLAT}


def reachable(names) -> set[str]:
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += own(FLAT[name])
    return found


def test_every_flat_module_has_its_floor():
    placed = set().union(*FLOORS) | PROCESSING | PIPELINES | {"registration"}
    assert set(FLAT) == placed


@pytest.mark.parametrize("name", sorted(set().union(*FLOORS)))
def test_model_code_imports_downwards(name):
    floor = next(i for i, names in enumerate(FLOORS) if name in names)
    allowed = set().union(*FLOORS[: floor + 1])
    assert own(FLAT[name]) <= allowed - {name}


def test_no_module_imports_itself_through_others():
    for name in FLAT:
        assert name not in reachable(own(FLAT[name])), name


@pytest.mark.parametrize("name", sorted(PROCESSING))
def test_processing_imports_configuration_only(name):
    assert own(FLAT[name]) <= (PROCESSING | BASE) - {name}


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_pipelines_import_processing_and_configuration_and_no_other_flat_module_imports_them(name):
    assert own(FLAT[name]) <= PROCESSING | PIPELINES | BASE
    assert {other for other in FLAT if name in own(FLAT[other])} <= PIPELINES


def test_modeling_never_imports_processing_nor_processing_modeling():
    assert not reachable(["modeling_mm"]) & PROCESSING
    assert not reachable(["processing_mm"]) & (set().union(*FLOORS) - BASE)


def test_configuration_imports_five_modules_alone_and_no_torch():
    """The config of our codec is one of them, which AutoConfig does not know where the package is not installed."""
    inside = {"code_tokens", "configuration_codec", "sentence_files"}
    assert own(FLAT["configuration_mm"]) == {"modalities", "compat"} | inside
    assert all(own(FLAT[name]) == {"modalities"} for name in inside)
    assert own(FLAT["modalities"]) == own(FLAT["compat"]) == set()
    for module in ("configuration_mm", "configuration_codec", "code_tokens"):
        assert not any(name.split(".")[0] == "torch" for name in imports(FLAT[module]))


def test_nothing_flat_imports_what_is_nested():
    nested = {path.relative_to(PACKAGE).parts[0] for path in NESTED}
    for name, path in FLAT.items():
        parts = [i.split(".") for i in imports(path) if i.split(".")[0] == "modeling_mm"]
        assert not {part[1] for part in parts if len(part) > 1} & nested, name


# The nested packages that each may import; `training` lies below `hub`, and `hub` below `recipes`.
UPWARDS = ("utils", "data", "evaluation", "training", "hub", "recipes", "cli")
# On `utils`, `data` and `evaluation` alone.
BESIDE = {"explain": (), "deploy": (), "search": (), "serving": ("explain", "search")}
MAY_IMPORT = {
    **{name: {*UPWARDS[:floor], *(BESIDE if name == "cli" else ())} for floor, name in enumerate(UPWARDS)},
    **{name: {*UPWARDS[:3], *others} for name, others in BESIDE.items()},
}


def packages(path: Path) -> set[str]:
    """The nested packages of ours that a file imports."""
    parts = [name.split(".") for name in imports(path) if name.split(".")[0] == "modeling_mm"]
    return {part[1] for part in parts if len(part) > 1 and (PACKAGE / part[1]).is_dir()}


@pytest.mark.parametrize("path", NESTED, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nested_packages_import_downwards(path):
    name = path.relative_to(PACKAGE).parts[0]
    assert packages(path) <= MAY_IMPORT[name] | {name}


def test_every_nested_package_has_its_place():
    assert {path.relative_to(PACKAGE).parts[0] for path in NESTED} <= set(MAY_IMPORT)


def test_nothing_in_the_package_imports_scripts_or_tests():
    for path in [*FLAT.values(), *NESTED, PACKAGE / "__init__.py"]:
        assert not {name.split(".")[0] for name in imports(path)} & {"scripts", "tests"}, path


def test_private_names_of_transformers_are_imported_by_compat_alone():
    for path in {*FLAT.values(), *NESTED} - {FLAT["compat"]}:
        theirs = [name.split(".") for name in imports(path) if name.startswith("transformers.")]
        assert not [name for name in theirs if name[-1].startswith("_")], path


# Packages of scripts, and those that each may import.
SCRIPTS_MAY_IMPORT = {"workshop": ("workshop",), "tasks": ("tasks", "workshop")}


def test_no_script_imports_another():
    for path in sorted((ROOT / "scripts").glob("**/*.py")):
        found = {name for name in imports(path) if name.split(".")[0] in {"scripts", "tests"}}
        packages = SCRIPTS_MAY_IMPORT.get(path.parent.name, ())
        inside = {name for name in found if name.split(".")[1:2] and name.split(".")[1] in packages}
        assert not found - inside, path


def test_model_code_holds_no_training_code():
    forbidden = re.compile(
        r"^(torch\.optim|transformers\.(trainer|training_args|optimization)|accelerate|datasets|peft|trl)"
    )
    for name in set().union(*FLOORS):
        assert not [found for found in imports(FLAT[name]) if forbidden.match(found)], name


# ---- What ships to the Hub ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FLAT))
def test_flat_modules_import_each_other_with_a_single_dot_and_a_name(name):
    for node in ast.walk(tree(FLAT[name])):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: more than one dot"
            assert node.module, f"line {node.lineno}: `from . import x` is not copied to the Hub"
            assert "." not in node.module, f"line {node.lineno}: a nested module stays home"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            assert not any(i.split(".")[0] == "modeling_mm" for i in names), f"line {node.lineno}: an absolute import"


@pytest.mark.parametrize("name", sorted(FLAT))
def test_what_the_hubs_loader_reads_as_imports_are_imports(name):
    """It reads lines, docstrings too, with this expression (transformers.dynamic_module_utils)."""
    text = FLAT[name].read_text(encoding="utf-8")
    read = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE))
    read |= set(re.findall(r"^\s*import\s+\.(\S+)\s*$", text, re.MULTILINE))
    assert read == {
        node.module for node in ast.walk(tree(FLAT[name])) if isinstance(node, ast.ImportFrom) and node.level
    }
    for line, content in enumerate(text.splitlines(), 1):
        in_text = content.strip().startswith("from .") and not re.match(r"\s*from \.\w+ import", content)
        assert not in_text, f"line {line} starts with `from .`"


def test_the_shipped_code_is_whole_and_leaves_the_registration_at_home():
    shipped = reachable(SHIPPED_FROM)
    assert "registration" not in shipped
    assert shipped == set(FLAT) - {"registration"}


def test_shipped_code_needs_the_core_dependencies_only():
    """Else the loader refuses the folder on a machine that lacks one: it looks at imports outside `try`."""
    core = {"torch", "transformers", "numpy", "PIL", "soundfile", "soxr", "jinja2"}
    core |= {"huggingface_hub", "packaging", "safetensors", "tokenizers"}  # transformers brings them
    import sys

    for name in reachable(SHIPPED_FROM):
        for node in ast.iter_child_nodes(tree(FLAT[name])):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots = {node.module.split(".")[0]}
            else:
                continue
            assert roots <= core | set(sys.stdlib_module_names), name


# ---- Where things lie -----------------------------------------------------------------------------------------------

FOLDERS = {"modeling_mm", "configuration", "processing", "scripts", "tests", "model_cards", "findings"}
FILES = {"pyproject.toml", "README.md", "LICENSE", "Makefile"}
LATER_FILES = {"CHANGELOG.md", "CONTRIBUTING.md"}
MADE = {"outputs", "build", "dist", "__pycache__"}  # ignored by git


def test_the_top_level_is_the_designs():
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - MADE
    folders = {name for name in names if (ROOT / name).is_dir() and not name.endswith(".egg-info")}
    files = {name for name in names if (ROOT / name).is_file()}
    assert folders <= FOLDERS
    assert {name for name in files - FILES - LATER_FILES if not re.fullmatch(r"requirements.*\.lock", name)} == set()


@pytest.mark.parametrize("name", sorted(FOLDERS | FILES))
def test_the_top_level_is_complete(name):
    assert (ROOT / name).exists()


LINKS = ("configuration/configuration_mm.py", "processing/processing_mm.py", "processing/audio.py",
         "processing/chat_template.jinja")  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
def test_links_are_there(link):
    assert (ROOT / link).is_symlink() or (ROOT / link).is_file()


@pytest.mark.parametrize("folder", ["configuration", "processing"])
def test_links_point_at_the_file_of_their_name_in_the_package(folder):
    """And every code file in the two folders is a link; a checkout without links has the target as text."""
    for path in (ROOT / folder).iterdir():
        if path.is_dir() or path.suffix not in (".py", ".jinja"):
            continue
        target = f"../modeling_mm/{path.name}"
        if path.is_symlink():
            assert path.readlink().as_posix() == target
        else:
            assert path.read_text().strip() == target, f"{path} is a copy"
        assert (PACKAGE / path.name).is_file()


def test_nothing_imports_through_a_link():
    for path in [*FLAT.values(), *NESTED, *(ROOT / "scripts").glob("**/*.py"), *(ROOT / "tests").glob("**/*.py")]:
        assert not {name.split(".")[0] for name in imports(path)} & {"configuration", "processing"}, path


def test_every_module_has_a_docstring_and_our_public_functions_too():
    for name, path in FLAT.items():
        assert ast.get_docstring(tree(path)), name


# ---- Faces ----------------------------------------------------------------------------------------------------------

NESTED_PACKAGES = {path.parts[len(PACKAGE.parts)] for path in NESTED}


def imports_past_a_face(path: Path) -> set[str]:
    """Modules of nested packages that a file imports directly; tests of a package may look into that package."""
    own_package = path.relative_to(ROOT / "tests").parts[0] if path.is_relative_to(ROOT / "tests") else None
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            parts = node.module.split(".")
            is_past = len(parts) > 2 and parts[0] == "modeling_mm" and parts[1] in NESTED_PACKAGES
            if is_past and own_package not in (parts[1], f"test_{parts[1]}.py"):
                found.add(node.module)
    return found


@pytest.mark.parametrize("folder", ["scripts", "tests"])
def test_scripts_and_tests_of_other_packages_import_public_faces(folder):
    past = {str(path.relative_to(ROOT)): imports_past_a_face(path) for path in (ROOT / folder).glob("**/*.py")}
    assert not {path: sorted(names) for path, names in past.items() if names}


@pytest.mark.parametrize("name", sorted(NESTED_PACKAGES))
def test_a_face_lists_its_names(name):
    """Names in `__all__` are there; some of serving's are imported on first use, as they need an extra."""
    face = (PACKAGE / name / "__init__.py").read_text(encoding="utf-8")
    listed = re.search(r"__all__ = \[(.*?)\]", face, re.DOTALL)
    assert listed, name
    names = re.findall(r'"(\w+)"', listed[1])
    assert names and all(len(re.findall(rf"\b{each}\b", face)) >= 2 for each in names)
