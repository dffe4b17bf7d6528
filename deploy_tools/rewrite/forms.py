"""Which form of the uint8 input each target gets."""

from __future__ import annotations

FORMS = ("first", "folded")
