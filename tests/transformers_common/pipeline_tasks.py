"""Inputs of each task for transformers' PipelineTesterMixin, whose task tests are not distributed."""

from transformers import pipeline

from tests.fakes.pipeline_parts import GREEDY, chat, image, noise


class TaskTest:
    """In the form that the mixin calls: a pipeline of given parts with examples, then what must hold of one answer."""

    task: str
    options: dict = {}
    reads_media = True
    field = "generated_text"

    def examples(self) -> list:
        return ["a cat and a dog", "hello"]

    def get_test_pipeline(self, model, tokenizer=None, dtype="float32", **parts):
        parts = parts if self.reads_media else {}  # `pipeline` itself gives them to none that reads text alone
        made = pipeline(self.task, model=model, tokenizer=tokenizer, dtype=dtype, **parts, **self.options)
        return made, self.examples()

    def run_pipeline_test(self, made, examples):
        for example in examples:
            answer = made(example)
            answer = answer[0] if isinstance(answer, list) else answer
            assert self.field in answer, answer


class TextGeneration(TaskTest):
    task, options, reads_media = "text-generation", {"max_new_tokens": 3}, False


class ImageTextToText(TaskTest):
    task, options = "image-text-to-text", {"generate_kwargs": GREEDY}

    def examples(self):
        return [chat(image(), "a cat?"), chat("hello")]


class AnyToAny(ImageTextToText):
    task = "any-to-any"


class SpeechRecognition(TaskTest):
    task, field, options = "automatic-speech-recognition", "text", {"max_new_tokens": 3}

    def examples(self):
        return [noise(seed=seed) for seed in range(2)]


class TextClassification(TaskTest):
    task, field = "text-classification", "label"


class FeatureExtraction(TaskTest):
    task, reads_media = "feature-extraction", False

    def run_pipeline_test(self, made, examples):
        for example in examples:
            (tokens,) = made(example)
            assert len(tokens[0]) == made.model.config.text_config.n_embd
