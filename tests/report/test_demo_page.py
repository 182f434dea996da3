import re
from html.parser import HTMLParser

import pytest
from fake_demo import EVIL, make_demo

from openfino.errors import OpenfinoError
from openfino.report.demo_page import write_demo_page

# Elements whose end tag HTML lets one leave out, and those that have none.
OPTIONAL, VOID = {"th", "td"}, {"meta", "img"}


class Reader(HTMLParser):
    """Collects what a page would load, and fails where a tag is not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.ids, self.links, self.text = [], [], set(), [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [
            values[key] for key in ("src", "srcset", "data", "poster", "xlink:href") if key in values
        ]
        self.loads += [values["href"]] if "href" in values and tag != "a" else []
        self.links += [values["href"]] if tag == "a" else []
        self.ids.add(values.get("id"))
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass  # <line .../> inside SVG

    def handle_endtag(self, tag):
        if tag not in OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo <i>'s folder")
    manifest, results = make_demo(out)
    return out, manifest, results, write_demo_page(out, manifest, results).read_text(encoding="utf-8")


@pytest.fixture
def page(demo):
    return demo[3]


@pytest.fixture
def reader(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_lies_in_the_folder(demo):
    out, manifest, results, page = demo
    assert write_demo_page(out, manifest, results) == out / "report.html"
    assert (out / "report.html").read_text(encoding="utf-8") == page  # the same input gives the same page


def test_the_numbers_are_those_of_the_results(demo):
    _, _, results, page = demo
    shown = {
        (arm, column): (float(value), text)
        for arm, column, value, text in re.findall(
            r"data-arm='(\w+)' data-column='([\w/]+)'>(?:<b>)?<data value='(.*?)'>([\d.]+)</data>", page
        )
    }
    expected = {}
    for arm, scores in results["arms"].items():
        for split in ("test_id", "test_ood"):
            for method in ("knn", "linear"):
                expected[arm, f"{split}/{method}"] = scores[split][method]["macro_f1"]
        for name, reading in scores["leakage"].items():
            expected[arm, f"leakage/{name}"] = reading["knn_accuracy"]
    assert shown == {key: (value, f"{value:.3f}") for key, value in expected.items()}


def test_the_answer_comes_first(page):
    lead = re.search('<p class="lead">(.*?)</p>', page)[1]
    assert [float(value) for value in re.findall("<data value='(.*?)'>", lead)] == [
        0.2112345,
        0.3323456,
        0.571234567,
    ]
    assert "on 2 plates that training never saw" in lead
    assert page.index(lead) < page.index("class='scores'") < page.index('id="roles"')


def test_nothing_is_loaded_from_outside(page, reader):
    assert reader.loads
    assert all(address.startswith("data:image/jpeg;base64,") for address in reader.loads)
    assert not re.search(r"https?:|//[\w.]+\.\w|@import|url\(|<script|<link|<iframe", page, re.IGNORECASE)
    assert "default-src 'none'" in page
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)


def test_names_are_text_not_markup(demo, page, reader):
    assert EVIL not in page
    assert "<i>'s folder" not in page
    assert "&lt;script&gt;alert(&#x27;AB" in page
    assert str(demo[0] / "export <&>") in "".join(reader.text)


def test_the_section_about_the_model_says_how_to_load_it(demo, reader):
    text = "".join(reader.text)
    assert f"AutoModel.from_pretrained({str(demo[0] / 'export <&>')!r})" in text
    assert "float32 [1, 4, 48, 48]" in text
    assert "in 401 seconds: 60 drawn images, 40 steps of 8 images for each arm, seed 0" in text


def test_the_arms_differences_are_named(reader):
    text = " ".join("".join(reader.text).split())
    assert (
        "the term that spreads features (KoLeo at weight 0.1 in SSL, SIGReg at weight 0.05 in FINO)" in text
    )


def test_every_part_is_filled_in(page, reader):
    assert "$" not in page
    assert page.count("<figure") == 10
    assert page.count("<article") == 8
    assert page.count("<img") == 8 * (1 + 3 * 5)
    assert "None" not in "".join(reader.text).replace("[None]", "")


def test_missing_curves_leave_the_rest(tmp_path):
    manifest, results = make_demo(tmp_path / "demo", with_records=False)
    page = write_demo_page(tmp_path / "demo", manifest, results).read_text(encoding="utf-8")
    assert "The runs kept no record to draw." in page
    assert "<figure" not in page
    assert page.count("<article") == 8


def test_a_missing_model_is_named(tmp_path):
    manifest, results = make_demo(tmp_path / "demo", with_records=False)
    (tmp_path / "demo" / "fino" / "model" / "config.json").unlink()
    with pytest.raises(OpenfinoError, match="fino"):
        write_demo_page(tmp_path / "demo", manifest, results)
    assert not (tmp_path / "demo" / "report.html").exists()
