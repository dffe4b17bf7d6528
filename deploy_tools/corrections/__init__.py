"""Corrections of the float weights that make INT8 of them more accurate; float ONNX to float ONNX."""
