"""registration.py: every Auto class knows "mm" in every order of imports, and `import modeling_mm` stays cheap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_mm
from tests.fakes.quick_python import BARE_PYTHON

ROOT = Path(__file__).resolve().parents[1]

# Imports before the checks, each in a new process.
ORDERS = {
    "before transformers": "import modeling_mm",
    "after transformers": "import transformers, modeling_mm",
    "after AutoModel was used": (
        "import transformers; tiny = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9); "
        "transformers.AutoModel.from_config(tiny); import modeling_mm"
    ),
    "after AutoProcessor was touched": "from transformers import AutoProcessor; import modeling_mm",
    "only a module of ours": "import modeling_mm.configuration_mm",
}

CHECKS = """
import json, sys
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers import AutoModelForMultimodalLM, AutoModelForSequenceClassification, AutoProcessor, GPT2Config
import modeling_mm
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

found = {"AutoProcessor by name": processor_class_from_name("MMProcessor").__name__}  # before any config of ours
text = GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9, bos_token_id=0, eos_token_id=0)
config = AutoConfig.for_model("mm", text_config=text)
found["AutoConfig"] = type(config) is modeling_mm.MMConfig
for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM,
             AutoModelForSequenceClassification, transformers.AutoModelForPreTraining,
             transformers.AutoModelForZeroShotImageClassification):
    found[auto.__name__] = type(auto.from_config(config)).__name__
found["AutoProcessor"] = PROCESSOR_MAPPING[type(config)].__name__
# Other models are found as before.
found["others"] = type(AutoModel.from_config(text)).__name__
assert all(getattr(modeling_mm, name) is not None for name in modeling_mm.__all__)
print(json.dumps(found))
"""

EXPECTED = {
    "AutoConfig": True,
    "AutoModel": "MMModel",
    "AutoModelForCausalLM": "MMForConditionalGeneration",
    "AutoModelForImageTextToText": "MMForConditionalGeneration",
    "AutoModelForMultimodalLM": "MMForConditionalGeneration",
    "AutoModelForPreTraining": "MMForPreTraining",
    "AutoModelForSequenceClassification": "MMForSequenceClassification",
    "AutoModelForZeroShotImageClassification": "MMForRetrieval",
    "AutoProcessor": "MMProcessor",
    "AutoProcessor by name": "MMProcessor",
    "others": "GPT2Model",
}


def run(code: str, python: str = sys.executable) -> str:
    """The last line that a new process prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_us_in_every_order_of_imports(order):
    assert json.loads(run(ORDERS[order] + "\n" + CHECKS, BARE_PYTHON)) == EXPECTED


def test_importing_the_package_imports_no_torch_and_none_of_its_modules():
    loaded = json.loads(run("import json, sys, modeling_mm; print(json.dumps(sorted(sys.modules)))"))
    assert not {"torch", "soundfile", "transformers.configuration_utils", "transformers.pipelines"} & set(loaded)
    assert [name for name in loaded if name.startswith("modeling_mm")] == ["modeling_mm", "modeling_mm.registration"]


def test_importing_the_package_adds_a_fraction_of_a_second_to_transformers():
    """0.2 s are usual, the folders of `transformers.models` being listed; torch alone would add 1 s."""
    code = "import time, transformers; start = time.process_time(); import modeling_mm; "
    assert min(float(run(code + "print(time.process_time() - start)")) for _ in range(3)) < 0.5


def test_public_names_are_listed_and_lazy():
    code = """
import sys, modeling_mm
assert set(modeling_mm.__all__) <= set(dir(modeling_mm))
assert "torch" not in sys.modules
try:
    modeling_mm.MMNothing
except AttributeError as error:
    print(error)
"""
    assert run(code) == "module 'modeling_mm' has no attribute 'MMNothing'"


def test_the_package_can_be_reloaded():
    """As notebooks with autoreload do."""
    code = """
import importlib, modeling_mm
from transformers import AutoConfig, AutoModel
AutoConfig.for_model("mm")
importlib.reload(modeling_mm)
importlib.reload(modeling_mm.registration)
text = dict(n_layer=1, n_embd=8, n_head=1, vocab_size=9, bos_token_id=0, eos_token_id=0)
print(type(AutoModel.from_config(AutoConfig.for_model("mm", text_config=text))).__name__)
"""
    assert run(code, BARE_PYTHON) == "MMModel"


def test_a_wheel_and_a_checkout_have_the_version_of_one_source():
    # In a new process, as setuptools refuses to be imported after the standard library's distutils.
    script = (
        "from setuptools.config.pyprojecttoml import read_configuration\n"
        "project = read_configuration('pyproject.toml')['project']\n"
        "print('version' in project['dynamic'], project['version'])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", modeling_mm.__version__]
