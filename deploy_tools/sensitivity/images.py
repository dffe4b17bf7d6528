"""Images to measure on that nothing was made from and nothing will be judged on."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from deploy_tools.data.source import ImageSource


def spare_images(
    source: ImageSource, count: int, used: Collection[str], seed: int = 0
) -> tuple[int, ...]:
    """Return up to `count` positions of images that differ from the used ones and each other.

    used: content hashes, so the same image under another name is out too. Drawn at random; the
    same source, hashes and seed give the same images. Fewer where the source has no more.
    """
    known = set(used)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(source))
    found: list[int] = []
    for index in map(int, order):
        if len(found) == count:
            break
        content = source.content_hash(index)
        if content not in known:
            known.add(content)
            found.append(index)
    return tuple(found)
