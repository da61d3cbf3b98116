"""OpenVINO's form of an exported model: which precision each operation has, and how large its constants are.

A processor that can compute in bfloat16 does, unless told otherwise: scores of good photos then move by a tenth, and
verdicts with them. So every operation but the backbone's, or with it, is marked to stay in single precision, and the
marks are part of the file: compiled by anyone, with any settings, it gives the scores it was calibrated for. When
OpenVINO replaces an operation by another one the mark is lost, so operations that it would replace are written as what
it would make of them.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import openvino as ov
from openvino import opset1, opset13
from openvino.utils.node_factory import NodeFactory

# Constants with fewer numbers are not worth shrinking.
_LARGE = 100_000

# OpenVINO's name of the attribute by which an operation keeps its precision.
_KEEP_PRECISION = "precise_0"

_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Backbone:
    """The part of an exported model that is the network.

    Attributes:
        operations: names of its operations.
        features: names of those whose outputs are the features, from shallow to deep.
    """

    operations: frozenset[str]
    features: tuple[str, ...]

    def holds(self, operation: Any) -> bool:
        """Tell whether an operation is part of it: one of ONNX may have become several, ``<name>/...``."""
        return operation.get_friendly_name().split("/")[0] in self.operations


def read_onnx(path: Path) -> tuple[Any, Backbone]:
    """Return an exported model as one of OpenVINO's, and which part of it is the backbone.

    Args:
        path: of an ONNX file as torch wrote it, which says of each operation what module it comes from.
    """
    nodes = onnx.load(path).graph.node
    inside = [node for node in nodes if any(scope.endswith("feature_extractor") for scope in _scopes(node))]
    names = frozenset(node.name for node in inside)
    used = {name for node in nodes if node.name not in names for name in node.input}
    features = tuple(node.name for node in inside if used.intersection(node.output))
    return ov.convert_model(path), Backbone(names, features)


def _scopes(node: Any) -> list[str]:
    found = [entry.value for entry in node.metadata_props if entry.key == _SCOPES]
    return ast.literal_eval(found[0]) if found else []


def keep_single_precision(model: Any, holds: Callable[[Any], bool]) -> Any:
    """Return a model whose operations for which ``holds`` compute in single precision wherever it runs."""
    for operation in model.get_ops():
        build = _PLAIN.get((operation.get_type_name(), operation.get_type_info().version_id))
        if build is not None:
            plain = build(operation, operation.get_attributes())
            plain.set_friendly_name(operation.get_friendly_name())
            operation.output(0).replace(plain.output(0))
    for operation in filter(holds, model.get_ops()):
        operation.rt_info[_KEEP_PRECISION] = ""
    # Marks mean something once they have been read from a file.
    core = ov.Core()
    core.set_property({"ENABLE_MMAP": False})  # or the file could not be removed everywhere
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        ov.save_model(model, path, compress_to_fp16=False)
        return core.read_model(path)


def _max_pool(operation: Any, attributes: dict[str, Any]) -> Any:
    names = ("strides", "pads_begin", "pads_end", "kernel", "rounding_type", "auto_pad")
    return opset1.max_pool(operation.input_value(0), *(attributes[name] for name in names))


def _softmax(operation: Any, attributes: dict[str, Any]) -> Any:
    rank = len(operation.input_value(0).partial_shape)
    return opset1.softmax(operation.input_value(0), attributes["axis"] % rank)


def _interpolate(operation: Any, attributes: dict[str, Any]) -> Any:
    photo, sizes = operation.input_value(0), operation.input_value(1)
    scales = opset13.constant(np.ones(len(photo.partial_shape), dtype=np.float32))  # not read: sizes decide
    inputs = [photo, sizes, scales.output(0)]
    # The module of this opset has only an older one.
    return NodeFactory("opset4").create("Interpolate", inputs, attributes)


# What the plug-in for processors makes of these operations itself, but then without the mark.
_PLAIN = {
    ("MaxPool", "opset8"): _max_pool,
    ("MaxPool", "opset14"): _max_pool,
    ("Softmax", "opset8"): _softmax,
    ("Interpolate", "opset11"): _interpolate,
}


def shrink_constants(model: Any) -> None:
    """Store large constants that half precision holds exactly in half precision, in place, as ONNX has them.

    OpenVINO's converter unfolds them. Its own compression would round everything else too: network, means, thresholds.
    """
    for operation in model.get_ops():
        if operation.get_type_name() != "Constant" or operation.get_element_type() != ov.Type.f32:
            continue
        values = operation.data
        half = values.astype(np.float16)
        if values.size >= _LARGE and np.array_equal(half.astype(np.float32), values):
            restored = opset13.convert(opset13.constant(half), "f32")
            operation.output(0).replace(restored.output(0))


def compile_features(model: Any, backbone: Backbone, settings: Mapping[str, Any]) -> Callable[[Any], list[Any]]:
    """Return what computes the features (1, C, h, w) of a photo (1, 3, height, width), as the model does.

    The whole model computes them, and each is handed out through a product with the identity: OpenVINO lets what lies
    between the last product and an output keep its precision, and the backbone must not.
    """
    model = model.clone()  # its operations get outputs more
    by_name = {operation.get_friendly_name(): operation for operation in model.get_ops()}
    results, marked = list(model.get_results()), set()
    first = len(results)
    for name in backbone.features:
        feature = by_name[name].output(0)
        identity = opset13.constant(np.eye(feature.partial_shape[3].get_length(), dtype=np.float32))
        product = opset13.matmul(feature, identity, False, False)
        product.set_friendly_name(f"{name}, handed out")
        marked.add(product.get_friendly_name())
        results.append(opset13.result(product))
    whole = ov.Model(results, model.get_parameters())
    whole = keep_single_precision(whole, lambda operation: operation.get_friendly_name() in marked)
    compiled = ov.Core().compile_model(whole, "CPU", dict(settings))
    return lambda photo: [np.array(value) for value in list(compiled(photo).values())[first:]]
