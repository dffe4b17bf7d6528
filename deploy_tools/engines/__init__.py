"""TensorRT engines: lint, build, explain."""
