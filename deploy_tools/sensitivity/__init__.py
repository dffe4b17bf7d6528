"""What each layer, tensor and range costs in accuracy, found without running whole models."""
