"""What is trained on: procedural scenes or a COCO-format folder; how images become batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from focus_lab.specs.base import (
    AnyFloat,
    FromList,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Spec,
)

Pixels = Annotated[int, Field(gt=0, le=65_536)]
"""Of a side."""
Range = Annotated[tuple[Pixels, Pixels], FromList]
"""(low, high), both included."""
Shapes = Annotated[int, Field(ge=0, le=10_000)]
"""Shapes that are drawn in one scene."""
ImageCount = Annotated[int, Field(gt=0, le=1_000_000)]
"""Drawn images: their sizes are held in memory."""


class Normalisation(Spec):
    """Channel statistics of RGB values in 0..255."""

    mean: Annotated[tuple[AnyFloat, AnyFloat, AnyFloat], FromList] = (123.675, 116.28, 103.53)
    """Subtracted, R G B."""
    std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], FromList] = (
        58.395,
        57.12,
        57.375,
    )
    """Divided by, R G B."""


class Crop(Spec):
    """The second branch of DETR's augmentation: resize, random crop, then resize as the first."""

    probability: Probability = 0.5
    """How often the branch is taken; 0 switches it off."""
    sizes: Annotated[tuple[Pixels, ...], FromList] = (400, 500, 600)
    """Shortest sides before the crop, in pixels."""
    crop_size: Range = (384, 600)
    """Height and width of the crop are drawn from this range, in pixels."""


class Augmentation(Spec):
    """Training transforms of the released recipe."""

    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    sizes: Annotated[tuple[Pixels, ...], FromList] = (
        480,
        512,
        544,
        576,
        608,
        640,
        672,
        704,
        736,
        768,
        800,
    )
    """Shortest sides, in pixels; one is drawn an image. Empty keeps the image as it is."""
    max_size: Pixels = 1333
    """Longest side after resizing, in pixels."""
    crop: Crop = Crop()
    """Random crop branch."""
    permute_channels: bool = False
    """Random order of R, G and B: colours carry no class (procedural scenes)."""


class EvaluationTransform(Spec):
    """Deterministic transform of evaluation images."""

    size: Pixels | None = 800
    """Shortest side, in pixels; null keeps the image as it is."""
    max_size: Pixels = 1333
    """Longest side, in pixels."""


class _DataSpec(Spec):
    normalisation: Normalisation = Normalisation()
    """Channel statistics."""
    augmentation: Augmentation = Augmentation()
    """Training transforms."""
    evaluation: EvaluationTransform = EvaluationTransform()
    """Evaluation transforms."""
    aspect_ratio_grouping: bool = True
    """Batches hold only landscape or only portrait images, which saves padding."""


class ShapesData(_DataSpec):
    """Procedural scenes, deterministic from a seed: nothing is downloaded."""

    kind: Literal["shapes"]
    image_size: Range = (320, 320)
    """(height, width) in pixels."""
    num_classes: Annotated[int, Field(ge=1, le=8)] = 8
    """How many of the eight shape classes are used."""
    num_train: ImageCount = 1800
    """Training scenes."""
    num_val: ImageCount = 150
    """Validation scenes; drawn from other seeds than the training scenes."""
    objects: Annotated[tuple[Shapes, Annotated[Shapes, Field(gt=0)]], FromList] = (2, 14)
    """Fewest and most objects a scene; 0 allows scenes without any box."""
    object_size: Range = (8, 96)
    """Limits of an object's longer side in pixels; log-uniform between, unless `foreground_share`
    asks for other sizes."""
    foreground_share: Annotated[float, Field(gt=0, le=0.6)] | None = 0.15
    """Target of the mean share of pixels that lie in any box: the dial that moves the knee of an
    AP-against-keep-ratio curve; large or small sides within `object_size` are favoured to reach it.
    Null keeps sides log-uniform."""
    distractors: Annotated[tuple[Shapes, Shapes], FromList] = (0, 6)
    """Fewest and most distractors a scene: right colours, wrong shapes, no box."""
    contrast: Annotated[float, Field(gt=0, le=220)] = 70.0
    """Least RGB distance between an object's colours and the mean of what it covers; 220 is the
    largest that some colour reaches on every background."""
    seed: NonNegativeInt = 0
    """Seed of the data set; independent of the trial's seed."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> ShapesData:
        problems = [
            f"{name}: the first value must not exceed the second, got {list(value)}; "
            "for example [2, 14]"
            for name in ("objects", "object_size", "distractors")
            if (value := getattr(self, name))[0] > value[1]
        ]
        if self.object_size[1] > min(self.image_size):
            problems.append(
                f"object_size: objects must fit into the image, got {self.object_size[1]} px; "
                f"the image is {self.image_size[0]} x {self.image_size[1]} px"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


class CocoSplit(Spec):
    """One split of a COCO-format data set; paths are relative to the root."""

    images: str
    """Folder of the images."""
    annotations: str
    """COCO instances JSON."""


class CocoData(_DataSpec):
    """Any COCO-format folder."""

    kind: Literal["coco"]
    root: str
    """Folder of the data set; `--set data.root=…` on the command line."""
    train: CocoSplit = CocoSplit(
        images="train2017", annotations="annotations/instances_train2017.json"
    )
    """Training split."""
    val: CocoSplit = CocoSplit(images="val2017", annotations="annotations/instances_val2017.json")
    """Validation split; AP is computed on all of its images."""
    keep_empty: bool = False
    """Whether training images without a usable box are kept (the release drops them)."""


DataSpec = Annotated[ShapesData | CocoData, Field(discriminator="kind")]
