"""What the answer warns of: arms that learned nothing by the headline, and random weights that do as well."""

from openfino.compare.result import _cautions


def result(after, knn_after=0.5, random=0.1):
    probes = {
        "attentive": {"before": 0.4, "after": after},
        "knn20": {"before": 0.3, "after": knn_after},
    }
    return {
        "metric": "macro_f1",
        "titles": {"fino": "FINO"},
        "arms": {"frozen": {"new": {"macro_f1": {"mean": 0.4}}}},
        "random_weights": {"new": {"macro_f1": {"mean": random}}},
        "learned": {"fino": {"new": probes}},
        "unseen_labels": {},
    }


def test_an_arm_that_rose_is_not_warned_of():
    assert _cautions(result(0.41)) == []


def test_an_arm_that_did_not_rise_is_named_with_the_probes_by_which_it_did():
    named = "No better than before they were trained: FINO (new"
    assert _cautions(result(0.4)) == [f"{named}, but better by knn20)."]
    assert _cautions(result(0.39, knn_after=0.3)) == [f"{named})."]


def test_random_weights_that_do_as_well_are_said():
    (caution,) = _cautions(result(0.5, random=0.4))
    assert caution.startswith("On new random weights read by the same head score 0.400, no less than")
