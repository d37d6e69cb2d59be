"""
transformers' ModelTesterMixin, ConfigTester and TrainingTesterMixin on models with each combination of towers.

The model with both towers is tested by every class; the others by one, and by every class among the slow tests.

Not run, as they ask for what the package has no use for: the tensor, expert and FSDP parallel mixins (they test
`base_model_*_plan` entries of models in their own list). PipelineTesterMixin runs in `test_common_pipelines.py`.
The generation suite is not in the source distribution: its mixin is empty here, see `fetch.py`.
"""

import unittest
from unittest import mock

import pytest
import torch
import transformers
from packaging import version
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from modeling_mm.configuration_mm import MMConfig
from modeling_mm.modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.retrieval import MMForRetrieval
from tests.transformers_common.mm_model_tester import MMModelTester, MMSidesTester

EVERY_CLASS = (MMModel, MMForConditionalGeneration, MMForSequenceClassification)


class MMCommonTests(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    all_model_classes = EVERY_CLASS
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

    def moved_by(self, model_class, change) -> torch.Tensor:
        """Return the greatest change of each row's output, (batch_size,), when `change` is made to the inputs."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = model_class(config).eval()
        changed = {name: tensor.clone() for name, tensor in inputs.items()}
        change(changed)
        with torch.no_grad():
            difference = model(**inputs)[0] - model(**changed)[0]
        return difference.abs().flatten(1).amax(-1)

    def media(self) -> list[str]:
        return ["pixel_values"] * self.sees + ["input_features"] * self.hears

    def test_media_move_every_output(self):
        """All comparisons here are of models that see and hear: with closed cross-attention they would hold anyway."""
        for model_class in self.all_model_classes:
            for name in self.media():
                moved = self.moved_by(model_class, lambda inputs, name=name: inputs[name].mul_(3.0))
                self.assertGreater(moved.min().item(), 1e-3, f"{name} of {model_class.__name__}")

    def test_media_of_one_row_move_that_row_alone(self):
        for model_class in self.all_model_classes:
            for name in self.media():
                moved = self.moved_by(model_class, lambda inputs, name=name: inputs[name][2].mul_(3.0))
                self.assertGreater(moved[2].item(), 1e-3)
                moved[2] = 0.0
                self.assertLess(moved.max().item(), 1e-5, f"{name} of {model_class.__name__}")

    def test_media_move_what_is_generated_at_every_step(self):
        """The stock generation suite, which is not in the source distribution, would not notice otherwise either."""
        for name in self.media():
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = MMForConditionalGeneration(config).eval()
            options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "output_logits": True}
            options["return_dict_in_generate"] = True
            one = model.generate(**inputs, **options)
            with torch.no_grad():
                again = model(
                    **{**inputs, "input_ids": one.sequences, "attention_mask": torch.ones_like(one.sequences)}
                ).logits[:, -5:-1]
            torch.testing.assert_close(torch.stack(one.logits, 1), again, atol=1e-4, rtol=1e-4)
            inputs[name] = 3.0 * inputs[name]
            inputs["input_ids"] = one.sequences
            inputs["attention_mask"] = torch.ones_like(one.sequences)
            with torch.no_grad():
                moved = (model(**inputs).logits[:, -5:-1] - again).abs().amax((0, 2))
            self.assertGreater(moved.min().item(), 1e-3, name)

    def test_no_token_sees_media_that_come_after_it(self):
        for model_class in (MMModel, MMForConditionalGeneration):
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config).eval()
            for name in self.media():
                first = (inputs["input_ids"][0] >= self.model_tester.image_token_id).nonzero()[0].item()
                with torch.no_grad():
                    before = model(**inputs)[0][:, :first]
                    after = model(**{**inputs, name: 3.0 * inputs[name]})[0][:, :first]
                self.assertTrue(torch.equal(before, after), f"{name} of {model_class.__name__}")

    def test_the_embedding_of_each_modality_moves_every_output(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = MMForConditionalGeneration(config).eval()
        connectors = [model.model.vision_connector] * self.sees + [model.model.audio_connector] * self.hears
        for connector in connectors:
            with torch.no_grad():
                before = model(**inputs).logits
                connector.modality.weight.add_(torch.linspace(-2, 2, connector.modality.weight.numel()))
                moved = (model(**inputs).logits - before).abs().flatten(1).amax(-1)
            self.assertGreater(moved.min().item(), 1e-3)

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

    def test_bc_torch_dtype(self):
        # It compares every weight of seven loaded pairs; one class is enough for an argument of `from_pretrained`.
        with mock.patch.object(type(self), "all_model_classes", (MMForConditionalGeneration,)):
            super().test_bc_torch_dtype()

    def test_training_overfit(self):
        # It reads `vocab_size` off the top of the config, where a composite config does not have it.
        with mock.patch.object(MMConfig, "vocab_size", MMModelTester.vocab_size, create=True):
            super().test_training_overfit()


class MMImageAudioTest(MMCommonTests, unittest.TestCase):
    pass


@pytest.mark.slow  # as are audio's: the model with both has their towers
class MMImageTest(MMCommonTests, unittest.TestCase):
    all_model_classes = (MMForConditionalGeneration,)
    hears = False


@pytest.mark.slow
class MMAudioTest(MMCommonTests, unittest.TestCase):
    all_model_classes = (MMForConditionalGeneration,)
    sees = False


class MMRetrievalTest(ModelTesterMixin, unittest.TestCase):
    """The head that embeds, as theirs test CLIP: texts, images and audio are sides, whose outputs are similarities."""

    all_model_classes = (MMForRetrieval,)
    additional_model_inputs = MMCommonTests.additional_model_inputs
    _is_composite = True
    has_attentions = False
    skip_test_image_features_output_shape = True  # theirs has the encoder's states, ours the decoder's
    skip_test_audio_features_output_shape = True

    def setUp(self):
        super().setUp()
        self.model_tester = MMSidesTester(self, sees=True, hears=True)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return inputs | ({"return_loss": True} if return_labels else {})

    @unittest.skip("its output has embeddings and similarities, as CLIP's")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("its output has embeddings and similarities, as CLIP's")
    def test_retain_grad_hidden_states_attentions(self):
        pass


class MMTextTest(MMCommonTests, unittest.TestCase):
    all_model_classes = (MMForConditionalGeneration,)
    sees = hears = False


@pytest.mark.slow
class MMImageEveryClassTest(MMImageTest):
    all_model_classes = EVERY_CLASS


@pytest.mark.slow
class MMAudioEveryClassTest(MMAudioTest):
    all_model_classes = EVERY_CLASS


@pytest.mark.slow
class MMTextEveryClassTest(MMTextTest):
    all_model_classes = EVERY_CLASS
