"""The detector on a GPU: the same numbers as on a CPU, and no waiting for the device."""

from collections.abc import Callable, Iterator

import pytest
import torch

from focus_lab.model.focus_detr import FocusDETR, build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.fit import fit
from focus_lab.training.reporter import MemoryReporter

pytestmark = pytest.mark.gpu

SIZES = ((64, 64), (48, 64))
NUM_CLASSES = 3


@pytest.fixture
def model(tiny_trial: Callable[..., TrialSpec]) -> FocusDETR:
    torch.manual_seed(0)
    return build_model(tiny_trial().model, NUM_CLASSES).eval()


@pytest.fixture
def strict_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_a_gpu_detects_what_a_cpu_detects(model: FocusDETR) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours = model(images, SIZES)
        theirs = model.cuda()(images.cuda(), SIZES)
    for name in ("pred_logits", "pred_boxes", "foreground_logits"):
        torch.testing.assert_close(theirs[name].cpu(), ours[name], rtol=1e-4, atol=1e-4)


def test_the_forward_pass_never_waits_for_the_device(
    model: FocusDETR, strict_synchronisation: None
) -> None:
    images = torch.rand(2, 3, 64, 64).pin_memory().cuda(non_blocking=True)
    with torch.no_grad():
        model.cuda()(images, SIZES)


def test_a_trial_trains_in_bfloat16(tiny_trial: Callable[..., TrialSpec], tmp_path: object) -> None:
    spec = tiny_trial(training={"precision": "bf16"}, compute={"device": "cuda"})
    result = fit(spec, MemoryReporter(), tmp_path)
    assert len(result.history) == spec.training.epochs
