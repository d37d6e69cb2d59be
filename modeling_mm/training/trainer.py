# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The stock `Trainer` with answers in evaluation and a learning rate for each part."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import ProcessorMixin, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data.chat_row import ChatRow, to_row
from ..evaluation.metrics import answer_batch, prompt_inputs, score
from .arguments import RATE_OF, MMTrainingArguments
from .callbacks import ProcessCountCallback, SetEpochCallback, ThawCallback
from .checkpoints import last_whole_checkpoint
from .collator import IGNORED, ChatCollator
from .freezing import average_gradients, frozen_parameters, parts_of
from .sampling import MediaLengthGroupedSampler, media_size

# Options in which an optimizer class of its own making brings its own groups of parameters.
OWN_GROUPS = {"params", "model", "optimizer_dict"}


@dataclass(frozen=True)
class Answer:
    """What a model said to the prompt of a row, and what would have been right."""

    row: int
    task: str | None
    answer: str
    truth: str


class MMTrainer(Trainer):
    """
    A `transformers.Trainer` with two things more: it answers in evaluation, and each part has its learning rate.

    With `predict_with_generate` evaluation and prediction also answer the prompts of the data set, in batches and with
    every process taking its share, and add `{prefix}_{metric}` and `{prefix}_{task}_{metric}` to the metrics. So
    `metric_for_best_model` and early stopping can use them. The rest is the stock `Trainer`'s.

    A [`ThawCallback`] among the `callbacks` keeps parts frozen until a step.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, processing_class, kwargs:
            as for `Trainer`; `args` are [`MMTrainingArguments`], `processing_class` is the processor, and
            `data_collator` is by default `ChatCollator(processing_class)`, for data sets of chats. A collator with a
            method `prompt_batch(rows)`, `ChatRow`s -> what `generate` takes, padded on the left, is asked for the
            prompts too; otherwise the processor is.

    Raises:
        ValueError: where `predict_with_generate` lacks what it needs; with what that is.
        ImportError: where the library of a metric is not installed.
    """

    args: MMTrainingArguments
    data_collator: Any
    optimizer_cls_and_kwargs: Any

    def __init__(
        self,
        model: nn.Module | None = None,
        args: MMTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        args = MMTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, MMTrainingArguments):
            raise ValueError(
                f"MMTrainer takes MMTrainingArguments, got {type(args).__name__}; they are the same with more fields."
            )
        if data_collator is None and isinstance(processing_class, ProcessorMixin):
            data_collator = ChatCollator(processing_class)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        self.add_callback(SetEpochCallback())
        self.add_callback(ProcessCountCallback())
        # Trainable parameters that were frozen when DDP wrapped the model.
        self.unwatched_parameters: list[nn.Parameter] = []
        if args.predict_with_generate:
            check_can_answer(self.model, self.processor)
            for name in args.metrics:
                score(name, ["a word"], ["a word"])  # a missing library is better missed now
            for dataset in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
                if is_numbered(dataset) and len(dataset) > 0:
                    chat_row(dataset[0], 0)

    @property
    def processor(self) -> Any:
        """The processor that was given, or else the collator's."""
        return self.processing_class or getattr(self.data_collator, "processor", None)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        As the stock one; with `resume_from_checkpoint=True` from the last checkpoint that is whole: one that was being
        written when the run was killed is passed over.

        Raises:
            ValueError: where there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir} holds no checkpoint that was written to its end. Leave "
                    "resume_from_checkpoint out to start anew."
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # ---- A learning rate for each part ------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """
        The optimizer of the arguments, with a group for each part with and one without weight decay.

        Raises:
            ValueError: for learning rates of parts with an optimizer that groups the parameters itself.
        """
        model = self.model if model is None else model
        thawing = [callback for callback in self.callback_handler.callbacks if isinstance(callback, ThawCallback)]
        for schedule in thawing:
            schedule.apply(model, self.state.global_step)
        if self.model_wrapped is self.model:
            self.unwatched_parameters = frozen_parameters(model)
        given = self.optimizer_cls_and_kwargs
        optimizer_class, options = given or self.get_optimizer_cls_and_kwargs(self.args, model)
        is_plain = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
        if is_plain and not OWN_GROUPS & options.keys():
            held = {id(parameter) for schedule in thawing for parameter in schedule.parameters(model)}
            groups = parameter_groups(model, set(self.get_decay_parameter_names(model)), self.args, held)
            self.optimizer_cls_and_kwargs = (optimizer_class, {**options, "params": groups})
        elif thawing or any(getattr(self.args, name) is not None for name in RATE_OF.values()):
            raise ValueError(
                f"The optimizer {self.args.optim} groups the parameters itself, so that parts can have no learning "
                "rates of their own and cannot thaw. Use another (such as adamw_torch), or leave both out."
            )
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = given

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The stock step; parameters that thawed under DDP have their gradients averaged, as all others have."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if isinstance(model, nn.parallel.DistributedDataParallel) and self.accelerator.sync_gradients:
            average_gradients([parameter for parameter in self.unwatched_parameters if parameter.requires_grad])
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The stock loss; where nobody asks for the logits, they are made only of what is to be learned."""
        is_stock = self.label_smoother is None and self.compute_loss_func is None
        if is_stock and not return_outputs:
            inputs = with_answers_only(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    # ---- Batches of alike samples -----------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_media or not hasattr(train_dataset, "__getitem__"):
            return super()._get_train_sampler(train_dataset)
        size_of = getattr(self.data_collator, "media_size", media_size)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return MediaLengthGroupedSampler(
            train_dataset, self.args.train_batch_size * self.args.world_size, size_of, seed
        )

    # ---- Answers in evaluation --------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """As the stock one, without what the collator does for training alone (`for_evaluation`)."""
        with self.collating_for_evaluation():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        """As `get_eval_dataloader`."""
        with self.collating_for_evaluation():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def collating_for_evaluation(self) -> Iterator[None]:
        """The stock `Trainer` has one collator for all: augmentation must not reach what is measured."""
        collator = self.data_collator
        self.data_collator = collator.for_evaluation() if hasattr(collator, "for_evaluation") else collator
        try:
            yield
        finally:
            self.data_collator = collator

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The stock loop over the losses; then, with `predict_with_generate`, the answers are scored."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.args.predict_with_generate:
            answers = self.answer(dataset_of(dataloader))
            output.metrics.update(score_answers(answers, self.args.metrics, metric_key_prefix))
        return output

    def answer(self, dataset: Any) -> list[Answer]:
        """
        Answers the prompt of each row of a data set of chats; every process its share, and all get all answers.

        Args:
            dataset: rows or a stream of `ChatRow` or of what `to_row` knows

        Returns:
            one answer a row, in their order.

        Raises:
            ValueError: for a row that is no chat; with its number.
        """
        self.model.eval()
        share = share_of(dataset, self.args.process_index, self.args.world_size)
        total = -(-len(dataset) // self.args.world_size) if is_numbered(dataset) else None
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        answers = []
        with tqdm(total=total, desc="answering", disable=quiet, leave=False) as bar:
            for batch in in_groups(share, self.args.eval_batch_size):
                answers += self.answer_rows([(number, chat_row(item, number)) for number, item in batch])
                bar.update(len(batch))
        by_row = {answer.row: answer for answer in gather_object(answers)}
        return [by_row[row] for row in sorted(by_row)]

    def answer_rows(self, rows: Sequence[tuple[int, ChatRow]]) -> list[Answer]:
        """Answers one batch: numbers of rows in the data set, and the rows."""
        chats = [row for _, row in rows]
        if hasattr(self.data_collator, "prompt_batch"):
            inputs = self.data_collator.prompt_batch(chats)
        else:
            inputs = prompt_inputs(self.processor, [row.prompt for row in chats])
        with self.compute_loss_context_manager():
            answers = answer_batch(
                self.model,
                self.processor,
                inputs,
                self.args.generation_max_new_tokens,
                num_beams=self.args.generation_num_beams,
            )
        return [
            Answer(number, row.task, answer, row.answer) for (number, row), answer in zip(rows, answers, strict=True)
        ]


def parameter_groups(
    model: nn.Module, decayed: Collection[str], args: MMTrainingArguments, held: Collection[int]
) -> list[dict[str, Any]]:
    """
    What is trainable, by part and by whether it decays, for an optimizer.

    Args:
        decayed: names of the parameters with weight decay
        held: ids of parameters that get a place though they are frozen, because they will thaw
    """
    groups = []
    for part, named in parts_of(model).items():
        named = [(name, parameter) for name, parameter in named if parameter.requires_grad or id(parameter) in held]
        for decay in (True, False):
            parameters = [parameter for name, parameter in named if (name in decayed) is decay]
            if parameters:
                weight_decay = args.weight_decay if decay else 0.0
                groups.append(
                    {"params": parameters, "weight_decay": weight_decay, "lr": args.rate_of(part), "part": part}
                )
    return groups


def check_can_answer(model: Any, processor: Any) -> None:
    """
    Raises:
        ValueError: where there is no processor to write prompts with, or the model does not generate.
    """
    if not hasattr(processor, "apply_chat_template") or not hasattr(processor, "batch_decode"):
        raise ValueError(
            "predict_with_generate needs the processor, to write the prompts and to read the answers: pass "
            f"processing_class=processor to MMTrainer (got {type(processor).__name__})."
        )
    if not hasattr(model, "can_generate") or not model.can_generate():
        raise ValueError(
            f"predict_with_generate needs a model that generates, such as MMForConditionalGeneration; "
            f"{type(model).__name__} does not. Leave predict_with_generate out."
        )


def chat_row(item: Any, number: int) -> ChatRow:
    """
    Raises:
        ValueError: for a row that is no chat.
    """
    is_chat = isinstance(item, ChatRow) or (isinstance(item, Mapping) and {"messages", "prompt"} & item.keys())
    if not is_chat:
        came = f"a row with {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
        raise ValueError(
            "predict_with_generate answers the prompts of chats, so the evaluation set must hold chats: a ChatDataset "
            f"(load_chats reads one), or rows with `messages`. Row {number} is {came}, of which prompt and answer "
            "cannot be told apart any more. Pass the chats with ChatCollator, or set predict_with_generate=False."
        )
    return to_row(item)


def dataset_of(dataloader: torch.utils.data.DataLoader) -> Any:
    """The whole data set that a loader reads, also where accelerate has given each process a shard."""
    dataset = dataloader.dataset
    while isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset
    return dataset


def share_of(dataset: Any, process: int, processes: int) -> Iterator[tuple[int, Any]]:
    """
    The rows of one process, with their numbers; every process gets equally many, so that none waits for another where
    weights are sharded. What lacks at the end is made up by the last row, which then comes more than once.
    """
    numbered = is_numbered(dataset)
    items = range(len(dataset)) if numbered else dataset
    for start, group in enumerate(in_groups(items, processes)):
        place = min(process, len(group) - 1)
        yield start * processes + place, dataset[group[place]] if numbered else group[place]


def is_numbered(dataset: Any) -> bool:
    """Whether rows can be asked for by their number; a stream has inherited a `__getitem__` that only raises."""
    return (
        hasattr(dataset, "__getitem__")
        and hasattr(dataset, "__len__")
        and not isinstance(dataset, torch.utils.data.IterableDataset)
    )


def in_groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last of what is left."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def score_answers(answers: Sequence[Answer], metrics: Iterable[str], prefix: str) -> dict[str, float]:
    """`{prefix}_{metric}` of all answers, and `{prefix}_{task}_{metric}` of those of each task."""
    by_task: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.task is not None:
            by_task.setdefault(answer.task, []).append(answer)
    figures = {}
    for metric in metrics:
        figures[f"{prefix}_{metric}"] = score_of(metric, answers)
        for task, some in by_task.items():
            figures[f"{prefix}_{task}_{metric}"] = score_of(metric, some)
    return figures


def score_of(metric: str, answers: Sequence[Answer]) -> float:
    return score(metric, [answer.answer for answer in answers], [answer.truth for answer in answers])


def with_answers_only(inputs: dict[str, Any]) -> dict[str, Any]:
    """
    A batch for which the model makes logits only where there is something to be learned.

    Most tokens belong to questions or are padding, so this saves most of what the logits cost. `labels` (B, L) become
    `shift_labels` (B, L), what each token predicts, and `logits_to_keep` (B, L), whether it counts; a batch whose
    labels are not those of its tokens, or are all ignored, stays as it is.
    """
    labels, input_ids = inputs.get("labels"), inputs.get("input_ids")
    if labels is None or input_ids is None or labels.shape != input_ids.shape or labels.is_floating_point():
        return inputs
    targets = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]  # (B, L)
    counts = targets != IGNORED
    if not counts.any():
        return inputs
    others = {name: value for name, value in inputs.items() if name != "labels"}
    return {**others, "shift_labels": targets, "logits_to_keep": counts}
