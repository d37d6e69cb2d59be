"""A recipe that runs in seconds, for the tests of what follows recipes."""

from pathlib import Path
from typing import Any

from modeling_mm.recipes import Recipe
from modeling_mm.utils import build, replace_value

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = str(ROOT / "processing" / "corpora" / "sample")


def plain_recipe(folder: Path, **training: Any) -> dict[str, Any]:
    """As YAML has it: the tiny preset on 12 questions of the sample, for 4 steps."""
    source = {"source": SAMPLE, "limit": 12}
    return {
        "model": {
            "preset": str(ROOT / "configuration" / "presets" / "tiny.json"),
            "processor": str(ROOT / "configuration" / "presets" / "tiny-processor"),
        },
        "data": {"train": [source], "evaluation": [source]},
        "training": {
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "per_device_train_batch_size": 6,
            "per_device_eval_batch_size": 12,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            **training,
        },
    }


def recipe(folder: Path, values: dict[str, Any] | None = None, **training: Any) -> Recipe:
    """`plain_recipe` with other values under dotted keys."""
    plain: Any = plain_recipe(folder, **training)
    for key, value in (values or {}).items():
        plain = replace_value(plain, key, value)
    return build(Recipe, plain)
