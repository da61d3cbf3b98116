"""The network whose layers PaDiM looks at, made ready to compute: for one image size, frozen, batch norms folded."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from padim_bottle.errors import UserError, in_a_line

# What timm's models raise where a size or a layer does not suit them.
_REFUSALS = (
    AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class Layer(NamedTuple):
    """A layer that a network offers: its place among them, its channels, and the pixels between its positions."""

    place: int
    channels: int
    stride: int


class NetworkFacts(NamedTuple):
    """What timm says of a network, without building it.

    Attributes:
        layers: by name, shallowest first.
        native_size: height and width that it was made for.
        one_size: whether it is built for one size of images, as most transformers are.
    """

    layers: dict[str, Layer]
    native_size: tuple[int, int]
    one_size: bool


class Folded(NamedTuple):
    """A batch normalisation that was folded into a convolution: their names, and its epsilon."""

    convolution: str
    norm: str
    epsilon: float


@lru_cache
def network_facts(backbone: str) -> NetworkFacts:
    """Return what timm says of a backbone.

    Args:
        backbone: timm name, or ``local-dir:<folder>``.
    """
    with torch.device("meta"):
        model = timm.create_model(backbone, pretrained=False, features_only=True, exportable=True)
    layers: dict[str, Layer] = {}
    for place, info in enumerate(model.feature_info.info):
        layers.setdefault(info["module"], Layer(place, info["num_chs"], info["reduction"]))
    _, height, width = model.pretrained_cfg["input_size"]
    return NetworkFacts(layers, (height, width), bool(model.pretrained_cfg.get("fixed_input_size")))


class FrozenBackbone(nn.Module):
    """A network whose layers PaDiM looks at; it is never trained.

    Batch normalisations are folded into the convolutions before them: that moves features by rounding alone and spares
    a pass over each map. Weights of a checkpoint where they are not are folded as they are loaded.

    Args:
        backbone: timm name, or ``local-dir:<folder>``.
        layers: names of the layers, from shallow to deep.
        pre_trained: load weights; else the network is random, with the same weights for every seed.
        image_size: height and width of the images; ``None`` for those that the network was made for.

    Attributes:
        out_dims: channels of each layer.
        folded: the batch normalisations that are no longer there.

    Raises:
        UserError: the network cannot take images of this size, or its layers are no maps.
    """

    def __init__(
        self, backbone: str, layers: Sequence[str], pre_trained: bool, image_size: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = list(layers)
        self._facts = network_facts(backbone)
        self._chosen = [self._facts.layers[layer] for layer in layers]
        self.out_dims = [layer.channels for layer in self._chosen]
        self.image_size = self._facts.native_size if image_size is None else (image_size[0], image_size[1])
        # Dataflow is read off the graph of the gradients, whatever the caller does without.
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            # A network that is not loaded comes from the global generator: fixed here, and the caller's state left
            # alone. The demo's figures rest on the second network that it gives.
            torch.manual_seed(0)
            try:
                if not pre_trained:
                    timm.create_model(backbone, features_only=True, exportable=True)
                self.feature_extractor = self._create(pre_trained, self.image_size)
                self._check_maps(self.feature_extractor, self.image_size)
            except _REFUSALS as error:
                raise UserError(self._refusal(error)) from error
            self.folded = fold_batch_norms(self.feature_extractor, torch.zeros(1, 3, *self.image_size))
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the layers' maps (B, C, h, w) of images (B, 3, H, W)."""
        with torch.no_grad():
            maps = self.feature_extractor(inputs.contiguous(memory_format=torch.channels_last))
        return dict(zip(self.layers, _channels_first(self.feature_extractor, maps), strict=True))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        inside = f"{prefix}feature_extractor."
        own = {prefix + name for name in self.state_dict()}
        for convolution, norm, epsilon in self.folded:
            names = ("running_mean", "running_var", "weight", "bias", "num_batches_tracked")
            mean, variance, scale, shift, _ = (state_dict.pop(f"{inside}{norm}.{name}", None) for name in names)
            if mean is not None:
                weight, bias = f"{inside}{convolution}.weight", f"{inside}{convolution}.bias"
                state_dict[weight], state_dict[bias] = fuse_conv_bn_weights(
                    state_dict[weight], state_dict.get(bias), mean, variance, epsilon, scale, shift
                )
        # Stages that were computed in vain.
        for name in [name for name in state_dict if name.startswith(f"{inside}blocks.") and name not in own]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Stay as it is: nothing in it depends on the batch, or on chance."""
        return super().train(False)

    def _create(self, pre_trained: bool, image_size: tuple[int, int]) -> nn.Module:
        places = [layer.place for layer in self._chosen]
        arguments: dict[str, Any] = {"features_only": True, "exportable": True, "out_indices": places}
        if self._facts.one_size:
            arguments["img_size"] = image_size
        network: nn.Module = timm.create_model(self.backbone, pretrained=pre_trained, **arguments)
        if isinstance(network, (EfficientNetFeatures, MobileNetV3Features)):
            # They compute all their stages, whichever are asked for.
            stages = [int(layer.removeprefix("blocks.")) for layer in self.layers if layer.startswith("blocks.")]
            network.blocks = network.blocks[: max(stages, default=-1) + 1]
        return network.eval()

    def _check_maps(self, network: nn.Module, image_size: tuple[int, int]) -> None:
        """Let one empty image pass, so that what the network cannot take fails before any work is done.

        Raises:
            ValueError: a layer is no map of its channels, or patches leave a rest of the image that no map shows.
        """
        maps = _channels_first(network, network(torch.zeros(1, 3, *image_size)))
        for name, layer, feature in zip(self.layers, self._chosen, maps, strict=True):
            if feature.ndim != 4 or feature.shape[1] != layer.channels:
                raise ValueError(f"{name} gives {tuple(feature.shape)}, not a map of {layer.channels} channels")
            shown = [count * layer.stride for count in feature.shape[2:]]
            if self._facts.one_size and any(part < side for part, side in zip(shown, image_size, strict=True)):
                raise ValueError(f"patches of {layer.stride} pixels leave a rest")

    def _refusal(self, error: Exception) -> str:
        height, width = self.image_size
        message = f"image_size: {self.backbone} cannot take images of {height} x {width} pixels ({in_a_line(error)})."
        # Whole strides of the network are what most of them want.
        stride = max(layer.stride for layer in self._facts.layers.values())
        below, above = ([max(1, side // stride + more) * stride for side in self.image_size] for more in (0, 1))
        fitting = [f"[{h}, {w}]" for h, w in (below, above, self._facts.native_size) if self._fits((h, w))]
        return f"{message} Choose {' or '.join(dict.fromkeys(fitting))}." if fitting else message

    def _fits(self, image_size: tuple[int, int]) -> bool:
        try:
            with torch.device("meta"):
                self._check_maps(self._create(False, image_size), image_size)
        except _REFUSALS:
            return False
        return True


def fold_batch_norms(network: nn.Module, images: torch.Tensor) -> list[Folded]:
    """Fold batch normalisations into the convolutions before them, in place, and return which.

    Those are folded of which the graph of the gradients says that they alone take what their convolution gives, and
    nobody else looks at it.

    Args:
        network: in eval mode, and with gradients.
        images: (B, 3, H, W); only their size matters.
    """
    modules = dict(network.named_modules())
    convolved: dict[Any, str] = {}  # by the node of the graph
    taken: list[tuple[Any, str]] = []
    calls: Counter[str] = Counter()

    def note_output(name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            calls[name] += 1
            convolved[output.grad_fn] = name

        return note

    def note_input(name: str) -> Any:
        def note(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            calls[name] += 1
            taken.append((inputs[0].grad_fn, name))

        return note

    hooks = []
    for name, module in modules.items():
        if module._forward_hooks or module._forward_pre_hooks:
            continue  # someone looks at it
        if type(module) in (nn.Conv2d, Conv2dSame):
            hooks.append(module.register_forward_hook(note_output(name)))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(note_input(name)))
    uses = _uses([feature.grad_fn for feature in network(images)])
    for hook in hooks:
        hook.remove()
    folded = []
    for node, name in taken:
        source = convolved.get(node)
        if source is None or uses[node] != 1 or calls[source] != 1 or calls[name] != 1:
            continue
        convolution, norm = modules[source], modules[name]
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        # What a BatchNormAct2d does besides keeps its names.
        rest = OrderedDict((part, getattr(norm, part)) for part in ("drop", "act") if hasattr(norm, part))
        network.set_submodule(name, nn.Sequential(rest) if rest else nn.Identity())
        folded.append(Folded(source, name, norm.eps))
    return folded


def _uses(roots: Sequence[Any]) -> Counter[Any]:
    """Return how many others take what each node of a graph of gradients gives, its roots' callers included."""
    uses: Counter[Any] = Counter(roots)
    seen, waiting = set(roots), list(roots)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                uses[node] += 1
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    return uses


def _channels_first(network: nn.Module, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return maps (B, C, h, w): transformers such as Swin give (B, h, w, C), and say so."""
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return [feature.permute(0, 3, 1, 2) for feature in maps]
    return list(maps)
