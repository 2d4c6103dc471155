"""The report as a browser shows it: opened, sorted, filtered, its sliders moved."""

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browsers import CHROMIUM, DRIVER
from PIL import Image

from oneshot_medad import Predictions, slices
from oneshot_medad.calibration import uncalibrated
from oneshot_medad.errors import ConfigError
from oneshot_medad.operating import with_points
from oneshot_medad.results.reading import read_reading

EVIL = '<img src=x onerror="document.title=1">&quot;.png'


@pytest.fixture
def predictions(tmp_path):
    """Scores 0.1 to 0.6 around a threshold of 0.35, one image whose file is gone, and one that was never read."""
    grey = np.arange(60 * 400, dtype=np.uint32).reshape(60, 400).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "gone.png")
    scores = np.array([0.3, 0.1, 0.6, 0.35, 0.5, np.nan])
    heatmaps = [np.full((60, 400), s, np.float32) if s == s else np.zeros((0, 0), np.float32) for s in scores]
    heatmaps[2][10:20, 30:60] = 0.9
    heatmaps[2][40:50, 30:60] = 0.1
    found = Predictions(
        scores,
        heatmaps,
        0.35,
        ["scans/b.png", "scans/a10.png", "scans/a9.png", "scans/c.png", f"scans/{EVIL}", "scans/torn.png"],
        [""] * 5 + ["torn <b>badly</b>"],
        np.array([0.0, 0.2, 0.4]),
        [None, None, (0.5, 0.5), None, None, None],
        [grey, grey, grey, grey, tmp_path / "gone.png", tmp_path / "torn.png"],
        provenance={
            "detector_sha256": "cd" * 32,
            "backbone": "tiny",
            "n_support": 2,
            "threshold_rule": "manual",
            "evaluation": {"n_normal": 5, "n_abnormal": 6, "image_auroc": 0.75, "image_auroc_interval": [0.5, 0.9]},
            "time": "2026-01-02T03:04:05+00:00",
            "versions": {"oneshot-medad": "0.1.0"},
        },
    )
    (tmp_path / "gone.png").unlink()
    return found


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def parsed(path):
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    return tags


def test_the_report_is_one_file_that_asks_for_nothing(predictions, tmp_path):
    path = predictions.to_html(tmp_path / "report.html", title="Brains <2>")
    page = parsed(path)
    asked = [v for _, attrs in page.found for k, v in attrs.items() if k in ("src", "href", "srcset", "action")]
    assert asked
    assert all(value.startswith("data:image/") for value in asked)
    assert "http://" not in path.read_text()
    assert "https://" not in path.read_text()
    assert len(asked) == 4 * 2 + 1  # image and heatmap, but for the image that is gone
    assert path.stat().st_size < 200_000
    assert "<b>badly" not in path.read_text()
    assert not [attrs for tag, attrs in page.found if tag == "img" and "onerror" in attrs]
    for said in (
        "Brains <2>",
        "tiny",
        "2 fitted on, 3 more calibrated on",
        "1/4 = 0.25",
        "It was set by hand.",
        "0.750 (95 %",
    ):
        assert said in page.text
    assert page.text.count("not a medical device") == 2
    assert EVIL in page.text


def test_pictures_are_no_larger_than_promised(predictions, tmp_path):
    from base64 import b64decode
    from io import BytesIO

    text = predictions.to_html(tmp_path / "report.html").read_text()
    pictures = [Image.open(BytesIO(b64decode(code))) for code in re.findall(r'base64,([^"]+)', text)]
    assert {picture.size for picture in pictures} == {(320, 48)}
    heat = next(p for p in pictures if p.format == "PNG").convert("RGBA")  # the most abnormal comes first
    assert heat.getpixel((36, 12))[3] == 255  # 0.9 is far above the threshold
    assert heat.getpixel((36, 36))[3] == 10  # 0.1 is shown as 0.269: 255 * 2 * 0.019


def test_a_report_of_bare_predictions_says_what_is_not_known(tmp_path):
    bare = Predictions(np.array([0.4]), [np.ones((8, 8), np.float32)], 0.3, ["x"])
    page = parsed(bare.to_html(tmp_path / "report.html"))
    assert "Not measured" in page.text
    assert "not known" in page.text
    assert "p-value" not in "".join(attrs.get("data-key", "") for _, attrs in page.found)


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium or its driver is not installed")
def test_sorting_filter_sliders_and_details_in_a_browser(predictions, tmp_path, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(predictions.to_html(tmp_path / "report.html").as_uri())

    def one(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def names():
        rows = browser.find_elements(By.CSS_SELECTOR, "#images > tbody > tr")
        return [row.find_elements(By.TAG_NAME, "td")[1].text.split("\n")[0] for row in rows if row.is_displayed()]

    def header(key):
        return one(f"th button[data-key={key}]")

    def decisions():
        return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, ".decision") if cell.is_displayed()]

    assert names() == ["a9.png", EVIL, "c.png", "b.png", "a10.png", "torn.png"]
    assert decisions() == ["ABNORMAL", "ABNORMAL", "normal", "normal", "normal", "not read"]
    assert one("th:has([data-key=score])").get_attribute("aria-sort") == "descending"
    header("score").send_keys(Keys.ENTER)  # by keyboard
    assert names() == ["a10.png", "b.png", "c.png", EVIL, "a9.png", "torn.png"]
    assert one("th:has([data-key=score])").get_attribute("aria-sort") == "ascending"
    header("name").click()
    assert names()[1:] == ["a9.png", "a10.png", "b.png", "c.png", "torn.png"]
    assert one("th:has([data-key=score])").get_attribute("aria-sort") == "none"

    one("input[value=flagged]").click()
    assert names() == [EVIL, "a9.png"]
    slider = one("#threshold")
    browser.execute_script(
        "arguments[0].value = 0.55; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", slider
    )
    assert names() == ["a9.png"]
    assert one("#n-flagged").text == "1"
    assert one("#n-calm").text == "4"
    assert one("#threshold-value").text == "0.550"
    assert "threshold moved" in one("#counts").get_attribute("textContent")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert float(one("#threshold-value").text) > 0.55
    one("#reset").click()
    assert one("#n-flagged").text == "2"
    one("input[value=unread]").click()
    assert names() == ["torn.png"]
    assert "torn <b>badly</b>" in one("#images > tbody").text
    one("input[value=calm]").click()
    assert names() == ["a10.png", "b.png", "c.png"]
    one("input[value=all]").click()

    next(button for button in browser.find_elements(By.CSS_SELECTOR, ".name") if button.text == "a9.png").click()
    assert one("#detail").is_displayed()
    assert one("#detail-name").text == "scans/a9.png"
    assert "ABNORMAL" in one("#detail-facts").text
    assert "mm²" in one("#detail-regions").text
    loaded = "return [...document.querySelectorAll('#detail .stack img')].map(i => i.naturalWidth)"
    assert browser.execute_script(loaded) == [320, 320]
    heat = one("#detail-heat")
    assert heat.value_of_css_property("opacity") == "0.75"
    one("#opacity").send_keys(Keys.HOME)
    assert heat.value_of_css_property("opacity") == "0"
    one("#next").click()
    assert one("#detail-name").text == "scans/a10.png"
    one("#previous").click()
    one("#previous").click()
    assert one("#detail-name").text == f"scans/{EVIL}"
    assert not one("#detail-image").is_displayed()
    assert "no longer be read" in one("#detail-regions").text
    one("#close").send_keys(Keys.ESCAPE)
    assert not one("#detail").is_displayed()
    assert browser.title == "Anomaly detection report"
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


@pytest.fixture
def volume(tmp_path):
    """Five slices of a volume, of which the fourth is the highest, and one that is blank."""
    import nibabel

    values = np.random.default_rng(0).uniform(0, 1, (12, 10, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 4, 1])), tmp_path / "scan.nii")
    sources = slices(tmp_path / "scan.nii")
    heatmaps = [np.full((10, 12), 0.1 * i, np.float32) for i in range(5)]
    heatmaps[3][2:5, 2:5] = 2.0
    return Predictions(
        np.array([0.0, 0.1, 0.9, 1.2, 0.8]),
        heatmaps,
        0.5,
        [str(source) for source in sources],
        sources=sources,
        intensity_range=(0, 1),
        provenance={"calibration": with_points({**uncalibrated(0.5, "labels", 1), **SCORES})},
    )


SCORES = {"normal_scores": list(range(19)), "abnormal_scores": [30.0]}


def test_volumes_have_a_verdict_in_the_report(volume, tmp_path):
    page = parsed(volume.to_html(tmp_path / "report.html"))
    assert "5 axial slices, 5 judged" in page.text
    assert "0.04 ml, slices 3 to 3" in page.text
    assert "no volumes were calibrated on" in page.text
    assert "What false-positive rate buys what sensitivity" in page.text
    order = [attrs["data-index"] for tag, attrs in page.found if tag == "tr" and attrs.get("data-unit") == "image"]
    assert order == ["3", "2", "4", "1", "0"]


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium or its driver is not installed")
def test_slices_scroll_and_readers_are_recorded_in_a_browser(volume, tmp_path, browser):
    from selenium.webdriver.common.by import By

    browser.get(volume.to_html(tmp_path / "report.html").as_uri())

    def one(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def press(place, word):
        next(b for b in browser.find_elements(By.CSS_SELECTOR, f"{place} button") if b.text == word).click()

    assert not one("#save-reading").is_enabled()
    press("#volumes", "agree")
    one(".peak").click()
    assert one("#detail-name").text.endswith("[axial 3]")
    browser.execute_script(
        "arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", one("#detail-slice")
    )
    assert one("#detail-name").text.endswith("[axial 1]")
    press("#detail-opinion", "disagree")
    one("#detail-comment").send_keys('=missed, "here"')
    browser.execute_script(
        "document.querySelector('.detail .stack').dispatchEvent(new WheelEvent('wheel', {deltaY: -1}))"
    )
    assert one("#detail-name").text.endswith("[axial 2]")
    press("#detail-opinion", "agree")
    press("#detail-opinion", "agree")  # taken back
    one("#close").click()
    assert one("#save-reading").is_enabled()
    (tmp_path / "reading.csv").write_text(browser.execute_script("return reading()"), encoding="utf-8")
    assert read_reading(tmp_path / "reading.csv") == ([f"{tmp_path}/scan.nii[axial 1]"], [1])
    assert read_reading(tmp_path / "reading.csv", "volume") == ([f"{tmp_path}/scan.nii"], [1])
    rows = list(csv.DictReader((tmp_path / "reading.csv").open()))
    assert [row["comment"] for row in rows] == ["", 'missed, "here"']
    one("#save-reading").click()
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_readings_that_say_nothing(tmp_path):
    path = tmp_path / "reading.csv"
    path.write_text("name,label\na.png,1\n")
    with pytest.raises(ConfigError, match="columns name,label; wanted unit,name"):
        read_reading(path)
    path.write_text("unit,name,verdict,reader,label,comment\nimage,a.png,normal,,,look again\n")
    with pytest.raises(ConfigError, match="no labels of images"):
        read_reading(path)
    path.write_text("unit,name,verdict,reader,label,comment\nimage,a.png,normal,agree,yes,\n")
    with pytest.raises(ConfigError, match=r"\['yes'\]"):
        read_reading(path)
