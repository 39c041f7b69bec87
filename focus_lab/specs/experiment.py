"""What a user submits: a base, a sweep over it, and the objectives that the report ranks by."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from focus_lab.specs.base import FromList, NonNegativeInt, PositiveInt, Spec, fingerprint
from focus_lab.specs.data import DataSpec
from focus_lab.specs.explain import short
from focus_lab.specs.metrics import is_metric, suggestion
from focus_lab.specs.model import ModelSpec
from focus_lab.specs.training import ComputeSpec, ElasticTraining, TrainingSpec


class TrialSpec(Spec):
    """All that one trial needs: one cell with one seed."""

    model: ModelSpec = ModelSpec()
    """The detector."""
    data: DataSpec
    """The images."""
    training: TrainingSpec = TrainingSpec()
    """The recipe."""
    compute: ComputeSpec = ComputeSpec()
    """The machine."""
    seed: NonNegativeInt = 0
    """Seed of weights, order, augmentation and noise."""

    @model_validator(mode="after")
    def _batch_divides(self) -> TrialSpec:
        _check_division(self.training, self.compute)
        return self

    @model_validator(mode="after")
    def _elastic_fits_the_model(self) -> TrialSpec:
        if self.training.elastic.enabled:
            _check_elastic(self.training.elastic, self.model)
        return self

    @property
    def fingerprint(self) -> str:
        """Hash of everything that can change a number: compute is left out."""
        return trial_fingerprint(self.model_dump(mode="json"))

    @property
    def reads_files(self) -> bool:
        """Whether images, weights or another library's model must be there for it to train."""
        backbone = self.model.backbone
        if self.training.start_from is not None:
            return True
        if backbone.kind == "timm" or (backbone.kind == "resnet" and backbone.weights is not None):
            return True
        return self.data.kind == "coco"

    @property
    def fills_a_batch(self) -> bool:
        """Whether there are images for one batch; what a folder holds is not known here."""
        return self.data.kind != "shapes" or self.training.batch_size <= self.data.num_train


def trial_fingerprint(content: Mapping[str, Any]) -> str:
    """Fingerprint of a trial's spec as JSON data."""
    return fingerprint({name: part for name, part in content.items() if name != "compute"})


def _check_division(training: TrainingSpec, compute: ComputeSpec) -> None:
    if training.batch_size % compute.workers:
        raise ValueError(
            "training.batch_size: must be a multiple of compute.workers, "
            f"got {training.batch_size} for {compute.workers}; each worker computes an equal part"
        )
    if compute.workers > 1 and compute.gpus_per_worker % 1:
        raise ValueError(
            "compute.gpus_per_worker: workers of one trial cannot share a GPU, "
            f"got {compute.gpus_per_worker:g} for {compute.workers} workers; set it to 1"
        )


def _check_elastic(elastic: ElasticTraining, model: ModelSpec) -> None:
    selection = model.token_selection
    problems = []
    if selection.scoring.kind == "dense":
        problems.append(
            "training.elastic.enabled: dense scoring has no keep ratio, got true; set it to false "
            "or choose another model.token_selection.scoring"
        )
    if not elastic.least_keep_ratio < selection.keep_ratio:
        problems.append(
            "training.elastic.least_keep_ratio: must be below model.token_selection.keep_ratio, "
            f"got {elastic.least_keep_ratio}; the model keeps {selection.keep_ratio}"
        )
    outside = [
        ratio
        for ratio in elastic.evaluate_at
        if not elastic.least_keep_ratio <= ratio <= selection.keep_ratio
    ]
    if outside:
        problems.append(
            f"training.elastic.evaluate_at: these ratios are not trained for, got {outside}; "
            f"allowed are {elastic.least_keep_ratio} to {selection.keep_ratio}"
        )
    if elastic.distillation_weight and not model.denoising.enabled:
        problems.append(
            "training.elastic.distillation_weight: without denoising queries there is nothing to "
            f"compare, got {elastic.distillation_weight:g}; set it to 0 or enable model.denoising"
        )
    if problems:
        raise ValueError("\n".join(problems))


class GridSearch(Spec):
    """Every combination of the axes."""

    kind: Literal["grid"]


class RandomSearch(Spec):
    """Some combinations of the axes, drawn without replacement."""

    kind: Literal["random"]
    samples: PositiveInt
    """How many; at most as many as the axes have."""
    seed: NonNegativeInt = 0
    """Seed of the draw."""


class OptunaSearch(Spec):
    """Combinations of the axes that Optuna's sampler (TPE) expects to be good in the objectives.

    Batch by batch: the first is drawn at random, the next ones follow from the means over seeds of
    all before. The result is exploratory: what was looked for among many was found by chance too.
    """

    kind: Literal["optuna"]
    samples: PositiveInt
    """How many combinations in all; at most as many as the axes have."""
    batch: PositiveInt = 4
    """How many are chosen at once; they run side by side."""
    seed: NonNegativeInt = 0
    """Seed of the sampler."""


Search = Annotated[GridSearch | RandomSearch | OptunaSearch, Field(discriminator="kind")]


class NoEarlyStopping(Spec):
    """Every trial runs to its end: needed to confirm anything."""

    kind: Literal["none"]


class SuccessiveHalving(Spec):
    """Weak trials stop early (asynchronous successive halving): exploratory, confirms nothing.

    After `grace_epochs`, and each time its epochs have grown by `reduction`, a trial goes on only
    among the best 1 / `reduction` of those that came so far. Needs trials' folders that the driver
    and the workers share; where they do not, nothing stops.
    """

    kind: Literal["asha"]
    metric: str = "coco/AP"
    """What trials are compared by; known after epochs that are evaluated."""
    direction: Literal["max", "min"] = "max"
    """Whether more of it is better."""
    grace_epochs: PositiveInt = 1
    """Epochs that every trial gets."""
    reduction: Annotated[int, Field(ge=2, le=1_000_000)] = 3
    """One of so many goes on."""

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, metric: str) -> str:
        if not is_metric(metric):
            raise ValueError(f"no trial has such a metric, got {metric!r}; {suggestion(metric)}")
        return metric


EarlyStopping = Annotated[NoEarlyStopping | SuccessiveHalving, Field(discriminator="kind")]


_MOST_POINTS = 10**12
"""Of the axes of a search: points are drawn by their numbers, which Python can draw up to 2^63."""


class SweepSpec(Spec):
    """The design: which cells are compared, each with which seeds."""

    axes: dict[str, Annotated[tuple[Any, ...], FromList, Field(min_length=1)]] = Field(default={})
    """Dotted path -> values; every combination is a cell."""
    cells: dict[str, dict[str, Any]] = Field(default={})
    """Named deviations from the base: name -> {dotted path: value}. With any of them, the base
    itself is a cell too, named `baseline`."""
    baseline: str | None = None
    """Name of the cell that others are compared with; null takes the cell that equals the base."""
    seeds: Annotated[tuple[NonNegativeInt, ...], FromList, Field(min_length=1)] = (0,)
    """Every cell is trained once a seed; one seed decides nothing."""
    search: Search = GridSearch(kind="grid")
    """Which combinations of the axes are run."""
    early_stopping: EarlyStopping = NoEarlyStopping(kind="none")
    """Whether weak trials stop early."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"each seed may stand once, got {list(seeds)}; equal seeds repeat a trial"
            )
        return seeds

    @model_validator(mode="after")
    def _axes_have_as_many_points_as_are_drawn(self) -> SweepSpec:
        if isinstance(self.search, GridSearch):
            return self
        points = math.prod(map(len, self.axes.values())) if self.axes else 0
        if self.search.samples > points:
            raise ValueError(
                "search.samples: must be at most the number of combinations of sweep.axes, "
                f"got {self.search.samples}; there are {points}"
            )
        if points > _MOST_POINTS:
            raise ValueError(
                f"axes: a search looks through at most {_MOST_POINTS} combinations, "
                f"got {short(points)}; take fewer values"
            )
        return self


class ExperimentSpec(Spec):
    """A validated request: the same for the command line and the service."""

    name: str
    """Name of the experiment: lower-case letters, digits, hyphens; also its folder under runs/."""
    description: str = ""
    """What is asked, in a sentence."""
    model: ModelSpec = ModelSpec()
    """The detector of the base."""
    data: DataSpec
    """The images of the base."""
    training: TrainingSpec = TrainingSpec()
    """The recipe of the base."""
    compute: ComputeSpec = ComputeSpec()
    """The machine."""
    sweep: SweepSpec = SweepSpec()
    """The design."""
    objectives: dict[str, Literal["max", "min"]] = Field(
        default={"coco/AP": "max", "cost/gflops": "min"}
    )
    """Metric -> direction; the report's Pareto front is over these."""

    @model_validator(mode="before")
    @classmethod
    def _texts_can_be_written(cls, content: Any) -> Any:
        # Terminals act on control characters, and PostgreSQL refuses some. In overrides, too,
        # which become the names of cells.
        problems = []
        for path, text, control in _texts(content):
            if found := control.search(text):
                place = next((key for key in path if control.search(key)), None)
                named = ".".join(path if place is None else path[: path.index(place)])
                problems.append(
                    f"{named or 'spec'}: no text may have control characters, "
                    f"got {found[0]!r} in {short(text)}; leave it out"
                )
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        return content

    @model_validator(mode="after")
    def _batch_divides(self) -> ExperimentSpec:
        _check_division(self.training, self.compute)
        return self

    @model_validator(mode="after")
    def _elastic_fits_the_model(self) -> ExperimentSpec:
        if self.training.elastic.enabled:
            _check_elastic(self.training.elastic, self.model)
        return self

    @model_validator(mode="after")
    def _search_is_told_what_it_searches_for(self) -> ExperimentSpec:
        if self.sweep.search.kind != "optuna":
            return self
        problems = []
        if late := [name for name in self.objectives if name.startswith("cost/latency")]:
            problems.append(
                f"objectives: a search cannot look for what is measured after it, got {late}; "
                "take cost/gflops, or search: {kind: grid}"
            )
        if self.training.elastic.enabled:
            problems.append(
                "sweep.search: an elastic training has several results, got optuna; search without "
                "training.elastic, or take search: {kind: grid}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def base(self) -> TrialSpec:
        """What every cell starts from, with seed 0."""
        return TrialSpec(
            model=self.model, data=self.data, training=self.training, compute=self.compute
        )

    @field_validator("name")
    @classmethod
    def _name_is_a_slug(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
            raise ValueError(
                f"must be 1 to 63 of a-z, 0-9 and hyphen, got {name!r}; for example keep-ratio"
            )
        # Experiments are found by name or id: nobody may pass for another.
        if re.fullmatch(r"[0-9a-f]{32}", name):
            raise ValueError(
                f"must not look like the id of an experiment, got {name!r}; add a word to it"
            )
        return name

    @field_validator("objectives")
    @classmethod
    def _objectives_are_metrics(cls, objectives: dict[str, str]) -> dict[str, str]:
        problems = [
            f"no trial has such a metric, got {name!r}; {suggestion(name)}"
            for name in objectives
            if not is_metric(name)
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return objectives


_IN_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_IN_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _texts(
    value: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, re.Pattern[str]]]:
    """Every text and key with its path, and what it must not have; a text may have lines."""
    if isinstance(value, dict):
        for key, inner in value.items():
            below = (*path, str(key))
            yield below, str(key), _IN_NAME
            yield from _texts(inner, below)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, path)
    elif isinstance(value, str):
        yield path, value, _IN_TEXT
