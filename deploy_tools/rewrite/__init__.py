"""Graph rewrites: one pass a file, ONNX to ONNX, each proved equal by its test."""
