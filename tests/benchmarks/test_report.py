import copy
import json
import math

import pytest

from benchmarks.report import load_report, summary_rows, validate_report, write_report
from benchmarks.report.facts import headline
from benchmarks.report.table import interval_text, not_done, notes
from deploy_tools.errors import ArtifactError, OutputError


def at(report, *keys):
    for key in keys[:-1]:
        report = report[key]
    return report, keys[-1]


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("schema",), 2, "schema 2"),
        (("tool",), "x", "tool must be a table"),
        (("data", "images"), -1, "data images"),
        (("calibration", "sha256"), 5, "calibration sha256"),
        (("baseline",), "fp32-torch", 'baseline is "fp32-torch"'),
        (("variants", 1, "id"), "int8-static-ort", "twice"),
        (("variants", 0, "id"), "../escape", r"variants\[0\] id"),
        (("variants", 0, "file"), "/etc/passwd", "relative path"),
        (("variants", 0, "accuracy", "predictions"), "../../x.npz", "relative path"),
        (("variants", 0, "accuracy", "top1"), 93.5, "from 0 to 1"),
        (("variants", 0, "accuracy", "drop_pp"), math.nan, "no such number"),
        (("variants", 0, "accuracy", "logit_sqnr_db"), math.inf, "no such number"),
        (("variants", 0, "accuracy", "drop_ci95_pp"), [0.2, -0.2], r"\[low, high\]"),
        (("variants", 0, "accuracy", "status"), "done", "must be one of"),
        (("variants", 2, "speed", "reason"), " ", "gives no reason"),
        (("variants", 0, "speed", "runs", 0, "scenario"), "online", "one of single-stream"),
        (("variants", 0, "speed", "runs", 1, "p50_ms"), 99.0, "must rise"),
        (("variants", 0, "speed", "runs", 1, "sample_count"), 0, "above 0"),
        (("variants", 0, "size_bytes"), 1.5, "whole number"),
        (("variants", 0, "size_bytes"), True, "whole number"),
    ],
)
def test_a_wrong_value_is_named(report, keys, value, words):
    table, key = at(copy.deepcopy(report[0]), *keys)
    wrong = copy.deepcopy(report[0])
    table, key = at(wrong, *keys)
    table[key] = value
    with pytest.raises(ArtifactError, match=words):
        validate_report(wrong)


def test_a_missing_key_is_named_wherever_it_is(report):
    for keys in (
        ("environment",), ("command",), ("data", "sha256"), ("calibration", "choose"),
        ("variants", 0, "provider"), ("variants", 0, "accuracy", "mcnemar_p"),
        ("variants", 0, "speed", "runs", 0, "speedup_ci95"),
    ):  # fmt: skip
        wrong = copy.deepcopy(report[0])
        table, key = at(wrong, *keys)
        del table[key]
        with pytest.raises(ArtifactError, match=f"lacks {key}"):
            validate_report(wrong)


def test_what_is_beyond_the_schema_is_allowed(report):
    more = copy.deepcopy(report[0]) | {"extra": 1, "calibration": None}
    more["variants"][0]["accuracy"]["another"] = None
    validate_report(more)


def test_a_report_is_written_and_comes_back(report, tmp_path):
    values, folder = report
    paths = write_report(values, folder)
    assert sorted(paths) == ["report.html", "report.json", "report.md"]
    assert load_report(folder) == load_report(paths["report.json"]) == values
    first = {name: path.read_bytes() for name, path in paths.items()}
    write_report(values, folder)
    assert first == {name: path.read_bytes() for name, path in paths.items()}
    assert not list(folder.glob(".*"))


def test_an_invalid_report_writes_nothing(report, tmp_path):
    wrong = copy.deepcopy(report[0]) | {"baseline": "none"}
    with pytest.raises(ArtifactError):
        write_report(wrong, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_an_output_error(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_report(report[0], tmp_path / "file")


def test_unreadable_reports_name_the_file(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(ArtifactError, match="does not exist"):
        load_report(tmp_path)
    for text, words in (
        ("{", "not readable JSON"),
        ("[]", "not a table"),
        ('{"schema": 9}', "schema 9"),
    ):
        path.write_text(text)
        with pytest.raises(ArtifactError, match=words) as caught:
            load_report(path)
        assert "report.json" in caught.value.message


def test_the_table_reads_at_a_glance(report):
    headers, rows = summary_rows(report[0])
    cells = {row[0].split("\n")[0]: dict(zip(headers, row, strict=True)) for row in rows}
    assert list(cells) == ["fp32-ort", "int8-static-ort", "int8-tensorrt"]  # baseline first
    assert rows[1][0] == "int8-static-ort\nonnxruntime int8"
    int8 = cells["int8-static-ort"]
    accuracy = report[0]["variants"][0]["accuracy"]
    assert int8["top-1 %\n[95 % CI]"].startswith(f"{100 * accuracy['top1']:.2f}\n[")
    assert int8["drop, pp\n[95 % CI]"].startswith(f"{accuracy['drop_pp']:+.2f}\n[")
    assert int8["agree %\nSQNR dB"].endswith(f"{accuracy['logit_sqnr_db']:.1f} dB")
    assert int8["speedup\nbatch 8"].startswith("2.00x\n[2.00")
    assert int8["images/s\nbatch 8"] == "976"
    assert int8["size\nMB"] == "0.30"
    assert int8["status"] == "ok"
    assert cells["fp32-ort"]["drop, pp\n[95 % CI]"] == "baseline"
    assert cells["int8-tensorrt"]["status"] == "failed"
    assert cells["int8-tensorrt"]["speedup\nbatch 8"] == "-"


def test_the_status_column_is_there_only_when_needed(report):
    values = copy.deepcopy(report[0])
    values["variants"].pop()
    headers, rows = summary_rows(values)
    assert "status" not in headers
    assert {len(row) for row in rows} == {len(headers)}


def test_a_narrow_table_drops_columns_until_it_fits(report):
    whole, _ = summary_rows(report[0])
    seen = []
    for width in (200, 110, 90, 80, 10):
        headers, rows = summary_rows(report[0], width)
        lines = [
            sum(2 + max(len(line) for line in column.split("\n")) for column in row)
            for row in (headers, *rows)
        ]
        assert width < 80 or max(lines) <= width
        assert {"variant\nruns on", "drop, pp\n[95 % CI]", "speedup\nbatch 8"} <= set(headers)
        seen.append(len(headers))
    assert seen[0] == len(whole)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0]


def test_simulated_accuracy_and_noise_are_said(report):
    values = copy.deepcopy(report[0])
    values["variants"][0]["accuracy"]["simulated"] = True
    for variant in values["variants"][:2]:
        variant["speed"]["runs"][0]["note"] = "noisy: a lot"
    assert notes(values) == [
        ("fp32-ort", "single-stream: noisy: a lot"),
        ("int8-static-ort", "its accuracy was simulated on another runtime"),
    ]
    assert "(sim.)" in summary_rows(values)[1][1][2]


def test_identical_logits_are_said_so(report):
    values = copy.deepcopy(report[0])
    values["variants"][0]["accuracy"]["logit_sqnr_db"] = None
    assert "identical" in summary_rows(values)[1][1][4]
    assert interval_text([1.0, None], 1) == "[1.0, inf]"


def test_everything_not_done_has_its_reason(report):
    assert [item[:3] for item in not_done(report[0])] == [
        ("int8-tensorrt", "build", "failed"),
        ("int8-tensorrt", "accuracy", "skipped"),
        ("int8-tensorrt", "speed", "skipped"),
    ]


def test_the_headline_is_the_fastest_variant_and_never_the_baseline(report):
    text = headline(report[0])
    assert text.startswith("Fastest: int8-static-ort runs 2.00x [2.00, 2.00] as fast as fp32-ort")
    assert "3.7x smaller" in text
    alone = copy.deepcopy(report[0])
    del alone["variants"][0]
    assert headline(alone) == ""


def test_markdown_holds_the_table_and_keeps_it_whole(report):
    values, folder = report
    write_report(values, folder)
    text = (folder / "report.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "the builder said &lt;b>no&lt;/b> \\| really" in text
    assert values["command"] in text
    assert "c" * 64 in text
    assert json.loads((folder / "report.json").read_text())["schema"] == 1
