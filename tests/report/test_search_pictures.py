from math import inf, nan

import numpy as np
import pytest

from qgru.direction import Direction
from qgru.report import front, search
from qgru.report.front import AFTER, BEFORE, draw_front
from qgru.report.search import draw_points, draw_prediction, draw_search, draw_sensitivities, spearman
from qgru.report.table import read_csv, write_csv
from qgru.schema import BitwidthConfig, OperatorConfig
from qgru.search import Cost, Found, Point, Sensitivities

PARTS = Cost(1, 1, 1, 1, 1)
ERRORS = {
    ("gru", Direction(), name, width): error
    for name, errors in {"weight.R": (0.4, 0.02, 0.0), "input.x": (0.1, 0.01, 1e-5)}.items()
    for width, error in zip((2, 4, 8), errors, strict=True)
} | {("gru", Direction(), "gate.z_pre", 2): nan, ("gru", Direction(), "gate.z_pre", 4): inf}


def config(width):
    return BitwidthConfig({"input.x": OperatorConfig(width), "weight.R": OperatorConfig(3)})


def point(cost, predicted, measured, width=4):
    return Point(config(width), cost, PARTS, predicted, measured, {})


def found(*points, presets=None):
    return Found(points[:1], points, presets or {}, Sensitivities(ERRORS, 0.0), points)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written, in order."""
    drawn, save = [], front.save

    def keep(figure, path):
        drawn.append(figure)
        save(figure, path)

    for module in (front, search):
        monkeypatch.setattr(module, "save", keep)
    return drawn


def texts(axis):
    return {text.get_text() for text in axis.texts}


def series(axis):
    """The legend's label to (points, their colour)."""
    return {
        drawn.get_label(): (sorted(map(tuple, np.asarray(drawn.get_offsets()).tolist())), drawn.get_edgecolor()[0])
        for drawn in axis.collections
        if not drawn.get_label().startswith("_")
    }


def is_color(rgba, name):
    return tuple(int(name[i : i + 2], 16) for i in (1, 3, 5)) == tuple(round(255 * part) for part in rgba[:3])


def test_heat_map_has_operators_in_the_order_of_computation_and_widths(figures, tmp_path):
    draw_sensitivities(Sensitivities(ERRORS, 0.0), tmp_path / "map.png", config(4))
    axis, bar = figures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["input.x", "weight.R", "gate.z_pre"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["2", "4", "8"]
    shown = axis.images[0].get_array().filled(nan)
    least, most = 1e-5, 0.4  # what is 0, infinite or NaN has the colour of an end
    expected = [[0.1, 0.01, 1e-5], [0.4, 0.02, least], [most, most, nan]]
    np.testing.assert_allclose(shown, expected)
    assert axis.get_xlabel() == "bits" and axis.get_title() == "gru layer 0" and "error" in bar.get_ylabel()
    rings = axis.collections[-1].get_offsets()
    assert np.asarray(rings).tolist() == [[1, 0]]  # 3 bits of weight.R and 8 of gate.z_pre were not measured
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("layers, titles", [(2, 4), (3, 1)])
def test_one_map_a_layer_and_direction_or_the_largest_of_many(figures, tmp_path, layers, titles):
    errors = {
        ("gru", Direction(layer, reverse), "input.x", width): 10.0 ** -(layer + reverse + width)
        for layer in range(layers)
        for reverse in (False, True)
        for width in (2, 4)
    }
    draw_sensitivities(Sensitivities(errors, 0.0), tmp_path / "map.png")
    maps = [axis for axis in figures[0].axes if axis.images]
    assert len(maps) == titles
    last = maps[-1].images[0].get_array()
    np.testing.assert_allclose(last, [[1e-4, 1e-6]] if titles == 4 else [[1e-2, 1e-4]])
    assert maps[-1].get_title() == ("gru layer 1, reverse" if titles == 4 else "largest of 6 layers and directions")


def test_points_are_drawn_where_they_are_and_presets_by_name(figures, tmp_path):
    presets = {"int8": point(1.0, 0.1, 0.02), "w8a16": point(52.0, 0.1, 1e-5)}
    points = (point(0.8, 0.2, 0.03), point(0.6, 0.3, 0.3), point(1.2, 0.1, 0.01))
    draw_points(found(*points, presets=presets), tmp_path / "front.png")
    axis = figures[0].axes[0]
    shown = series(axis)
    assert shown["chosen, before QAT"][0] == [(0.8, 0.03)]
    assert shown["found, before QAT"][0] == [(0.6, 0.3), (0.8, 0.03), (1.2, 0.01)]
    assert shown["preset, before QAT"][0] == [(1.0, 0.02)]
    assert {"int8", "0.8"} == texts(axis)
    assert axis.get_xlabel() == "cost (int8 = 1)\nbeyond: w8a16 at cost 52: 1e-05" and axis.get_yscale() == "log"


def test_prediction_has_its_rank_correlation_and_the_identity(figures, tmp_path):
    points = [point(1.0, 0.1, 0.2), point(0.5, 0.2, 0.5), point(2.0, 0.4, 0.3), point(1.0, nan, 0.1), point(1, 0.0, 0)]
    draw_prediction(points, tmp_path / "prediction.png")
    axis = figures[0].axes[0]
    assert sorted(map(tuple, np.asarray(axis.collections[0].get_offsets()).tolist())) == [
        (0.1, 0.2),
        (0.2, 0.5),
        (0.4, 0.3),
    ]
    assert axis.get_title() == "3 configurations: Spearman 0.50 (by cost alone 0.50)"
    x, y = axis.lines[0].get_data()
    assert list(x) == list(y) == [0.1, 0.5]


def test_ranks_correlate_whatever_the_values_with_ties_sharing_a_rank():
    a, b = np.array([1.0, 2, 2, 100]), np.array([0.1, 0.3, 0.2, 0.2])
    ranks = [1, 2.5, 2.5, 4], [1, 4, 2.5, 2.5]
    assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert np.isnan(spearman(np.ones(3), np.arange(3.0))) and np.isnan(spearman(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize("errors", [(0.0,), (nan,), (0.5,), (0.0, 0.0), (nan, 1.0), (inf, 0.1)])
def test_no_error_is_too_odd_to_draw(tmp_path, errors):
    points = [point(0.5 + i, error, error) for i, error in enumerate(errors)]
    written = draw_search(found(*points), tmp_path)
    assert [path.name for path in written] == [f"search-{n}.png" for n in ("sensitivities", "front", "prediction")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def rows(quant, cost, before, after, job="0", seed="1", budget="", metric="test/nrmse", of_float=0.01):
    given = {"job": job, "quant": quant, "seed": seed, "quant.budget": budget, "metric": metric}
    return [
        {**given, "stage": "float", "value": of_float, "cost": ""},
        {**given, "stage": "ptq", "value": before, "cost": cost},
        {**given, "stage": "qat", "value": after, "cost": cost},
        {**given, "stage": "onnx", "value": after, "cost": cost},
    ]


def test_a_sweep_has_one_mark_a_job_before_and_after_qat(figures, tmp_path):
    jobs = [
        *rows("int8", 1.0, 0.025, 0.016, "0"),
        *rows("int8", 1.0, 0.027, 0.017, "1", "2"),
        *rows("auto", 0.8, 0.03, 0.012, "2", budget="0.8"),
        *rows("auto", 0.6, 0.05, 0.02, "3", budget="0.6"),
        *rows("auto", 0.5, 0.04, 0.03, "4", "2", budget="0.6"),
    ]
    write_csv(jobs, list(jobs[0]), tmp_path / "results.csv")
    assert draw_front(read_csv(tmp_path / "results.csv"), tmp_path / "front.png")
    (axis,) = figures[0].axes
    shown = series(axis)
    assert shown["preset, before QAT"][0] == [(1.0, 0.025), (1.0, 0.027)]
    assert shown["preset, after QAT"][0] == [(1.0, 0.016), (1.0, 0.017)]
    assert shown["found, after QAT"][0] == [(0.5, 0.03), (0.6, 0.02), (0.8, 0.012)]
    assert is_color(shown["found, before QAT"][1], BEFORE) and is_color(shown["found, after QAT"][1], AFTER)
    assert texts(axis) == {"int8"} and axis.get_ylabel() == "nrmse" and axis.get_xlabel() == "cost (int8 = 1)"
    means = [line.get_xydata().tolist() for line in axis.lines if line.get_color() == AFTER]
    np.testing.assert_allclose(means, [[[0.55, 0.025], [0.8, 0.012]]])  # two seeds of one budget are one point of it
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"float", *shown}


def test_what_was_varied_besides_is_part_of_a_label_and_each_metric_has_a_panel(figures, tmp_path):
    key = "quant.operator_config.gate.z_out.bitwidth"
    jobs = [{**row, key: width} for width in ("4", "6") for row in rows("int8", 0.9, 0.1, 0.05, width)]
    jobs += [{**row, key: "4"} for row in rows("int8", 0.9, 0.8, 0.9, "4", metric="test/accuracy", of_float=0.95)]
    assert draw_front(jobs, tmp_path / "front.png")
    first, second = figures[0].axes
    assert texts(first) == {"int8 gate.z_out=4", "int8 gate.z_out=6"}
    assert second.get_ylabel() == "accuracy" and second.get_yscale() == "linear"


def test_labels_do_not_overlap(figures, tmp_path):
    jobs = [row for i in range(4) for row in rows(f"preset{i}", 1 + i // 3, 0.025, 0.016 + 4e-4 * i, str(i))]
    draw_front(jobs, tmp_path / "front.png")
    boxes = [text.get_window_extent() for text in figures[0].axes[0].texts]
    assert len(boxes) == 4
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]


def test_without_a_quantized_stage_there_is_no_picture(tmp_path):
    only_float = rows("", "", nan, nan)
    assert not draw_front(only_float, tmp_path / "front.png") and not draw_front([], tmp_path / "front.png")
    assert not list(tmp_path.iterdir())
