"""
transformers' ModelTesterMixin, ConfigTester and TrainingTesterMixin on models with each combination of towers.

Not run, as they ask for what the package has no use for: the tensor, expert and FSDP parallel mixins (they test
`base_model_*_plan` entries of models in their own list) and PipelineTesterMixin (tiny checkpoints from the Hub).
The generation suite is not in the source distribution: its mixin is empty here, see `fetch.py`.
"""

import unittest
from unittest import mock

import torch
import transformers
from packaging import version
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from modeling_mm.configuration_mm import MMConfig
from modeling_mm.modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from tests.transformers_common.mm_model_tester import MMModelTester


class MMCommonTests(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    all_model_classes = (MMModel, MMForConditionalGeneration, MMForSequenceClassification)
    additional_model_inputs = ["pixel_values", "input_features", "feature_attention_mask"]
    test_can_init_all_missing_weights_before_2023 = True  # run it, whatever year our files name
    _is_composite = True
    sees = hears = True

    def setUp(self):
        super().setUp()
        for tower, present in (("image", self.sees), ("audio", self.hears)):
            if not present and self._testMethodName.startswith(f"test_get_{tower}_features"):
                self.skipTest(f"this variant has no {tower} tower")
        self.model_tester = MMModelTester(self, sees=self.sees, hears=self.hears)

    def test_config(self):
        fields = {"cross_attention_interval": 2, "cross_attention_layers": [1, 3], "vision_connector": "perceiver"}
        ConfigTester(self, config_class=MMConfig, has_text_modality=False, **fields).run_common_tests()

    def test_config_with_towers(self):
        """The tests of composite configs again, with this variant's sub-configs instead of the defaults."""
        config = self.model_tester.get_config().to_dict()
        tester = ConfigTester(self, config_class=MMConfig, has_text_modality=False, **config)
        tester.create_and_test_config_from_and_save_pretrained()
        tester.create_and_test_config_from_and_save_pretrained_subfolder()
        tester.create_and_test_config_from_and_save_pretrained_composite()
        tester.create_and_test_config_from_pretrained_custom_kwargs()

    def test_load_with_mismatched_shapes(self):
        # It shrinks the vocabulary to 10 and reads random ids: the placeholders move below 10, the ids below them.
        self.model_tester.image_token_id, self.model_tester.audio_token_id = 8, 9
        module = "transformers_tests.test_modeling_common"
        with mock.patch(f"{module}.ids_tensor", lambda shape, vocab_size: torch.randint(8, shape)):
            super().test_load_with_mismatched_shapes()

    def test_sdpa_can_dispatch_composite_models(self):
        if not (self.sees and self.hears) and version.parse(transformers.__version__) < version.parse("5.20"):
            self.skipTest("before 5.20 it takes an absent tower, which is None, for one to look into")
        super().test_sdpa_can_dispatch_composite_models()

    def test_training_overfit(self):
        # It reads `vocab_size` off the top of the config, where a composite config does not have it.
        with mock.patch.object(MMConfig, "vocab_size", MMModelTester.vocab_size, create=True):
            super().test_training_overfit()


class MMImageAudioTest(MMCommonTests, unittest.TestCase):
    pass


class MMImageTest(MMCommonTests, unittest.TestCase):
    hears = False


class MMAudioTest(MMCommonTests, unittest.TestCase):
    sees = False


class MMTextTest(MMCommonTests, unittest.TestCase):
    sees = hears = False
