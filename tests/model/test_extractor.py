"""The network whose layers PaDiM looks at: timm's own is the reference."""

import pytest
import timm
import torch
from torch import nn

from padim_bottle import Padim
from padim_bottle.errors import UserError
from padim_bottle.model.extractor import FrozenBackbone, network_facts


def timms(name, layers, **arguments):
    """Timm's own network, whose batch norms do something."""
    torch.manual_seed(1)
    places = [network_facts(name).layers[layer].place for layer in layers]
    network = timm.create_model(name, features_only=True, exportable=True, out_indices=places, **arguments).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2), nn.init.normal_(module.running_mean, std=0.1)
    return network


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "layers", "folded"),
    [
        ("resnet18.tv_in1k", ["layer1", "layer2", "layer3"], 15),
        # Its batch norms activate as well. Blocks 5 and 6 go.
        ("tf_efficientnet_lite0.in1k", ["blocks.1", "blocks.2", "blocks.4"], 33),
        # Of each block's three batch norms, the first is not alone: the shortcut takes the same map.
        slow("resnetv2_50.a1h_in1k", ["stem.conv", "stages.0"], 6),
        # Of each layer's two, the first takes several convolutions joined.
        slow("densenet121.tv_in1k", ["features.norm0", "features.denseblock1"], 7),
        # Sums of a convolution and a batch norm.
        slow("fastvit_t8.apple_in1k", ["stages.0", "stages.1"], 20),
        # None; channels last; transformers, built for one size.
        slow("mambaout_femto.in1k", ["stages.0", "stages.1"], 0),
        slow("vit_small_patch14_dinov2.lvd142m", ["blocks.1", "blocks.3"], 0),
        slow("vit_small_patch16_dinov3.lvd1689m", ["blocks.1", "blocks.3"], 0),
        slow("swin_tiny_patch4_window7_224.ms_in1k", ["layers.0", "layers.1"], 0),
    ],
)
def test_features_are_timms_also_from_a_checkpoint_whose_batch_norms_stand(name, layers, folded):
    size = (56, 56) if "patch14" in name else (64, 64)
    reference = timms(name, layers, **({"img_size": size} if network_facts(name).one_size else {}))
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    backbone = FrozenBackbone(name, layers, pre_trained=False, image_size=size)
    assert len(backbone.folded) == folded
    if name.startswith(("resnet18", "tf_efficientnet")):  # nothing else is computed
        assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == folded
    backbone.load_state_dict({f"feature_extractor.{key}": value for key, value in reference.state_dict().items()})
    with torch.no_grad():
        expected = reference(images)
    for (layer, feature), other in zip(backbone(images).items(), expected, strict=True):
        other = other if other.shape[1] == network_facts(name).layers[layer].channels else other.permute(0, 3, 1, 2)
        assert feature.shape == other.shape
        assert (feature - other).abs().max() < 1e-5 * other.abs().max()
    # What it saves it loads.
    again = FrozenBackbone(name, layers, pre_trained=False, image_size=size)
    again.load_state_dict(backbone.state_dict())
    for layer, feature in again(images).items():
        assert torch.equal(feature, backbone(images)[layer])


def test_it_stays_as_it_is_and_is_the_same_wherever_it_is_made():
    with torch.inference_mode():
        made_inside = FrozenBackbone("resnet18", ["layer1"], pre_trained=False).train()
    made_outside = FrozenBackbone("resnet18", ["layer1"], pre_trained=False)
    assert not any(module.training for module in made_inside.modules())
    assert len(made_inside.folded) == 5
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(made_inside(images)["layer1"], made_outside(images)["layer1"])


@pytest.mark.parametrize(
    ("name", "layers", "size", "message"),
    [
        (
            "vit_small_patch14_dinov2.lvd142m",
            ["blocks.2"],
            (256, 256),
            r"\(patches of 14.*Choose \[252, 252\] or \[266",
        ),
        ("vit_small_patch16_dinov3.lvd1689m", ["blocks.2"], (100, 64), r"Choose \[96, 64\] or \[112, 80\]"),
        ("nest_tiny_jx.goog_in1k", ["levels.0"], (128, 64), r"square inputs\)\. Choose \[224, 224\]\."),
    ],
)
def test_a_size_that_a_backbone_cannot_take_is_refused_with_those_that_it_can(name, layers, size, message):
    with pytest.raises(
        UserError, match=rf"^image_size: {name} cannot take images of {size[0]} x {size[1]} .*{message}"
    ):
        Padim(name, layers, False, n_features=20, image_size=size)


@pytest.mark.parametrize("grids", [None, [["layers.0"], ["layers.0", "layers.1"]]], ids=["one grid", "grids"])
def test_padim_sees_maps_of_channels_last_turned(grids):
    name, layers = "swin_tiny_patch4_window7_224.ms_in1k", ["layers.0", "layers.1"]
    padim = Padim(name, layers, False, grids, n_features=20, image_size=(64, 96))
    embedding = padim.model.grids[-1].embedding(padim.model.features(torch.rand(2, 3, 64, 96)))
    assert embedding.shape == (2, *((16 * 24, 20) if grids is None else (8 * 12, 20)))


def test_random_weights_are_those_of_before():
    """The demo's figures rest on them: the second network after seed 0, as anomalib's extractor makes it."""
    from anomalib.models.components import TimmFeatureExtractor

    torch.manual_seed(0)
    theirs = TimmFeatureExtractor("resnet18", ["layer1", "layer3"], pre_trained=False).eval()
    images = torch.rand(1, 3, 64, 64)
    for layer, feature in FrozenBackbone("resnet18", ["layer1", "layer3"], pre_trained=False)(images).items():
        torch.testing.assert_close(feature, theirs(images)[layer], rtol=1e-4, atol=1e-5)
