import pytest

from openfino.evaluation.comparison import changes, comparison_table, erasure_table, scores


def classes(accuracy, *, error=0.02, balanced=None, **more):
    found = {"knn_accuracy": accuracy, "majority": 0.25, "chance": 0.1, "rows": 100, **more}
    errors = {"knn_accuracy": error}
    if balanced is not None:
        found["knn_balanced"], errors["knn_balanced"] = balanced, error
    return found | {"errors": errors}


def record(label=None, erased=None, **leakage):
    splits = {"test": {"scores": {"knn": {"macro_f1": label}}}}
    found = {
        "label": {"label": "pattern", "splits": splits} if label is not None else None,
        "leakage": leakage,
    }
    return found | ({"erased": erased} if erased else {})


def judged(role, before, after):
    (change,) = changes(record(plate=before), record(plate=after), {"plate": role})
    return change.verdict, change.flagged


# The noise of a difference of two readings with standard error 0.02 is 1.96 x 0.02 x sqrt(2) = 0.055.
@pytest.mark.parametrize(
    ("role", "before", "after", "expected"),
    [
        ("spurious", 0.60, 0.54, ("fell", False)),
        ("spurious", 0.60, 0.55, ("level", True)),
        ("spurious", 0.60, 0.66, ("rose", True)),
        ("spurious", 0.26, 0.28, ("level", False)),  # was not readable, and is not
        ("spurious", 0.40, 0.28, ("fell", False)),
        ("spurious", 0.20, 0.34, ("rose", True)),
        ("informative", 0.60, 0.66, ("rose", False)),
        ("informative", 0.60, 0.65, ("level", True)),
        ("informative", 0.60, 0.50, ("fell", True)),
        ("informative", 0.97, 0.97, ("level", False)),  # no room to rise
        ("watched", 0.60, 0.60, ("level", False)),
    ],
)
def test_what_did_not_happen_is_what_stays_within_the_noise(role, before, after, expected):
    assert judged(role, classes(before), classes(after)) == expected


def test_noise_grows_with_the_errors_of_both():
    (change,) = changes(record(a=classes(0.5, error=0.03)), record(a=classes(0.5, error=0.04)), {})
    assert change.noise == pytest.approx(1.96 * 0.05)
    assert judged("spurious", classes(0.6, error=0.03), classes(0.54, error=0.04)) == ("level", True)


def test_a_rare_value_that_is_still_read_counts():
    """At the majority's accuracy, while every value is told apart better than by chance."""
    assert judged("spurious", classes(0.26, balanced=0.5), classes(0.26, balanced=0.5)) == ("level", True)
    assert judged("spurious", classes(0.26, balanced=0.5), classes(0.26, balanced=0.12)) == ("level", False)


def test_quantities_are_judged_by_r2_and_angles_by_their_cosine():
    dose = {"knn_r2": 0.5, "linear_r2": 0.6, "errors": {"knn_r2": 0.01, "linear_r2": 0.01}}
    hour = {"knn_r2": 0.3, "knn_cosine": 0.7, "constant_cosine": 0.4, "errors": {"knn_cosine": 0.05}}
    found = changes(record(dose=dose, hour=hour), record(dose=dose, hour=hour), {"dose": "spurious"})
    assert [(c.factor, c.method, c.measure, c.guess) for c in found] == [
        ("dose", "knn", "r2", 0.0),
        ("dose", "linear", "r2", 0.0),
        ("hour", "knn", "cosine", 0.4),
    ]
    assert [c.flagged for c in found] == [True, True, False]


def test_only_what_was_read_twice_is_compared():
    before, after = (
        record(plate=classes(0.5), site=classes(0.5)),
        record(plate=classes(None), site=classes(0.5)),
    )
    assert [change.factor for change in changes(before, after, {})] == ["site"]
    old_version = {"label": None, "leakage": {"site": {"knn_accuracy": 0.5, "majority": 0.25, "rows": 9}}}
    assert [change.factor for change in changes(old_version, after, {})] == ["site"]


def test_words_say_what_was_wanted_and_what_happened():
    (change,) = changes(record(plate=classes(0.6)), record(plate=classes(0.62)), {"plate": "spurious"})
    assert str(change) == (
        "plate (spurious) did not fall: kNN accuracy 0.600 before, 0.620 after (the noise is +-0.055; without "
        "features 0.250)"
    )
    (change,) = changes(record(dna=classes(0.6)), record(dna=classes(0.4)), {"dna": "informative"})
    assert str(change).startswith(
        "dna (informative) did not rise: kNN accuracy 0.600 before, 0.400 after (it fell;"
    )


def erased(label, accuracy):
    return {"plate": {"dimensions": 3, "of": 8, **record(label, plate=classes(accuracy))}}


def test_projection_stands_in_the_same_table():
    before = record(0.4, erased(0.35, 0.26), plate=classes(0.6))
    after = record(0.7, erased(0.65, 0.24), plate=classes(0.58))
    lines = comparison_table(before, after, {"plate": "spurious"}).splitlines()
    assert lines[0].split("  ")[-1] == "adapted - plate"
    label = "pattern, test: kNN macro_f1 0.400 0.700 +0.300 0.350 0.650"
    assert lines[1].split() == label.split()
    read = "read plate (spurious): kNN accuracy 0.600 0.580 -0.020 0.055 level ! 0.250 0.260 0.240"
    assert lines[2].split() == read.split()
    assert lines[3].startswith("! plate (spurious) did not fall")
    assert lines[4].endswith("dimensions of CLS taken: 3 of 8 (starting), 3 of 8 (adapted)")
    assert len(lines) == 5
    assert comparison_table({"label": None, "leakage": {}}, {"label": None, "leakage": {}}, {}) == ""


def test_one_model_with_and_without_a_factor():
    report = record(0.7, erased(0.65, 0.24), plate=classes(0.58))
    lines = erasure_table(report).splitlines()
    assert [line.split()[-2:] for line in lines[1:3]] == [["0.700", "0.650"], ["0.580", "0.240"]]
    known = report | {"before": record(0.4, erased(0.35, 0.26))}
    lines = erasure_table(known).splitlines()
    assert lines[1].split()[-4:] == ["0.400", "0.700", "0.350", "0.650"]
    assert lines[2].split()[-4:] == ["-", "0.580", "0.260", "0.240"]


def test_scores_have_one_name_each():
    assert scores(record(0.7, plate=classes(0.5))) == {
        "pattern, test: kNN macro_f1": 0.7,
        "read plate: kNN accuracy": 0.5,
    }
