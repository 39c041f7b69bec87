"""The detector on a GPU: the same numbers as on a CPU, and no waiting for the device."""

from collections.abc import Callable, Iterator

import pytest
import torch

from focus_lab.model.criterion import Criterion, build_criterion
from focus_lab.model.focus_detr import FocusDETR, build_model
from focus_lab.model.output import Target
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.bench import bench_train
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
def whole_float32() -> Iterator[None]:
    """No convolution in TensorFloat-32, which has ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_a_gpu_detects_what_a_cpu_detects(model: FocusDETR, whole_float32: None) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours = model(images, SIZES)
        theirs = model.cuda()(images.cuda(), SIZES)
    for name in ("pred_logits", "pred_boxes", "foreground_logits"):
        torch.testing.assert_close(theirs[name].cpu(), ours[name], rtol=1e-4, atol=1e-4)


def test_the_forward_pass_never_waits_for_the_device(model: FocusDETR) -> None:
    images = torch.rand(2, 3, 64, 64).cuda()
    model.cuda()
    with torch.no_grad():
        model(images, SIZES)  # what is made once, constants of these sizes among it
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(images, SIZES)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def training_step(model: FocusDETR, criterion: Criterion) -> list[torch.Tensor]:
    """The total loss, then the gradient of each parameter."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 64, 64, generator=generator).cuda()
    targets: list[Target] = [
        {
            "labels": torch.arange(count, device="cuda") % NUM_CLASSES,
            "boxes": (torch.rand(count, 4, generator=generator) * 0.4 + 0.3).cuda(),
        }
        for count in (1, 3)
    ]
    torch.manual_seed(2)  # of the denoising queries
    total = criterion.total(criterion(model(images, SIZES, targets), targets, SIZES))
    return [total, *torch.autograd.grad(total, list(model.parameters()), allow_unused=True)]


def test_a_training_step_is_that_of_the_reference_operator(
    tiny_trial: Callable[..., TrialSpec], whole_float32: None
) -> None:
    steps = []
    for implementation in ("reference", "compiled"):
        spec = tiny_trial(model={"ops": {"implementation": implementation}}).model
        torch.manual_seed(0)
        model = build_model(spec, NUM_CLASSES)
        for name, parameter in model.named_parameters():
            # A fresh detector samples at pixels' very centres, where the derivative has a step.
            if name.endswith("sampling_offsets.bias"):
                parameter.data.uniform_(-2, 2)
        model.cuda().train()
        steps.append(training_step(model, build_criterion(spec, NUM_CLASSES)))
    for ours, theirs in zip(*reversed(steps), strict=True):
        if theirs is None:
            assert ours is None
        else:
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7


def test_a_trial_trains_in_bfloat16(tiny_trial: Callable[..., TrialSpec], tmp_path: object) -> None:
    spec = tiny_trial(training={"precision": "bf16"}, compute={"device": "cuda"})
    result = fit(spec, MemoryReporter(), tmp_path)
    assert len(result.history) == spec.training.epochs


def test_the_bench_of_training_says_what_memory_each_setting_takes(
    tiny_trial: Callable[..., TrialSpec],
) -> None:
    result = bench_train(tiny_trial(compute={"device": "cuda"}), steps=2, rounds=2)
    assert all(0 < peak < 1000 for peak in result["peak_memory_mib"].values())
    assert 0 <= result["idle_share"]["ours"] <= 1
