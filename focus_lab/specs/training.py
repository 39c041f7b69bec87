"""How a trial trains and evaluates, and where: recipe and compute."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from focus_lab.specs.base import (
    FromList,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Ratio,
    Spec,
    added,
)

Decay = Annotated[float, Field(ge=0, lt=1)]
Images = Annotated[int, Field(gt=0, le=1_000_000)]
"""Of a batch."""
Processes = Annotated[int, Field(gt=0, le=1024)]
"""Or threads, of one trial."""
Seconds = Annotated[float, Field(gt=0, le=1e8)]
"""Three years; Python waits for no longer than some hundred."""
_LEAST_SHARE = 0.01
"""Of a core or a GPU: less is none that could be kept free for anybody."""


class Optimizer(Spec):
    """AdamW with the recipe's parameter groups."""

    lr: PositiveFloat = 1e-4
    """Learning rate at the global batch size of this spec; it is never rescaled silently."""
    betas: Annotated[tuple[Decay, Decay], FromList] = (0.9, 0.999)
    """Decay rates of the moment estimates."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay."""
    norm_weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the scales and biases of norm layers."""
    bias_weight_decay: NonNegativeFloat | None = None
    """Weight decay of other vectors and scalars; null decays them as matrices (released)."""
    backbone_lr_factor: NonNegativeFloat = 0.1
    """The backbone learns at lr x this factor."""
    clip_norm: PositiveFloat | None = 0.1
    """Largest global L2 norm of the gradient; null does not clip."""


class StepSchedule(Spec):
    """Constant, dropping at milestones."""

    kind: Literal["step"]
    milestones: Annotated[tuple[PositiveFloat, ...], FromList] = (11.0,)
    """Epochs (fractions allowed) at which the rate drops."""
    gamma: Ratio = 0.1
    """Factor of each drop."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up."""
    warmup_factor: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of the rate at the first step of the warm-up."""


class CosineSchedule(Spec):
    """Half a cosine from the full rate to its last share, over the whole training."""

    kind: Literal["cosine"]
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the rate at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up."""
    warmup_factor: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of the rate at the first step of the warm-up."""


Schedule = Annotated[StepSchedule | CosineSchedule, Field(discriminator="kind")]


class ExponentialAverage(Spec):
    """Exponential moving average of the weights, evaluated instead of them."""

    enabled: bool = False
    """Whether the average is kept."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9997
    """Share of the old average at each step."""
    warmup_steps: NonNegativeInt = 2000
    """The decay rises as decay x (1 - exp(-step / warmup_steps)); 0 uses it from the start."""


class ElasticTraining(Spec):
    """One training for every keep ratio of a range.

    Each step learns at the largest ratio, which is `model.token_selection.keep_ratio`, and every
    `smaller_every_steps` also at a smaller one that is drawn.
    """

    enabled: bool = False
    """Whether a step has a second, smaller ratio. An axis over the keep ratio is then read from one
    training instead of one a ratio."""
    least_keep_ratio: Ratio = 0.1
    """Smallest ratio that is drawn; below the model's own."""
    smaller_every_steps: PositiveInt = added(1)
    """How often a smaller ratio joins: 1 is every step, 2 every other one, which costs less."""
    distillation_weight: NonNegativeFloat = 1.0
    """Weight of the distance between how the two passes repair denoising queries; the losses of the
    two passes count half each."""
    evaluate_at: Annotated[tuple[Ratio, ...], FromList] = ()
    """Ratios of the range at which the trained weights are evaluated in the end, each a reading of
    the report. An axis over the keep ratio fills them in."""

    @field_validator("evaluate_at")
    @classmethod
    def _ratios_differ(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(ratios)) < len(ratios):
            raise ValueError(f"each ratio may stand once, got {list(ratios)}")
        return ratios


class TrainingSpec(Spec):
    """The recipe; released values as defaults (12 epochs)."""

    epochs: Annotated[int, Field(gt=0, le=100_000)] = 12
    """Passes over the training images."""
    batch_size: Images = 16
    """Images an optimizer step, over all workers: the number of workers does not change it."""
    accumulation: Images = 1
    """Micro-batches a step: the same effective batch with less memory."""
    optimizer: Optimizer = Optimizer()
    """Optimizer."""
    schedule: Schedule = StepSchedule(kind="step")
    """Learning rate over time."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of forward and loss; fp16 scales the loss."""
    ema: ExponentialAverage = ExponentialAverage()
    """Averaged weights."""
    elastic: ElasticTraining = added(ElasticTraining())
    """One training for every keep ratio."""
    start_from: str | None = added(None)
    """Weights of a detector to start from instead of fresh ones: a trial's checkpoint, one made by
    `convert`, or a state dict. Parts that it lacks (a scorer, class heads of other classes) start
    afresh; the trial's manifest names them."""
    evaluate_every: PositiveInt = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    evaluation_batch_size: Images = 1
    """Images an evaluation batch."""
    log_every: PositiveInt = 50
    """Steps between progress reports."""


class ComputeSpec(Spec):
    """Where and how fast; changes no number, and no fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU when there is one."""
    workers: Processes = 1
    """Training processes a trial, on any number of machines; each computes its part of every batch,
    so training.batch_size must be a multiple of it. Several workers cannot share a GPU."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1024)] = 0.0
    """GPUs a worker; fractions from 0.01 on let small trials share one."""
    cpus_per_worker: Annotated[float, Field(ge=_LEAST_SHARE, le=10_000)] = 1.0
    """CPU cores a worker, at least 0.01; decides how many trials run side by side."""
    threads: Processes = 1
    """torch threads a worker. Two one-thread trials beat a two-thread one when models are small."""
    loader_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that load images for a worker; 0 loads in the worker itself."""
    evaluator: Literal["pycocotools", "faster-coco-eval"] = "pycocotools"
    """Who computes AP from the detections. pycocotools defines the numbers; the other gives the
    same (tested to 1e-12) in a fraction of the time. Each trial records which one it used."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints; the last epoch always has one."""
    checkpoint_every_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints within an epoch; null writes none there."""
    budget_hours: PositiveFloat | None = added(None)
    """Hours of training over all trials: `sweep`, or the service on its cluster, measures a few
    steps first and refuses what may take longer. Null measures nothing."""
    storage: str | None = None
    """Folder or URL (fsspec: s3://…, gs://…) that checkpoints are copied to in the background, for
    machines that share no file system; null keeps them in the trial's folder alone."""
    max_failures: NonNegativeInt = 2
    """How often a trial that lost a worker, or whose workers hung, is started again in a sweep."""
    max_preemptions: NonNegativeInt = 20
    """How often a trial is started again after its machine was taken back with notice."""
    halve_on_out_of_memory: bool = False
    """Whether a trial that runs out of memory goes on with half the images a micro-batch and twice
    the accumulation: the same effective batch, but norms of the batch that train see its parts."""
    stall_timeout_s: Seconds = 1800.0
    """Seconds without a step, by any worker, after which a trial counts as hung."""
    placement_timeout_s: Seconds = 600.0
    """Seconds that trials wait for room: one of several workers, which start at once, while no
    other of the sweep takes room; and all of the sweep, while none runs."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _is_a_share(cls, gpus: float) -> float:
        if 0 < gpus < _LEAST_SHARE:
            raise ValueError(f"must be 0 or at least {_LEAST_SHARE}, got {gpus:g}")
        return gpus
