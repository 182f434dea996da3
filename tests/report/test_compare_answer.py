import pytest
from fake_compare import ARMS, make_result

from openfino.report.compare_answer import answer_of


def with_difference(difference, low, high, than="ssl_sigreg", arms=ARMS, **changes):
    result = make_result(arms, **changes)
    for entry in result["differences"]:
        if (entry["arm"], entry["than"]) == ("fino", than):
            beyond = low > 0 or high < 0
            entry |= {"difference": difference, "low": low, "high": high, "beyond_noise": beyond}
    return result


@pytest.mark.parametrize(
    ("interval", "opening"),
    [
        ((0.07, 0.03, 0.11), "Yes, guidance helped: on test_ood, macro-F1 of localization is"),
        ((-0.07, -0.11, -0.03), "No, guidance hurt: on test_ood"),
        ((0.01, -0.02, 0.04), "Guidance made no difference beyond noise: on test_ood"),
    ],
)
def test_the_headline_follows_the_interval(interval, opening):
    headline = answer_of(with_difference(*interval))["headline"]
    assert headline.startswith(opening)
    assert "the same training without metadata" in headline
    difference, low, high = interval
    assert f"({difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}" in headline


def test_the_headline_holds_the_means():
    result = make_result()
    own, other = (result["arms"][arm]["test_ood"]["macro_f1"]["mean"] for arm in ("fino", "ssl_sigreg"))
    assert f"is {own:.3f} with FINO and {other:.3f} with" in answer_of(result)["headline"]


def test_an_error_that_falls_helps():
    result = make_result(metric="calibration_error", fractions={}, probes={})
    assert answer_of(result)["headline"].startswith("Yes, guidance helped")


def test_the_other_arms_are_sorted_by_their_difference():
    result = with_difference(-0.05, -0.08, -0.02, than="ssl")
    below, level, above = answer_of(result)["details"][:3]
    assert below == "FINO is below: SSL (KoLeo)."
    assert level == "FINO is level with: FINO with KoLeo; FINO, plate erased."
    assert above.startswith("FINO is above: frozen backbone; FINO, no pretraining; ")


def test_other_splits_are_named():
    details = answer_of(make_result())["details"]
    assert details[2].startswith("On test_id the difference is +0.0")
    assert details[2].endswith("beyond noise.")


def test_one_seed_is_said():
    assert answer_of(make_result(seeds=[0]))["details"][-1].startswith("One seed only")
    assert "One seed" not in " ".join(answer_of(make_result())["details"])


@pytest.mark.parametrize(
    ("left", "control"), [(("ssl", "frozen"), "self-supervision without"), (("frozen",), "frozen start")]
)
def test_the_control_is_the_next_best(left, control):
    arms = {arm: ARMS[arm] for arm in (*left, "fino")}
    assert control in answer_of(make_result(arms))["headline"]


def test_without_an_arm_there_is_no_answer():
    result = make_result()
    del result["arms"]["fino"]
    assert answer_of(result)["headline"] == "No answer: FINO was not run."
    only = make_result({"fino": ARMS["fino"]})
    assert answer_of(only)["headline"] == "No answer: what it would be held against was not run."
    assert answer_of({"arms": {}})["headline"].startswith("No answer: ")


def test_a_missing_interval_is_said():
    assert answer_of(make_result(differences=None))["headline"].startswith(
        "Whether guidance helped was not measured"
    )


def test_other_probes_are_said_with_their_numbers():
    result = make_result()
    found = next(detail for detail in answer_of(result)["details"] if detail.startswith("By other probes"))
    assert found.startswith("By other probes on test_ood (FINO / SSL (SIGReg)")
    for probe in set(result["probes"]["fino"]) - {"attentive"}:
        for arm in ("fino", "ssl_sigreg", "frozen"):
            own = result["probes"].get(arm, {}).get(probe, {}).get("test_ood")
            assert own is None or f"{own['macro_f1']['mean']:.3f}" in found
    assert "By other probes" not in " ".join(answer_of(make_result(probes={}))["details"])
