"""Export: ONNX, its parity with PyTorch, INT8 and TensorRT."""
