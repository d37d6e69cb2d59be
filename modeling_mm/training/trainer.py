# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The stock `Trainer` with answers in evaluation and a learning rate for each part."""

import math
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import ProcessorMixin, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, get_last_checkpoint
from transformers.utils import logging

from ..batching import IGNORED
from ..evaluation.answering import generate_answers
from ..evaluation.metrics import score
from ..evaluation.retrieving import FIGURES, score_retrieval
from ..modeling_mm import MMForConditionalGeneration, share_weights
from ..utils.progress import show_progress
from .answers import (
    AnsweredRow,
    as_chat,
    check_best_metric,
    check_can_answer,
    in_groups,
    is_numbered,
    score_answers,
    share_of,
)
from .arguments import RATE_OF, MMTrainingArguments
from .callbacks import ChecksumCallback, ProcessCountCallback, SetEpochCallback, ThawCallback
from .checkpoints import last_whole_checkpoint, problem_of
from .collators import ChatCollator, accuracy
from .divergence import MIN_LOSS_SCALE, NAMES, NamingCollator, check_figures, diverged, from_bytes, in_any_process
from .freezing import average_gradients, frozen_parameters, parts_of
from .matching import RetrievalCollator, embed_rows
from .precision import warn_of_slow_half
from .pretraining import NamedFigures, PretrainingCollator, figure_names
from .sampling import MediaLengthGroupedSampler, media_size
from .shown_answers import ShownAnswers
from .smoothing import smoother_for

logger = logging.get_logger(__name__)

# Options of an optimizer that bring its parameter groups.
OWN_GROUPS = {"params", "model", "optimizer_dict"}


class MMTrainer(Trainer):
    """
    A `transformers.Trainer` that can answer in evaluation and gives each part its learning rate.

    With `predict_with_generate`, evaluation and prediction also answer the prompts of the dataset, each process its
    share, and add `{prefix}_{metric}` and `{prefix}_{task}_{metric}` to the metrics, which `metric_for_best_model` and
    early stopping can use. A [`ThawCallback`] among the `callbacks` keeps parts frozen until a step.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, processing_class, kwargs:
            as for `Trainer`. `args` are [`MMTrainingArguments`], `processing_class` is the processor, and
            `data_collator` is by default `ChatCollator(processing_class)`, for datasets of chats. Its method
            `prompt_batch(rows)`, if it has one, makes the inputs of `generate` from `ChatRow`s, padded on the left;
            otherwise the processor does.

    Raises:
        ValueError: if something that `predict_with_generate` needs is missing.
        ImportError: if the library of a metric is not installed.

    Example:
        >>> arguments = MMTrainingArguments("outputs", predict_with_generate=True, encoder_learning_rate=1e-5)
        >>> chats = load_chats("train.jsonl")
        >>> MMTrainer(model, arguments, train_dataset=chats, eval_dataset=chats, processing_class=processor).train()
    """

    args: MMTrainingArguments
    data_collator: Any
    label_smoother: Any
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
                f"MMTrainer takes MMTrainingArguments, got {type(args).__name__}. They are the same with more fields."
            )
        if data_collator is None and isinstance(processing_class, ProcessorMixin):
            data_collator = ChatCollator(processing_class)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        warn_of_slow_half(self.accelerator.mixed_precision, args.device)
        self.label_smoother = smoother_for(self.model, self.label_smoother)
        self.add_callback(SetEpochCallback())
        self.add_callback(ProcessCountCallback())
        self.add_callback(ChecksumCallback())
        # Of the current optimizer step: losses of its batches, (1,) each, and names of their examples.
        self.step_losses: list[torch.Tensor] = []
        self.step_examples: list[torch.Tensor] = []
        self.shown = ShownAnswers("eval")
        self.named_figures = NamedFigures()
        # Trainable parameters that were frozen when DDP wrapped the model.
        self.unwatched_parameters: list[nn.Parameter] = []
        if args.predict_with_generate:
            check_can_answer(self.model, self.processor)
            for name in args.metrics:
                score(name, ["a word"], ["a word"])  # fail before training if a metric's library is missing
            for dataset in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
                if is_numbered(dataset) and len(dataset) > 0:
                    as_chat(dataset[0], 0)

    @property
    def processor(self) -> Any:
        """Return the processor of the trainer, or else of the collator."""
        return self.processing_class or getattr(self.data_collator, "processor", None)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        Train like the stock one; `resume_from_checkpoint=True` resumes from the last whole checkpoint.

        Raises:
            FloatingPointError: at the first loss or gradient that is not finite, in all processes together and before
                it changes the weights; and for figures of an evaluation that are not. The message names the step, the
                examples of the batch and the last checkpoint.
            ValueError: if a checkpoint is incomplete or damaged, or evaluation gives no `metric_for_best_model`.
        """
        is_known = self.compute_metrics in (None, accuracy)
        given = [*FIGURES] if self.ranks_matches else []
        given += figure_names(self.model.config) if isinstance(self.data_collator, PretrainingCollator) else []
        check_best_metric(self.args, [*given, *["accuracy"] * bool(self.compute_metrics)] if is_known else None)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{self.args.output_dir} holds no complete checkpoint. Train without resume_from_checkpoint."
                )
        elif resume_from_checkpoint and (problem := problem_of(Path(resume_from_checkpoint))):
            raise ValueError(
                f"Cannot resume from {resume_from_checkpoint}: {problem}. Name another checkpoint, or pass True for "
                "the last whole one."
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # ---- A learning rate for each part ------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer of the arguments, with two groups for each part: with and without weight decay."""
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
                "rates and cannot thaw. Use another optimizer, such as adamw_torch, or remove both."
            )
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = given

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run the stock step, and average the gradients of parameters that DDP does not know."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_losses.append(loss.float())
        if isinstance(model, nn.parallel.DistributedDataParallel) and self.accelerator.sync_gradients:
            average_gradients([parameter for parameter in self.unwatched_parameters if parameter.requires_grad])
        return loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run the stock epoch, unless all steps are done: of a run that is resumed then it would take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # ---- Divergence -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """
        Return the stock loader; while training, its batches name their examples.

        Raises:
            ValueError: if the examples do not fill a batch and incomplete ones are dropped, so that none is learned.
        """
        collator = self.data_collator
        self.data_collator = NamingCollator(collator) if self.is_in_train else collator
        try:
            loader = super().get_train_dataloader()
        finally:
            self.data_collator = collator
        check_has_batches(loader, self.train_dataset, self.args)
        return loader

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Take the names of the examples out of the batches of an optimizer step, so that no model sees them."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        named = [batch for batch in batches if isinstance(batch, MutableMapping) and NAMES in batch]
        self.step_losses, self.step_examples = [], [batch.pop(NAMES) for batch in named]
        return batches, num_items

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the stock norm, which the stock loop asks for before each optimizer step, and check it."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.stop_if_diverged(grad_norm)
        return grad_norm

    def stop_if_diverged(self, grad_norm: Any) -> None:
        """Raise a FloatingPointError, in all processes together, if a loss or the gradients are not finite."""
        norm = float(grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm)
        losses = torch.stack([loss.mean() for loss in self.step_losses]).tolist()
        scaler = self.accelerator.scaler
        # Overflowing gradients of fp16 are skipped, with a smaller scale the next time, until it is out of range.
        is_lost = not math.isfinite(norm) and (scaler is None or scaler.get_scale() < MIN_LOSS_SCALE)
        is_lost |= not all(map(math.isfinite, losses))
        if in_any_process(is_lost, self.args.device):
            examples = [name for names in self.step_examples for name in from_bytes(names)]
            found = gather_object([(losses, examples)])
            guilty = [each for each in found if not all(map(math.isfinite, each[0]))] or found
            raise diverged(
                self.state.global_step + 1,
                [loss for losses, _ in guilty for loss in losses],
                norm,
                [name for _, examples in guilty for name in examples],
                get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None,
            )

    def _load_best_model(self) -> None:
        """Load the best checkpoint as the stock one does, unless it is damaged."""
        best = self.state.best_model_checkpoint
        if best is not None and (problem := problem_of(Path(best))):
            logger.warning(f"{best}, the best checkpoint, is not used: {problem}. The last state is kept instead.")
            self.state.best_metric = self.state.best_model_checkpoint = None
            return
        super()._load_best_model()

    # ---- Loss -------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """
        Compute the stock loss; unless outputs are returned, without logits, or with those of learned tokens.

        Raises:
            ValueError: in training, if all that the batch depends on is frozen.
        """
        if self.has_stock_loss and not return_outputs:
            inputs = self.without_logits(with_answers_only(inputs))
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if torch.is_grad_enabled() and not loss.requires_grad:
            learning = [part for part, named in parts_of(model).items() if any(p.requires_grad for _, p in named)]
            raise ValueError(
                f"After {self.state.global_step} steps this batch depends on no parameter that learns: of the model "
                f"learns {', '.join(learning) or 'nothing'}. Unfreeze a part that the batch uses; in `frozen` of a "
                "recipe, and for a ThawCallback, 0 is from the start."
            )
        self.named_figures.add(inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Run the stock step, without logits if only the loss is wanted."""
        if prediction_loss_only and self.has_stock_loss:
            inputs = self.without_logits(inputs)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    @property
    def has_stock_loss(self) -> bool:
        """Return if the loss is the model's, so that nothing else reads its logits."""
        return self.label_smoother is None and self.compute_loss_func is None

    def without_logits(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch for which a model that writes makes no logits; see its `forward`."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        writes = isinstance(model, MMForConditionalGeneration)
        return {**inputs, "skip_logits": True} if writes and self.args.skip_logits else inputs

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_by_media or not hasattr(train_dataset, "__getitem__"):
            return super()._get_train_sampler(train_dataset)
        size_of = getattr(self.data_collator, "media_size", media_size)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch_size = self.args.train_batch_size * self.args.world_size
        return MediaLengthGroupedSampler(train_dataset, batch_size, size_of, seed)

    # ---- Answers in evaluation --------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the stock loader, with a collator for evaluation."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        with self.collating_for_evaluation(self.eval_dataset[given] if isinstance(given, str) else given):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the stock loader, with a collator for evaluation."""
        with self.collating_for_evaluation(test_dataset):
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def collating_for_evaluation(self, dataset: Any) -> Iterator[None]:
        """
        Use the collator's `for_evaluation()`. `Trainer` has one collator, but must not augment in evaluation.

        Its only batch is not dropped: the stock trainer would leave out the losses without a word.
        """
        collator, drops_last = self.data_collator, self.args.dataloader_drop_last
        self.data_collator = collator.for_evaluation() if hasattr(collator, "for_evaluation") else collator
        if is_numbered(dataset) and len(dataset) < self.args.eval_batch_size * self.args.world_size:
            self.args.dataloader_drop_last = False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drops_last

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        Run the stock loop, and take the losses of objectives that have names.

        Then answer and score with `predict_with_generate`, or rank the matches of retrieval.
        """
        of_training, self.named_figures = self.named_figures, NamedFigures()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        named = self.named_figures.take(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in named.items()})
        self.named_figures = of_training
        dataset: Any = dataloader.dataset
        while isinstance(dataset, IterableDatasetShard):  # accelerate gives each process a shard
            dataset = dataset.dataset
        if self.ranks_matches:
            figures = self.rank_matches(dataset)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
        if self.args.predict_with_generate:
            self.shown = ShownAnswers(metric_key_prefix)
            answers = self.answer_dataset(dataset)
            output.metrics.update(score_answers(answers, self.args.metrics, metric_key_prefix))
        check_figures(output.metrics, self.state.global_step)
        return output

    def answer_dataset(self, dataset: Any) -> list[AnsweredRow]:
        """Answer the prompt of each row, every process its share; return all rows in their order to each process."""
        share = share_of(dataset, self.args.process_index, self.args.world_size)
        total = -(-len(dataset) // self.args.world_size) if is_numbered(dataset) else None
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        answered = []
        with show_progress(total=total, desc="answering", disable=quiet, leave=False) as bar:
            for batch in in_groups(share, self.args.eval_batch_size):
                rows = {number: as_chat(item, number) for number, item in batch}
                with self.compute_loss_context_manager():
                    answers = generate_answers(
                        self.model,
                        self.processor,
                        list(rows.values()),
                        len(rows),
                        self.args.generation_max_new_tokens,
                        getattr(self.data_collator, "prompt_batch", None),
                        num_beams=self.args.generation_num_beams,
                    )
                for (number, row), answer in zip(rows.items(), answers, strict=True):
                    answered.append(AnsweredRow(number, row.task, answer, row.answer))
                    self.shown.add(number, row, answer)
                bar.update(len(batch))
        by_number = {row.row: row for row in gather_object(answered)}
        return [by_number[number] for number in sorted(by_number)]

    @property
    def ranks_matches(self) -> bool:
        """Return if the model learns to embed, so that evaluation ranks matches."""
        if isinstance(self.data_collator, PretrainingCollator):
            return bool(self.model.config.contrastive_weight)
        return isinstance(self.data_collator, RetrievalCollator)

    def rank_matches(self, dataset: Any) -> dict[str, float]:
        """Embed a dataset, every process its share, and return the figures of retrieval among all of its rows."""
        share = share_of(dataset, self.args.process_index, self.args.world_size)
        collator, embedded = self.data_collator.for_evaluation(), []
        for batch in in_groups(share, self.args.eval_batch_size):
            with self.compute_loss_context_manager():
                embedded += embed_rows(self.model, collator, batch)
        by_number = {row.number: row for row in gather_object(embedded)}
        rows = [by_number[number] for number in sorted(by_number)]
        return score_retrieval([row.sides for row in rows], [row.text for row in rows])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the stock one, with named losses; after an evaluation also some of its answers, to TensorBoard."""
        if "loss" in logs:
            logs = {**logs, **self.named_figures.take(self.accelerator)}
        super().log(logs, *args, **kwargs)
        if self.is_world_process_zero():
            self.shown.write(self.callback_handler.callbacks, self.state.global_step)
        self.shown.rows.clear()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        share_weights(output_dir or str(self.args.output_dir))  # PEFT saves its adapters past the model


def check_has_batches(loader: DataLoader, dataset: Any, args: MMTrainingArguments) -> None:
    """Raise a `ValueError` if a loader drops its only batch."""
    if args.dataloader_drop_last and is_numbered(dataset) and not len(loader):
        raise ValueError(
            f"The training data hold {len(dataset)} examples, but a batch takes {args.train_batch_size} in each of "
            f"{args.world_size} processes, and the last incomplete one is dropped, so that nothing would be learned. "
            "Use a smaller per_device_train_batch_size, or more examples."
        )


def parameter_groups(
    model: nn.Module, decayed: Collection[str], args: MMTrainingArguments, held: Collection[int]
) -> list[dict[str, Any]]:
    """
    Return groups of parameters for an optimizer, by part and by weight decay.

    Args:
        decayed: names of the parameters with weight decay.
        held: ids of frozen parameters that get a place because they will thaw.
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


def with_answers_only(inputs: dict[str, Any]) -> dict[str, Any]:
    """
    Return a batch for which the model makes logits of learned tokens alone.

    Most tokens belong to questions or are padding, so this saves most of the cost of the logits. `labels` (B, L)
    become `shift_labels` (B, L), the target of each token, and `logits_to_keep` (B, L), true for learned tokens. A
    batch does not change if its labels are not those of its tokens, or are all ignored.
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
