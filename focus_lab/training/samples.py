"""What a trial shows of itself: the same validation images in every trial.

With them go detections, the depth to which each token was refined, and how many each layer refined.
Numbers only; the report draws them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from focus_lab.data.dataset import DetectionDataset
from focus_lab.data.loader import build_eval_loader
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.model.output import ModelOutput
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.evaluation import detect, kept_depth

NUM_SAMPLES = 6
FILE = "samples.json"


def choose_samples(dataset: DetectionDataset, count: int = NUM_SAMPLES) -> list[int]:
    """Evenly spread indices of images that have boxes: the same for every trial of a data set."""
    candidates = [index for index in range(len(dataset)) if len(dataset.labels(index))]
    if not candidates:
        return []
    places = np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)
    return [candidates[place] for place in dict.fromkeys(places.tolist())]


def write_samples(
    model: FocusDETR,
    dataset: DetectionDataset,
    spec: TrialSpec,
    device: torch.device,
    folder: Path,
    score_threshold: float = 0.3,
) -> None:
    """Write the sample images and `samples.json` into `folder`.

    Args:
        model: the trained detector.
        dataset: the validation images.
        spec: the trial's spec.
        device: where the model is.
        folder: made if missing.
        score_threshold: detections below are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    entries = []
    layers = spec.model.num_encoder_layers
    indices = choose_samples(dataset)
    loader = build_eval_loader(dataset, spec.data, batch_size=1, indices=indices)
    with torch.inference_mode():
        for index, host_batch in zip(indices, loader, strict=True):
            batch = host_batch.to(device)
            output = model(batch.images, batch.sizes, batch.targets, image_ids=batch.image_ids)
            found = detect(output, batch, spec.model.num_detections)[0]
            sample = dataset.load(index)
            file = f"{sample.image_id}.jpg"
            pixels = sample.image.permute(1, 2, 0).numpy()  # [H, W, 3]
            Image.fromarray(pixels).save(folder / file, quality=90)
            shown = found.scores >= score_threshold
            entries.append(
                {
                    "image_id": sample.image_id,
                    "file": file,
                    "original_size": batch.original_sizes[0],
                    "input_size": batch.sizes[0],
                    "padded_size": list(batch.images.shape[-2:]),
                    "truth": {
                        "boxes_xyxy": sample.boxes_xyxy.tolist(),
                        "labels": sample.labels.tolist(),
                    },
                    "detections": {
                        "boxes_xyxy": found.boxes_xyxy[shown].round(decimals=1).tolist(),
                        "labels": found.labels[shown].tolist(),
                        "scores": found.scores[shown].round(decimals=3).tolist(),
                    },
                    "level_shapes": output["level_shapes"],
                    "strides": output["strides"],
                    "kept_depth": kept_depth(output, layers)[0].tolist(),
                    "kept_by_layer": _kept_by_layer(output, layers),
                }
            )
    content = {
        "class_names": dataset.class_names,
        "num_encoder_layers": layers,
        "images": entries,
    }
    (folder / FILE).write_text(json.dumps(content))


def _kept_by_layer(output: ModelOutput, num_layers: int) -> list[int]:
    """How many tokens of the only image each encoder layer refines."""
    selected = output["token_selection"]
    if selected is None:
        return [sum(height * width for height, width in output["level_shapes"])] * num_layers
    return [kept for (kept,) in selected.kept]
