"""A model that leaves this machine: ONNX and OpenVINO, in other precisions, with proof."""
