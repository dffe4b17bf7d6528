"""From a trained ResNet checkpoint to artifacts whose accuracy and speed are proved.

Importing this package loads none of torch, onnx or onnxruntime: every room imports
what it needs when it is used, so commands that work on ONNX files run without torch.
"""

from deploy_tools.version import __version__

__all__ = ["__version__"]
