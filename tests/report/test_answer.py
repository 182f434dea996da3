import re

import polars as pl
import pytest
from fake_demo import FACTORS, make_recipe, make_results

from openfino.manifest import read_manifest
from openfino.report.answer import (
    commonest_answer,
    compare,
    details,
    headline,
    noise,
    reading_list,
    score_table,
)


@pytest.fixture
def recipe():
    return make_recipe(FACTORS["fino"])


@pytest.fixture
def manifest(tmp_path):
    rows = [("a", "train"), ("a", "train"), ("b", "train"), (None, "train")]
    rows += [("a", "test_ood"), ("b", "test_ood"), ("b", "test_ood"), ("c", "test_ood"), (None, "test_ood")]
    rows += [("a", "test_id")]
    table = pl.DataFrame(rows, schema=["localization", "split"], orient="row")
    table.with_columns(path=pl.lit("x.npy")).write_parquet(tmp_path / "manifest.parquet")
    return read_manifest(tmp_path / "manifest.parquet")


def text_of(html):
    return re.sub("<.*?>", "", html)


def test_noise_is_two_standard_errors_of_a_difference():
    # Two shares of 0.5 on 100 images: each has a variance of 0.0025.
    assert noise(0.5, 0.5, 100) == pytest.approx(2 * 0.005**0.5)


@pytest.mark.parametrize(
    ("first", "second", "images", "verdict"),
    [
        (0.57, 0.33, 432, "above"),
        (0.33, 0.57, 432, "below"),
        (0.35, 0.33, 432, "level with"),
        (0.35, 0.33, 100_000, "above"),
        (0.57, 0.33, 10, "level with"),
        (0.4, 0.4, 432, "level with"),
    ],
)
def test_only_a_difference_beyond_noise_counts(first, second, images, verdict):
    assert compare(first, second, images) == verdict


@pytest.mark.parametrize(
    ("fino", "opening"),
    [
        (0.57, "Yes, guidance helped"),
        (0.34, "Guidance made no clear difference"),
        (0.15, "No, guidance hurt"),
    ],
)
def test_the_headline_says_which_way_it_went(recipe, fino, opening):
    sentence = text_of(headline(make_results("export", fino)["arms"], recipe, 432, 10))
    assert sentence.startswith(opening)
    assert f"0.211 with the frozen start, 0.332 after plain self-supervision (SSL) and {fino:.3f}" in sentence
    assert "on 10 plates" in sentence
    assert "guidance by antibody (FINO)" in sentence
    assert sentence.count(". ") == 0


def test_details_say_when_the_probes_disagree():
    arms = make_results("export")["arms"]
    assert "The linear probe agrees: 0.272, 0.393, 0.632 (FINO above SSL)" in text_of(details(arms, 432))
    arms["fino"]["test_ood"]["linear"]["macro_f1"] = 0.2
    assert "The linear probe does not agree: 0.272, 0.393, 0.200 (FINO below SSL)" in text_of(
        details(arms, 432)
    )
    assert "on 432 test images: differences under about 0.07" in text_of(details(arms, 432))


def test_the_table_holds_every_score_and_marks_the_best(manifest, recipe):
    arms = make_results("export")["arms"]
    html = score_table(arms, manifest, recipe)
    cells = re.findall(r"data-arm='(\w+)' data-column='([\w/]+)'>(<b>)?<data value='(.*?)'>([\d.]+)<", html)
    assert len(cells) == 3 * (4 + 2)
    for arm, column, bold, exact, shown in cells:
        value = arms[arm]
        for key in column.split("/"):
            value = value[key]
        value = value["knn_accuracy" if column.startswith("leakage") else "macro_f1"]
        assert (float(exact), shown) == (value, f"{value:.3f}")
        assert bool(bold) == (arm == "fino" and "leakage" not in column)


def test_the_table_begins_with_the_unseen_plates(manifest, recipe):
    html = score_table(make_results("export")["arms"], manifest, recipe)
    assert html.index("macro-F1, test_ood") < html.index("macro-F1, test_id")
    columns = re.findall(r"data-arm='ssl' data-column='([\w/]+)'", html)
    assert columns[:4] == ["test_ood/knn", "test_ood/linear", "test_id/knn", "test_id/linear"]


def test_a_reading_that_could_not_be_taken_is_a_dash(manifest, recipe):
    arms = make_results("export")["arms"]
    for scores in arms.values():
        scores["leakage"]["plate"] = dict.fromkeys(("knn_accuracy", "majority", "chance"))
    assert score_table(arms, manifest, recipe).count("<td class='number'>-") == 4
    assert "plate" not in reading_list(arms, recipe)


def test_the_commonest_answer_is_that_of_the_train_rows(manifest, recipe):
    # Always "a": F1 of a = 2 * 1 / (4 + 1), of b and c = 0; rows without a label do not count.
    assert commonest_answer(manifest, recipe, "test_ood") == pytest.approx(0.4 / 3)
    assert commonest_answer(manifest, recipe, "test_id") == 1.0
    assert commonest_answer(manifest, recipe, "nowhere") is None


def test_readings_say_what_guidance_was_asked_to_do(recipe):
    arms = make_results("export")["arms"]
    items = text_of(reading_list(arms, recipe).replace("</li>", "\n")).splitlines()
    assert "antibody with accuracy 0.123 (frozen start), 0.223 (SSL), 0.323 (FINO)" in items[0]
    assert items[0].endswith("guessing 0.167; guidance was asked to keep it.")
    assert "plate with accuracy 0.457 (frozen start), 0.447 (SSL), 0.437 (FINO)" in items[1]
    assert "always answering the commonest gives 0.079, guessing 0.250" in items[1]
    assert items[1].endswith("guidance was not asked to change that.")
    spurious = make_recipe({"plate": "spurious"})
    assert "guidance was asked to erase it" in reading_list(arms, spurious)
