"""A checkpoint in MLflow's layout for models: what loads it, what it takes, what it needs."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from pathlib import Path

import focus_lab

MODEL = "model"
"""Folder of a run's artifacts."""

_NEEDS = re.compile(r"torch|torchvision|timm|numpy|scipy|pillow|pycocotools|safetensors|fsspec"
                    r"|pydantic|pyyaml")  # fmt: skip
"""What loading a checkpoint imports; the lab and its servers stay behind."""


def save_model(folder: Path, checkpoint: Path) -> None:
    """Write a `python_function` model that brings this package along.

    Args:
        folder: made; must not exist.
        checkpoint: the weights.
    """
    with warnings.catch_warnings():
        # MLflow warns of its own type hints when it is loaded.
        warnings.simplefilter("ignore", UserWarning)
        # Here and not above: it takes a second, and only a promotion needs it.
        from mlflow import pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

        signature = ModelSignature(
            inputs=Schema([ColSpec("string", "image")]),
            params=ParamSchema([ParamSpec("score_threshold", "double", 0.3)]),
        )
        pyfunc.save_model(
            str(folder),
            loader_module="focus_lab.lab.served_detector",
            data_path=str(checkpoint),
            code_paths=[str(Path(focus_lab.__file__).parent)],
            # Named, or MLflow would load the model in another process to find them out.
            pip_requirements=_requirements(),
            signature=signature,
        )


def _requirements() -> list[str]:
    """The libraries of this installation that a model needs, with their versions."""
    declared = importlib.metadata.requires("focus-lab") or []
    names = [re.split(r"[ <>=!~\[;]", line)[0] for line in declared if "extra ==" not in line]
    needed = [name for name in names if _NEEDS.fullmatch(name)]
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in needed]
