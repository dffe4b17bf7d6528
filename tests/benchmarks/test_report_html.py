import builtins
import copy
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from benchmarks.predictions import Predictions
from benchmarks.report import write_report
from benchmarks.report.html import html_from_report
from deploy_tools.errors import ArtifactError

VOID = {"meta", "br", "link", "img"}


class Checker(HTMLParser):
    """Notes unbalanced tags, ids used twice and references to other places."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags, self.outside, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.outside.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_the_page_is_whole_and_self_contained(report):
    page = html_from_report(*report)
    found = checked(page)
    assert found.outside == []
    assert "script" not in found.tags
    assert "url(http" not in page
    assert len(found.ids) == len(set(found.ids))
    assert found.tags.count("svg") == 5  # accuracy, two latencies, confusion, difference
    referenced = set(re.findall(r"url\(#([^)]+)\)", page)) | set(
        re.findall(r'href="#([^"]+)"', page)
    )
    assert referenced <= set(found.ids)


def test_the_page_tells_everything(report):
    values, folder = report
    text = " ".join(checked(html_from_report(values, folder)).text)
    for words in (
        "resnet20-cifar on some-images", "Fastest: int8-static-ort", "the builder said <b>no</b>",
        values["command"], "c" * 64, "d" * 64, "A CPU", "images per second", "milliseconds a call",
        "kind 3", "predicted", "no limit", "8 GB", "100 MB",
    ):  # fmt: skip
        assert words in text, words


def test_text_of_others_is_escaped(report):
    values, folder = copy.deepcopy(report[0]), report[1]
    evil = '<script>alert("x")</script>'
    values["command"] = values["model"]["arch"] = values["data"]["name"] = evil
    values["environment"]["cpu"]["model"] = evil
    values["model"]["classes"] = [evil] * 6
    values["variants"][2]["build"]["reason"] = evil
    page = html_from_report(values, folder)
    assert "<script" not in page
    assert "script" not in checked(page).tags


def test_light_and_dark_and_small_screens(report):
    page = html_from_report(*report)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "currentColor" in page
    assert "#0a0b0c" not in page
    assert "#0a0b0d" not in page


def test_without_matplotlib_the_page_says_which_extra(report, monkeypatch):
    real = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name=name)
        return real(name, *args, **kwargs)

    import importlib

    real_import = importlib.import_module
    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *a: no_matplotlib(name) and real_import(name, *a)
    )
    values, folder = report
    write_report(values, folder)
    found = checked((folder / "report.html").read_text())
    assert "svg" not in found.tags
    assert "deploy-tools[report]" in " ".join(found.text)
    assert found.tags.count("table") >= 4


def test_missing_files_leave_their_plots_out(report):
    values, folder = report
    for path in [*folder.glob("samples/*"), *folder.glob("predictions/*")]:
        path.unlink()
    found = checked(html_from_report(values, folder))
    assert found.tags.count("svg") == 1
    assert "Latency distributions" not in found.text


def test_damaged_files_are_not_passed_over(report):
    values, folder = report
    (folder / "predictions" / "fp32-ort.npz").write_text("x")
    with pytest.raises(ArtifactError):
        html_from_report(values, folder)


def test_many_classes_become_a_list_of_pairs(report):
    values, folder = report
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 40, 500)
    logits = generator.normal(size=(500, 40)).astype(np.float32)
    many = Predictions(tuple(map(str, range(500))), labels, logits, "d")
    for name in ("fp32-ort", "int8-static-ort"):
        many.save(folder / "predictions" / f"{name}.npz")
    found = checked(html_from_report(values, folder))
    assert "Most confused classes of fp32-ort" in found.text
    assert found.tags.count("svg") == 3


def test_a_report_without_speed_or_accuracy_is_still_a_page(report):
    values, folder = copy.deepcopy(report[0]), report[1]
    for variant in values["variants"]:
        variant["accuracy"] = {"status": "skipped", "reason": "not asked for"}
        variant["speed"] = {"status": "skipped", "reason": "not asked for"}
    found = checked(html_from_report(values, folder))
    assert "svg" not in found.tags
    assert " ".join(found.text).count("not asked for") == 6
