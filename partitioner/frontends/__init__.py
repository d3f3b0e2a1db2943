"""The ways in: configurations of transformers models, ONNX files and PyTorch modules, each lowered to the one graph."""
