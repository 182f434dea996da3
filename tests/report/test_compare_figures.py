import numpy as np
import pytest
from fake_compare import ARMS, make_pictures, make_result, regression_result
from PIL import Image

from openfino.report import compare_figures
from openfino.report.compare_figures import (
    difference_figure,
    drawings,
    fraction_figure,
    group_figure,
    map_figure,
    neighbour_figure,
    score_figure,
    training_figure,
    umap_figure,
    write_figures,
)
from openfino.report.compare_page import write_compare_page
from openfino.report.compare_result import Comparison

pytest.importorskip("matplotlib")
RESULT = make_result()
WHOLE = Comparison(RESULT)


def dots_of(figure):
    """Name of the row -> (place of the dot, ends of its bar, whether it is hollow)."""
    pane = figure.axes[0]
    names = [label.get_text() for label in pane.get_yticklabels()]
    bars = [
        line
        for line in pane.lines
        if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]
    ]
    dots = [line for line in pane.lines if len(line.get_xdata()) == 1]
    ends = {round(line.get_ydata()[0]): tuple(line.get_xdata()) for line in bars}
    return {
        names[round(line.get_ydata()[0])]: (
            line.get_xdata()[0],
            ends[round(line.get_ydata()[0])],
            line.get_markerfacecolor() == "white",
        )
        for line in dots
    }


def test_scores_are_drawn_where_they_are():
    found = dots_of(score_figure(WHOLE, "test_ood"))
    for arm, (title, _, _) in ARMS.items():
        reading = RESULT["arms"][arm]["test_ood"]["macro_f1"]
        assert found[title] == (reading["mean"], (reading["low"], reading["high"]), False)


def test_differences_are_drawn_where_they_are():
    found = dots_of(difference_figure(WHOLE, "test_id"))
    entries = {
        entry["than"]: entry
        for entry in RESULT["differences"]
        if (entry["arm"], entry["split"], entry["metric"]) == ("fino", "test_id", "macro_f1")
    }
    assert len(found) == len(entries) == len(ARMS) - 1
    for arm, entry in entries.items():
        expected = (entry["difference"], (entry["low"], entry["high"]), not entry["beyond_noise"])
        assert found[ARMS[arm][0]] == expected
    assert len({hollow for _, _, hollow in found.values()}) == 2


def test_the_label_curve_holds_its_numbers():
    pane = fraction_figure(WHOLE, "test_ood").axes[0]
    assert pane.get_xscale() == "log"
    lines = {line.get_label(): line for line in pane.lines}
    shares = RESULT["fractions"]["finetune"]
    expected = [own["test_ood"]["macro_f1"]["mean"] for own in shares.values()]
    np.testing.assert_array_equal(lines["supervised fine-tuning"].get_ydata(), expected)
    np.testing.assert_array_equal(
        lines["supervised fine-tuning"].get_xdata(), [float(share) for share in shares]
    )
    assert [text.get_text() for text in pane.get_xticklabels()] == [
        "1 %",
        "2 %",
        "5 %",
        "10 %",
        "50 %",
        "100 %",
    ]


def test_the_figure_of_groups_holds_their_numbers():
    pane = group_figure(WHOLE, "test_ood").axes[0]
    drawn = {own.get_label(): own for own in pane.containers}
    assert list(drawn) == [ARMS[arm][0] for arm in ("frozen", "ssl", "fino", "finetune")]
    expected = [own["mean"] for own in RESULT["per_group"]["fino"]["test_ood"].values()]
    np.testing.assert_array_equal(drawn["FINO"].lines[0].get_xdata(), expected)


def test_a_map_has_every_point():
    figure = umap_figure(WHOLE, "spurious")
    assert len(figure.axes) == 3
    for pane, arm in zip(figure.axes, ("frozen", "ssl", "fino"), strict=True):
        drawn = np.concatenate([own.get_offsets() for own in pane.collections if len(own.get_offsets())])
        points = np.array(RESULT["umap"][arm]["points"])
        np.testing.assert_array_equal(drawn[np.lexsort(drawn.T)], points[np.lexsort(points.T)])


def test_curves_have_every_seed():
    figure = training_figure(WHOLE)
    panes = {pane.get_title(): pane for pane in figure.axes}
    lines = panes["FINO"].lines
    assert [line.get_label() for line in lines] == ["seed 0", "seed 1", "seed 2"]
    losses = [record["loss"] for record in RESULT["curves"]["fino"]["1"]]
    np.testing.assert_array_equal(lines[1].get_ydata(), losses)
    assert len({line.get_linestyle() for line in lines}) == 3


def test_pictures_are_drawn():
    pictures = make_pictures()
    assert sum(len(pane.images) for pane in map_figure(WHOLE, pictures).axes) == 3 * 4
    assert sum(len(pane.images) for pane in neighbour_figure(WHOLE, pictures).axes) == 8 * 3 * 6
    assert map_figure(WHOLE, {}) is None
    assert neighbour_figure(WHOLE, {}) is None


def test_files_have_200_dots_per_inch_and_old_ones_go(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "scores_gone.png").write_bytes(b"old")
    result = make_result(dict(list(ARMS.items())[:4]), curves={}, gallery=None, maps=None, umap={})
    names = write_figures(tmp_path, Comparison(result), {})
    expected = [
        f"{kind}_{split}.png"
        for split in ("test_ood", "test_id")
        for kind in ("scores", "differences", "fractions")
    ]
    assert sorted(names) == sorted([*expected, "groups_test_ood.png"])
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    for name in names:
        with Image.open(tmp_path / "figures" / name) as picture:
            assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert np.asarray(picture.convert("L")).std() > 1


def test_nothing_is_drawn_of_nothing():
    for result in ({"arms": {}}, {"arms": {}, "umap": {}, "fractions": {}, "curves": {"fino": {}}}):
        assert [draw() for draw in drawings(Comparison(result), {}).values()] == [None] * 5


def test_names_are_not_mathematics(tmp_path):
    titles = {arm: f"$\\frac{{{arm}$ <_^>" for arm in ARMS}
    result = make_result(dict(list(ARMS.items())[:4]), titles=titles)
    figure = score_figure(Comparison(result), "test_ood")
    figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_a_split_with_an_odd_name_is_a_file():
    names = drawings(Comparison(make_result(splits={"../out of/range": 0.0}, per_group=None)), {})
    assert "scores__out_of_range.png" in names
    assert all("/" not in name for name in names)


def test_without_matplotlib_the_page_comes_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_figures, "find_spec", lambda name: None)
    page = write_compare_page(tmp_path, regression_result()).read_text(encoding="utf-8")
    assert "No PNG figures: matplotlib is not installed (pip install &#x27;openfino[report]&#x27;)." in page
    assert not (tmp_path / "figures").exists()
