"""transformers' ProcessorTesterMixin on MMProcessor with an image processor, a feature extractor and a tokenizer."""

import re
import unittest

from transformers_tests.test_processing_common import ProcessorTesterMixin

from modeling_mm.processing_mm import MMProcessor
from tests.fakes.processor_parts import make_bpe, make_vit, make_whisper


class MMProcessorCommonTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MMProcessor

    def setUp(self):
        super().setUp()
        if re.fullmatch(r"test_subprocessor_defaults_\d_(images|audio)", self._testMethodName):
            self.skipTest("a row may have several media, so ours have one dimension more than the part's own tensors")

    @classmethod
    def _setup_image_processor(cls):
        return make_vit()

    @classmethod
    def _setup_feature_extractor(cls):
        return make_whisper()

    @classmethod
    def _setup_tokenizer(cls):
        return make_bpe()
