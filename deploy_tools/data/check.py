"""Does the data fit the model, and are calibration and evaluation kept apart?"""

from __future__ import annotations

from collections.abc import Sequence

from deploy_tools.data.source import ImageSource
from deploy_tools.errors import UserError

_SHOWN = 3


def check_classes(source: ImageSource, num_classes: int) -> None:
    """Raise UserError where the data's classes and the model's logits differ in number.

    Data without class names only has to stay below `num_classes` with its labels.
    """
    where = f"{source.name} ({source.split})"
    if source.classes:
        if len(source.classes) != num_classes:
            raise UserError(
                f"{where} has {len(source.classes)} classes and the model {num_classes}.",
                "Use the data that the model was trained for, or correct --num-classes.",
            )
        return
    highest = int(source.labels.max(initial=-1))
    if highest >= num_classes:
        raise UserError(
            f"{where} has the label {highest} and the model only {num_classes} classes "
            f"(0 to {num_classes - 1}).",
            "Use the data that the model was trained for, or correct --num-classes.",
        )


def refuse_overlap(
    calibration: ImageSource,
    calibration_indices: Sequence[int],
    evaluation: ImageSource,
    evaluation_indices: Sequence[int],
) -> None:
    """Raise UserError where an image is used for both; images are compared by their sha256.

    An accuracy measured on images that the ranges were fitted to would flatter the variant.
    """
    evaluated = {evaluation.content_hash(index): index for index in evaluation_indices}
    shared = [
        (index, evaluated[digest])
        for index in calibration_indices
        if (digest := calibration.content_hash(index)) in evaluated
    ]
    if not shared:
        return
    pairs = [
        f"{calibration.image_id(ours)} = {evaluation.image_id(theirs)}"
        for ours, theirs in shared[:_SHOWN]
    ]
    more = ", ..." if len(shared) > _SHOWN else ""
    raise UserError(
        f"{len(shared)} of {len(calibration_indices)} calibration images are also evaluation "
        f"images: {', '.join(pairs)}{more}.",
        "Calibrate on another split, or on images that evaluation does not use.",
    )
