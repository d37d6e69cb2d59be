"""transformers' PipelineTesterMixin on checkpoints made here; `TRANSFORMERS_TINY_MODEL_PATH` says where they lie."""

import json
import os
import shutil
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import transformers

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel, MMProcessor
from tests.fakes.pipeline_parts import build
from tests.transformers_common import pipeline_tasks

FOLDER = Path(tempfile.mkdtemp(prefix="tiny-mm-"))
CLASSES = (MMModel, MMForConditionalGeneration, MMForSequenceClassification)
PARTS = {"tokenizer_classes": ["PreTrainedTokenizerFast"]}
PARTS["processor_classes"] = ["ViTImageProcessorPil", "WhisperFeatureExtractor"]
TASKS = {
    "any-to-any": pipeline_tasks.AnyToAny,
    "automatic-speech-recognition": pipeline_tasks.SpeechRecognition,
    "feature-extraction": pipeline_tasks.FeatureExtraction,
    "image-text-to-text": pipeline_tasks.ImageTextToText,
    "text-classification": pipeline_tasks.TextClassification,
    "text-generation": pipeline_tasks.TextGeneration,
}


class Names:
    """Namespace in which the mixin looks up names of processors: transformers, and ours."""

    MMProcessor = MMProcessor

    def __getattr__(self, name):
        return getattr(transformers, name)


def import_mixin():
    """Import it with our folder; it reads the list of checkpoints, and transformers' sources, at once."""
    (FOLDER / "reports").mkdir()
    summary = {cls.__name__: PARTS for cls in CLASSES}
    (FOLDER / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
    with (
        mock.patch.dict(os.environ, {"TRANSFORMERS_TINY_MODEL_PATH": str(FOLDER)}),
        mock.patch("transformers.utils.direct_transformers_import", lambda path: Names()),
    ):
        from transformers_tests import test_pipeline_mixin
    for task, test in TASKS.items():
        test_pipeline_mixin.pipeline_test_mapping[task] = {"test": f"{test.__module__}.{test.__name__}"}
    return test_pipeline_mixin.PipelineTesterMixin


class MMPipelineTest(import_mixin(), unittest.TestCase):
    pipeline_model_mapping = {
        **dict.fromkeys(TASKS, MMForConditionalGeneration),
        "feature-extraction": MMModel,
        "text-classification": MMForSequenceClassification,
    }

    @classmethod
    def setUpClass(cls):
        for model_class in CLASSES:
            model, processor = build(model_class)
            model.save_pretrained(FOLDER / "mm" / model_class.__name__)
            processor.save_pretrained(FOLDER / "mm" / model_class.__name__)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(FOLDER)

    def run_task_tests(self, task, dtype="float32"):
        """Ours must run: a skip for a missing part would look like a pass."""
        if task not in TASKS:
            self.skipTest("not a task of ours")
        try:
            super().run_task_tests(task, dtype)
        except unittest.SkipTest as skipped:
            raise AssertionError(f"{task}: {skipped}") from skipped
