"""Accuracy, speed and memory against the FP32 baseline, with an uncertainty on every figure."""
