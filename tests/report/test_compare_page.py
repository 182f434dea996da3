import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from fake_compare import ARMS, EVIL, make_pictures, make_result, regression_result

from openfino.report.compare_page import page_html, write_compare_page
from openfino.report.compare_result import Comparison

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """The elements of a page with their attributes and text; fails where a tag is not closed."""

    def __init__(self):
        super().__init__()
        self.path, self.elements, self.loose = [], [], []

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.path.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self.path.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.path:
            element["text"] += data
        if not any(
            element["tag"] in ("data", "style", "svg") or element.get("class") == "scale"
            for element in self.path
        ):
            self.loose.append(data)

    def having(self, **wanted):
        return [
            element
            for element in self.elements
            if all(element.get(key) == value for key, value in wanted.items())
        ]


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.path == []
    return reader


def resolve(result, place):
    """RFC 6901."""
    found = result
    for part in place.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        found = found[int(key)] if isinstance(found, list) else found[key]
    return found


def page_of(result, pictures=None, figures="not asked for"):
    result = json.loads(json.dumps(result, allow_nan=False))
    return page_html(Comparison(result), make_pictures() if pictures is None else pictures, figures)


def number_in(text):
    return float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))


RESULTS = {
    "whole": make_result(),
    "regression": regression_result(),
    "computed answer": make_result(answer=None),
    "two arms, no frozen": make_result({name: ARMS[name] for name in ("fino", "ssl")}),
    "small": {"arms": make_result()["arms"], "metric": "accuracy", "label": "localization"},
    "no arms": {"arms": {}, "label": "x", "not_run": {"fino": "stopped"}},
}


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "no arms"])
def test_every_number_is_that_of_the_json(name):
    result = RESULTS[name]
    shown = read(page_of(result)).having(tag="data")
    assert len(shown) > 30
    for element in shown:
        value = resolve(result, element["data-at"])
        assert float(element["value"]) == value
        text = element["text"]
        decimals = len(text.partition(".")[2])
        assert number_in(text) == pytest.approx(value, rel=1e-5, abs=0.5 * 10**-decimals + 1e-12), text


def numbers_of(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_of(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@pytest.mark.parametrize("name", RESULTS)
def test_no_other_number_is_written_anywhere(name):
    """Decimals outside ``data`` (the answer, the ends of training curves) round numbers of the JSON, ticks apart."""
    result = RESULTS[name]
    reader = read(page_of(result))
    known = {form.format(value) for value in numbers_of(result) for form in ("{:.3f}", "{:.1f}")}
    stored = set(_decimals(json.dumps(result.get("answer"))))
    found = {text for data in reader.loose for text in _decimals(data)}
    version = set(_decimals(reader.having(tag="footer")[0]["text"]))
    assert {text.lstrip("-") for text in found - stored - version} <= {text.lstrip("-") for text in known}


def _decimals(text):
    return re.findall(r"-?\d+\.\d+", text.replace("\N{MINUS SIGN}", "-"))


def test_the_tables_leave_nothing_out():
    result = RESULTS["whole"]
    places = {element["data-at"] for element in read(page_of(result)).having(tag="data")}
    for arm, splits in result["arms"].items():
        for split, metrics in splits.items():
            for metric, reading in metrics.items():
                if reading["mean"] is not None:
                    assert {
                        f"/arms/{arm}/{split}/{metric}/{key}" for key in ("mean", "low", "high")
                    } <= places
    for arm, probes in result["probes"].items():
        wanted = {
            f"/probes/{arm}/{probe}/{split}/macro_f1/mean"
            for probe in probes
            for split in ("test_id", "test_ood")
        }
        assert wanted <= places
    for arm in result["cost"]:
        assert {f"/cost/{arm}/{key}" for key in ("images", "seconds", "probe_seconds", "trials")} <= places
    for arm, readings in result["leakage"].items():
        assert {f"/leakage/{arm}/{factor}/linear_r2" in places for factor in readings} == {True, False}
        assert f"/leakage/{arm}/plate/linear_accuracy" in places
    groups = {f"/per_group/{arm}/test_ood/PL-00/mean" for arm in result["per_group"]}
    assert groups <= places
    assert "/left_out_tests" in places
    assert "/unseen_labels/test_ood" in places


def style_of(element):
    return {
        key: float(value) for key, value in re.findall(r"(left|width):(-?[\d.]+)%", element.get("style", ""))
    }


def charts(page):
    """(result's place, left, right) of every mark by chart, with the ends of its axis."""
    for tag in ("ol", "div"):
        for found in re.finditer(
            rf"<{tag} class='[\w ]+' data-low='(.*?)' data-high='(.*?)'.*?</{tag}>\n?", page, re.S
        ):
            marks = [
                (unescape(place), float(left), float(width or 0))
                for left, width, place in re.findall(
                    r"style='left:([-\d.]+)%(?:;width:([\d.]+)%)?' data-at='(.*?)'", found[0]
                )
            ]
            yield float(found[1]), float(found[2]), marks


def test_marks_stand_where_their_numbers_are():
    result = RESULTS["whole"]
    kinds = set()
    for low, high, marks in charts(page_of(result)):
        assert marks
        for place, left, width in marks:
            value = resolve(result, place)
            first, last = left, left + width
            if isinstance(value, dict):  # an interval
                expected = [value["low"], value["high"]]
            elif place.startswith("/per_group"):  # a bar from 0
                expected = [0, value]
            else:
                expected = [value, value]
            kinds.add(place.split("/")[1])
            assert low <= min(expected)
            assert max(expected) <= high
            for at, number in zip((first, last), expected, strict=True):
                assert at == pytest.approx(100 * (number - low) / (high - low), abs=0.002)
    assert kinds == {"arms", "differences", "per_group"}


def test_points_of_the_label_curve_stand_where_their_numbers_are():
    result = RESULTS["whole"]
    page = page_of(result)
    drawn = re.findall(r"<figure class='chart' data-low='(.*?)' data-high='(.*?)'>(.*?)</figure>", page, re.S)
    assert len(drawn) == 2
    for low, high, chart in drawn:
        low, high = float(low), float(high)
        points = re.findall(
            r"<circle class='point \w+' cx='([\d.]+)' cy='([\d.]+)' r='3' data-at='(.*?)'", chart
        )
        assert len(points) == 4 * 6
        lines = [float(y) for y in re.findall(r"<line class='grid' .*? y1='([\d.]+)'", chart)]
        for _, y, place in points:
            share = (resolve(result, place) - low) / (high - low)
            assert float(y) == pytest.approx(lines[0] + share * (lines[-1] - lines[0]), abs=0.06)
        across = {place.split("/")[3]: float(x) for x, _, place in points}
        gaps = [across["0.1"] - across["0.01"], across["1"] - across["0.1"]]
        assert gaps[0] == pytest.approx(gaps[1], abs=0.2)  # logarithmic


def test_marks_say_what_is_within_noise():
    result = RESULTS["whole"]
    page = page_of(result)
    beyond = {
        (entry["arm"], entry["than"], entry["split"], entry["metric"]): entry
        for entry in result["differences"]
    }
    cells = re.findall(
        r"<td class='number'>((?:<span.*?</span>)*)(<b>)?<data value='.*?' data-at='/arms/(\w+)/(\w+)/(\w+)/mean'>",
        page[page.index('<section id="table">') : page.index('<section id="probes">')],
    )
    marks = {(arm, split, metric): (spans, bool(bold)) for spans, bold, arm, split, metric in cells}
    seen = set()
    for arm in ARMS:
        for split in ("test_id", "test_ood"):
            for metric in ("macro_f1", "calibration_error"):
                spans, _ = marks[arm, split, metric]
                level = beyond.get(("fino", arm, split, metric))
                assert ("&asymp;" in spans) == (level is not None and not level["beyond_noise"])
                start = beyond.get((arm, "frozen", split, metric))
                better = (
                    start
                    and start["beyond_noise"]
                    and (start["difference"] > 0) != (metric == "calibration_error")
                )
                worse = start and start["beyond_noise"] and not better
                assert ("&#9650;" in spans, "&#9660;" in spans) == (bool(better), bool(worse))
                seen.add((bool(better), bool(worse), "&asymp;" in spans))
    assert len(seen) >= 4


def test_the_best_of_a_column_is_bold_and_low_is_best_for_errors():
    result = RESULTS["whole"]
    bold = re.findall(r"<b><data value='.*?' data-at='/arms/(\w+)/test_ood/(\w+)/mean'>", page_of(result))
    means = {
        metric: {arm: own["test_ood"][metric]["mean"] for arm, own in result["arms"].items()}
        for metric in result["arms"]["fino"]["test_ood"]
    }
    best = {
        metric: (min if metric == "calibration_error" else max)(
            (arm for arm in own if own[arm] is not None), key=lambda arm, own=own: own[arm]
        )
        for metric, own in means.items()
    }
    assert {metric: arm for arm, metric in bold} == best


def test_the_answer_comes_first_and_the_charts_with_it():
    page = page_of(RESULTS["whole"])
    lead = re.search('<p class="lead">(.*?)</p>', page)[1]
    assert unescape(lead) == RESULTS["whole"]["answer"]["headline"]
    assert page.index(lead) < page.index("<ol class='dots'") < page.index('<section id="table">')
    names = re.findall(r"<li class='[\w ]+'><span class='name'>(.*?)</span>", page.split("</ol>")[0])
    means = {
        title: RESULTS["whole"]["arms"][arm]["test_ood"]["macro_f1"]["mean"]
        for arm, (title, _, _) in ARMS.items()
    }
    assert names == sorted(means, key=means.get, reverse=True)


def test_the_split_of_the_answer_can_be_named():
    page = page_of(make_result(headline_split="test_id"))
    assert "macro-F1 on test_id</h3><ol" in page
    assert page.index("<h3>test_id <span>") < page.index("<h3>test_ood <span>")


@pytest.mark.parametrize("name", RESULTS)
def test_the_page_loads_nothing_and_is_whole(name):
    page = page_of(RESULTS[name])
    reader = read(page)
    assert not re.search(r"https?:|@import|url\(|<script|<link|<iframe", page, re.IGNORECASE)
    assert "default-src 'none'" in page
    sources = [element["src"] for element in reader.elements if "src" in element]
    assert all(source.startswith("data:image/") for source in sources)
    ids = {element.get("id") for element in reader.elements}
    links = [element["href"] for element in reader.having(tag="a")]
    assert links
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    text = "".join(reader.loose)
    assert "$" not in text
    assert not re.search(r"\b(None|nan|inf)\b", text)


def test_names_are_text_not_markup():
    titles = {"fino": EVIL}
    page = page_of(
        make_result(titles=titles, label=EVIL, recipe=EVIL, group=EVIL, cluster=EVIL, spurious=EVIL)
    )
    assert EVIL not in page
    assert "<script" not in page
    assert EVIL in "".join(read(page).loose)


def test_pictures_are_shown():
    page = page_of(RESULTS["whole"])
    reader = read(page)
    assert len(reader.having(tag="article")) == 8
    assert len(reader.having(tag="img")) == 8 * (1 + 3 * 5) + 3 * 4
    assert len(reader.having(tag="img", **{"class": "pixels"})) == 9
    assert page.count("class='tile right'") == 16 + 24 + 32
    assert page.count("class='tile wrong'") == 120 - 72
    assert page.count("aria-label='UMAP of") == 6
    dots = sum(
        len(re.findall("M[0-9]", path)) for path in re.findall(r"<path class='dots \w+' d='(.*?)'", page)
    )
    assert dots == 6 * 300


def test_what_is_absent_is_named():
    text = " ".join("".join(read(page_of(RESULTS["regression"], {})).loose).split())
    assert "Not drawn: umap-learn is not installed: pip install 'openfino[report]'." in text
    assert "SSL (KoLeo): stopped by the user" in text
    assert "No PNG figures: not asked for." in text
    assert "One seed only" not in text
    assert "Group by group" not in text
    assert "With fewer labels" not in text
    assert "R\N{SUPERSCRIPT TWO} of dose by the attentive probe" in text
    without_spurious = make_result(spurious=None)
    for own in without_spurious["umap"].values():
        del own["spurious"]
    page = page_of(without_spurious)
    assert page.count("aria-label='UMAP of") == 3
    assert "No spurious factor to colour by." in page


def test_numbers_colour_a_map_in_five_shades():
    result = make_result()
    for own in result["umap"].values():
        own["label"] = [float(n) for n in range(299)] + [None]
    page = page_of(result)
    legend = re.search(r"Coloured by localization</h3><ul class='legend'>(.*?)</ul>", page)[1]
    assert re.findall(r"class='(\w+)'", legend) == ["q0", "q1", "q2", "q3", "q4", "none"]
    assert "</svg>0 to 59</li>" in legend
    counts = [
        len(re.findall("M[0-9]", path)) for path in re.findall(r"<path class='dots q\d' d='(.*?)'", page)
    ]
    assert len(counts) == 15
    assert max(counts) - min(counts) <= 1


def test_write_reads_the_stored_pictures_and_is_pure(tmp_path):
    result = RESULTS["whole"]
    before = json.dumps(result)
    (tmp_path / "gallery.json").write_text(json.dumps(make_pictures()))
    path = write_compare_page(tmp_path, result, figures=False)
    assert path == tmp_path / "compare.html"
    page = path.read_text(encoding="utf-8")
    assert page.count("<img") == 140
    assert json.dumps(result) == before
    write_compare_page(tmp_path, result, figures=False)
    assert path.read_text(encoding="utf-8") == page
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "compare.html",
        "gallery.json",
        "table.csv",
        "table.tex",
    ]
