"""Shapes: two spellings, one profile, and what does not fit the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_tools.engines.shapes import (
    Shapes,
    parse_shapes,
    require_fit,
    shapes_of_batch,
    shapes_of_options,
)
from deploy_tools.errors import UserError

IMAGE = (None, 3, 224, 224)


def test_a_batch() -> None:
    shapes = shapes_of_batch("1:8:32", IMAGE)
    assert shapes == Shapes((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))
    assert shapes_of_batch("4", IMAGE) == Shapes(*[(4, 3, 224, 224)] * 3)
    assert shapes.profile() == {"min": [1, 3, 224, 224], "opt": [8, 3, 224, 224], "max": [32, 3, 224, 224]}  # fmt: skip
    require_fit(shapes, "input", IMAGE)


@pytest.mark.parametrize("text", ["", "1:8", "1:8:32:64", "a", "1:x:3", "-1:1:2", "1.5", "1 : 2 : 3", "９", "9" * 10])  # fmt: skip
def test_what_is_not_a_batch(text: str) -> None:
    with pytest.raises(UserError, match="is not MIN:OPT:MAX"):
        shapes_of_batch(text, IMAGE)


@pytest.mark.parametrize("text", ["0", "0:1:2", "8:4:16", "1:9:8"])
def test_a_batch_out_of_order(text: str) -> None:
    with pytest.raises(UserError, match="is not in order"):
        shapes_of_batch(text, IMAGE)


def test_a_batch_cannot_say_the_size_of_the_image() -> None:
    with pytest.raises(UserError, match=r"\?x3x\?x\?: more than the batch may vary") as caught:
        shapes_of_batch("1:8:32", (None, 3, None, None))
    assert "--min-shapes" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("input:1x3x224x224", {"input": (1, 3, 224, 224)}),
        ("input:[1,3,224,224]", {"input": (1, 3, 224, 224)}),
        ("input:[1, 3, 224, 224]", {"input": (1, 3, 224, 224)}),
        ("a:1x2,b:8", {"a": (1, 2), "b": (8,)}),
        ("a:[1,2] b:[8]", {"a": (1, 2), "b": (8,)}),
        ("a:[1,2],b:3x4", {"a": (1, 2), "b": (3, 4)}),
        ("input:0:1x3", {"input:0": (1, 3)}),
        ("'input:0':1x3", {"input:0": (1, 3)}),
        ('"in,put":1x3', {"in,put": (1, 3)}),
        ("/model/x.1:1", {"/model/x.1": (1,)}),
    ],
)
def test_both_spellings(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assert parse_shapes(text) == shapes


@pytest.mark.parametrize("text", ["1x3x224x224", "input", "input:", "input:1x", "input:[1,3", "input:[]", "input:-1x3", "input:1X3", "input:1*3", ":1x3"])  # fmt: skip
def test_what_is_not_a_shape_is_quoted(text: str) -> None:
    with pytest.raises(UserError, match="is not a shape") as caught:
        parse_shapes(text)
    assert "input:1x3x224x224" in str(caught.value)


@pytest.mark.parametrize("size", ["2147483648", "99999999999", "9" * 23, "9" * 5000])
def test_a_size_that_no_library_can_hold(size: str) -> None:
    for text in (f"input:1x3x8x{size}", f"input:[1,3,8,{size}]"):
        with pytest.raises(UserError, match='of "input" is above 2147483647') as caught:
            parse_shapes(text)
        assert len(str(caught.value)) < 200
    assert parse_shapes("input:2147483647") == {"input": (2147483647,)}
    low, high = (1, 3, 8, 8), (2**31, 3, 8, 8)
    with pytest.raises(UserError, match=r"the max shape 2147483648x3x8x8 .* dimension 0 is above"):
        require_fit(Shapes(low, low, high), "input", (None, 3, 8, 8))


def test_an_empty_text_and_a_name_given_twice() -> None:
    with pytest.raises(UserError, match="has no shape"):
        parse_shapes(" , ")
    with pytest.raises(UserError, match='"a" is given twice'):
        parse_shapes("a:1,a:2")


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=5))
def test_the_spellings_say_the_same(shape: list[int]) -> None:
    trtexec = f"x:{'x'.join(str(n) for n in shape)}"
    polygraphy = f"x:[{','.join(str(n) for n in shape)}]"
    assert parse_shapes(trtexec) == parse_shapes(polygraphy) == {"x": tuple(shape)}


def test_a_long_text_is_no_trouble() -> None:
    """In quadratic time this would take many minutes."""
    with pytest.raises(UserError):
        parse_shapes("[" * 1_000_000 + "a:1x" * 100_000)


def test_the_three_options() -> None:
    texts = {"min": "input:1x3x8x8", "opt": "input:[2,3,8,8]", "max": "input:4x3x8x8"}
    assert shapes_of_options(texts, "input") == Shapes((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
    with pytest.raises(UserError, match='--opt-shapes speaks of "image"') as caught:
        shapes_of_options(texts | {"opt": "image:2x3x8x8"}, "input")
    assert 'one input: "input"' in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (Shapes((1, 3, 8), (1, 3, 8, 8), (1, 3, 8, 8)), "the min shape 1x3x8 .* has 3 dimensions"),
        (Shapes((1, 3, 8, 8), (1, 1, 8, 8), (1, 3, 8, 8)), "the opt shape 1x1x8x8 .* dimension 1 is 3"),
        (Shapes((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 9)), "the max shape 1x3x8x9 .* dimension 3 is 8"),
        (Shapes((0, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8)), "dimension 0 must be 1 or more"),
        (Shapes((4, 3, 8, 8), (2, 3, 8, 8), (8, 3, 8, 8)), "min shape 4x3x8x8 .* larger than the opt"),
        (Shapes((1, 3, 8, 8), (9, 3, 8, 8), (8, 3, 8, 8)), "opt shape 9x3x8x8 .* larger than the max"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(shapes: Shapes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        require_fit(shapes, "input", (None, 3, 8, 8))
    assert '"input"' in str(caught.value)


def test_free_image_sizes_take_whole_shapes() -> None:
    shapes = Shapes((1, 3, 64, 64), (4, 3, 224, 224), (8, 3, 512, 512))
    require_fit(shapes, "input", (None, 3, None, None))
