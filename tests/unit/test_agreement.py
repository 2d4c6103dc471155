"""Whatever is said of one image agrees: verdict, flag, regions, pictures, files, tables, report and counts."""

import copy
import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from oneshot_medad import AnomalyDetector, Predictions
from oneshot_medad.errors import ImageError
from oneshot_medad.images.read import BLANK
from oneshot_medad.results.capture import capture_picture
from oneshot_medad.results.pictures import OUTLINE, STRIP, UNJUDGED, blend, captioned, outlined
from oneshot_medad.verdicts import held_back

GREY = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
EMPTY = np.zeros((0, 0), np.float32)


def random_predictions(seed, n=60):
    """Images of every verdict whose heatmaps exceed the threshold here and there, whatever the score."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 1, n)
    heatmaps = [(score + rng.normal(0, 0.3, GREY.shape)).astype(np.float32) for score in scores]
    reasons = [""] * n
    for i in rng.choice(n, n // 5, replace=False):
        scores[i], heatmaps[i], reasons[i] = np.nan, EMPTY, BLANK if rng.random() < 0.5 else "torn"
    return Predictions(
        scores,
        heatmaps,
        0.7,
        [f"image {i}" for i in range(n)],
        reasons,
        np.sort(rng.uniform(0, 0.7, 19)),
        [None] * n,
        [GREY if not reason else None for reason in reasons],
        uncertain_from=float(rng.choice([0.4, 0.5])) if seed % 2 else None,
        similarities=rng.uniform(0.5, 1, n),
        least_similarity=0.6,
    )


class Rows(HTMLParser):
    """Attributes and text of every row of a report, and the numbers beside its filters."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.counts, self.at, self.inside = [], {}, None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr" and attrs.get("data-unit") == "image":
            self.rows.append({**attrs, "text": "", "pictures": 0, "regions": 0})
            self.inside = True
        self.inside = self.inside and tag != "footer"
        if self.inside and tag == "img":
            self.rows[-1]["pictures"] += 1
        self.at = attrs.get("id", "").removeprefix("n-") if tag == "b" else None

    def handle_data(self, data):
        if self.at and data.strip():
            self.counts[self.at] = int(data)
        if self.inside:
            self.rows[-1]["text"] += data


@pytest.mark.parametrize("seed", range(6))
def test_nothing_said_of_one_image_contradicts_its_verdict(seed, tmp_path):
    found = random_predictions(seed)
    rows, frame, flags = found.to_rows(), found.to_frame(), found.flags.tolist()
    page = Rows(found.to_html(tmp_path / "report.html").read_text())
    shown = [row["data-score"] for row in page.rows if "data-score" in row]
    assert shown == sorted(shown, key=float, reverse=True)  # the most abnormal first, what has no score last
    page.rows.sort(key=lambda row: found.names.index(row["data-cell"]))
    pngs = found.save_heatmaps(tmp_path / "png")
    records = [json.loads(line) for line in found.to_jsonl(tmp_path / "audit.jsonl").read_text().splitlines()]
    table = list(csv.DictReader(found.to_csv(tmp_path / "scores.csv").open()))
    assert set(found.verdicts) == {"normal", "abnormal", "cannot judge", "not read"} | (
        {"uncertain"} if seed % 2 else set()
    )
    for i, verdict in enumerate(found.verdicts):
        judged, flagged = verdict in ("normal", "uncertain", "abnormal"), verdict == "abnormal"
        said = (flags[i], rows[i]["flag"], {"True": True, "False": False, "": None}[table[i]["flag"]])
        assert said == ((flagged,) * 3 if judged else (None,) * 3)
        assert (frame["flag"].isna()[i], records[i]["decision"], page.rows[i]["data-verdict"]) == (
            not judged, verdict, verdict
        )  # fmt: skip
        for name in ("score", "shown", "p_value", "percentile"):
            assert (rows[i][name] is not None) == judged
            assert (table[i][name] != "") == judged
            assert (records[i][name] is not None) == judged
        assert ("data-score" in page.rows[i], "data-p" in page.rows[i]) == (judged, judged)
        assert judged == (re.search(r"0\.\d", page.rows[i]["text"].replace(rows[i]["reason"], "")) is not None)
        pictured, regions = found.pictured(i), found.regions(i)
        assert (pngs[i] is not None) == judged == bool(pictured.size)
        assert page.rows[i]["pictures"] == {"not read": 0, "cannot judge": 1}.get(verdict, 2)
        if flagged:
            assert np.array_equal(pictured, found.heatmaps[i])
            assert regions[0].score == pytest.approx(float(found.heatmaps[i].max()))
            assert all(region.score > found.threshold for region in regions)
        elif judged:
            assert pictured.max() <= found.threshold
            assert np.asarray(Image.open(pngs[i])).max() <= 32768  # the middle
            assert all(found.uncertain_from < region.score <= found.threshold for region in regions)
        assert bool(regions) == (verdict in ("abnormal", "uncertain"))
    assert found.counts() == {
        "images": 60,
        "flagged": sum(flag is True for flag in flags),
        "uncertain": found.verdicts.count("uncertain"),
        "normal": found.verdicts.count("normal"),
        "cannot_judge": found.verdicts.count("cannot judge"),
        "blank": found.reasons.count(BLANK),
        "failed": found.reasons.count("torn"),
    }
    names = {"flagged": "flagged", "unsure": "uncertain", "calm": "normal", "foreign": "cannot_judge"}
    names |= {"blank": "blank", "unread": "failed"}
    assert page.counts == {k: found.counts()[v] for k, v in names.items() if seed % 2 or k != "unsure"}
    assert found.flags.sum() == found.counts()["flagged"] == np.asarray(found).sum()


def test_a_heatmap_is_held_back_at_the_threshold_in_every_type():
    for dtype in (np.float32, np.float64):
        for threshold in (0.1, 0.7, 1 / 3):
            heatmap = np.full((2, 2), 5, dtype)
            assert held_back(heatmap, "normal", threshold).max() <= threshold
            assert held_back(heatmap, "normal", threshold).max() == pytest.approx(threshold, abs=1e-6)
            assert held_back(heatmap, "normal", threshold).dtype == dtype


def test_pictures_follow_the_verdict():
    hot = np.full(GREY.shape, 0.9, np.float32)
    found = Predictions(
        np.array([0.1, 0.6, 0.9]), [hot] * 3, 0.5, list("abc"), sources=[GREY] * 3,
        similarities=np.array([1, 1, 0.1]), least_similarity=0.5,
    )  # fmt: skip
    assert found.verdicts == ["normal", "abnormal", "cannot judge"]
    normal, abnormal = (np.asarray(found.overlay(i))[:, 60:] for i in (0, 1))
    assert np.array_equal(normal, blend(GREY, np.full(GREY.shape, 0.5), 0.5))
    assert np.array_equal(abnormal, outlined(blend(GREY, hot, 0.5), hot > 0.5, OUTLINE))
    foreign = found.overlay(2)
    assert np.array_equal(np.asarray(foreign), np.asarray(captioned(found_image(found, 2), [UNJUDGED])))
    titles = [axes.get_title() for axes in found.plot(columns=3).axes[:3]]
    assert [title.split()[-1] for title in titles] == ["normal", "ABNORMAL", "judge"]
    assert titles[2] == "c\ncannot judge"
    assert "cannot judge" in found._repr_html_()
    assert found._repr_html_().count("0.9") == 0
    for i in (0, 1):
        assert np.array_equal(np.asarray(capture_picture(found, i))[:20, :90], np.asarray(found.overlay(i)))
    gone = Predictions(np.array([0.9]), [hot], 0.5, ["a"], similarities=np.array([0.1]), least_similarity=0.5)
    with pytest.raises(ImageError, match="no heatmap"):
        gone.overlay(0)


def found_image(predictions, i):
    return Image.fromarray(predictions.image(i))


def test_a_place_above_the_threshold_is_no_finding_in_an_image_called_normal(fitted, sample):
    """The score is the mean of the highest places, so that the highest of all exceeds it."""
    detector = copy.copy(fitted)
    image = sample.images[sample.labels.argmax()]
    before = detector.predict(image)
    highest = float(before.heatmaps[0].max())
    assert highest > before.scores[0]
    between = (highest + float(before.scores[0])) / 2
    found = detector.set_threshold(between).predict(image)
    assert (found.verdicts, found.regions(0)) == (["normal"], [])
    assert found.pictured(0).max() <= between < found.heatmaps[0].max()
    explanation = detector.explain(image)
    assert (explanation.verdict, explanation.regions) == ("normal", [])
    held = held_back(found.heatmaps[0], "normal", between)
    width = image.shape[1]
    panels = np.asarray(explanation.picture())[STRIP:]  # below the titles
    assert np.array_equal(panels[:, width : 2 * width], blend(image, held, between))
    assert detector.set_threshold(float(before.scores[0]) - 0.01).predict(image).regions(0)


def test_rows_of_unread_images_are_empty_in_every_table(fitted, sample, tmp_path):
    import pandas

    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    rows, columns = np.mgrid[:200, :200]
    stripes = (127 + 120 * np.sin(rows / 3) * np.sin(columns / 5)).astype(np.uint8)
    detector = copy.copy(fitted).calibrate(sample.images[:4], target_fpr=0.2)
    found = detector.predict([sample.images[4], tmp_path / "torn.png", stripes], on_error="record")
    assert found.verdicts[1:] == ["not read", "cannot judge"]
    assert found.flags.tolist()[1:] == [None, None]
    assert found.flags.filled(False).tolist()[1:] == [False, False]
    assert not np.isnan(found.scores[2])  # what was computed stays
    frames = [found.to_frame(), pandas.read_csv(found.to_csv(tmp_path / "x.csv"))]
    if pytest.importorskip("pyarrow"):
        frames.append(pandas.read_parquet(found.to_parquet(tmp_path / "x.parquet")))
    for frame in frames:
        for name in ("score", "shown", "flag", "percentile", "p_value"):
            assert frame[name].isna().tolist() == [False, True, True], name
    assert "similarity -0." in found.to_rows()[2]["reason"]
    assert "nan" not in str(found)
    assert found.save_heatmaps(tmp_path / "h", format="npz")[1:] == [None, None]
    with np.load(found.save_heatmaps(tmp_path / "h", format="npz")[0]) as held:
        assert str(held["verdict"]) == found.verdicts[0]


def test_slices_that_cannot_be_judged_leave_a_volume_alone(tmp_path):
    import nibabel

    from oneshot_medad import slices

    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 3), np.float32), np.eye(4)), tmp_path / "v.nii")
    found = slices(tmp_path / "v.nii")
    made = Predictions(
        np.array([0.2, 9.0, 0.4]), [np.full((5, 4), 9, np.float32)] * 3, 0.5, [str(s) for s in found],
        sources=found, similarities=np.array([1, 0.1, 1]), least_similarity=0.5,
    )  # fmt: skip
    (volume,) = made.volumes()
    assert volume.score == pytest.approx(0.3)
    assert not volume.heatmap[:, :, 1].any()
    assert volume.heatmap[:, :, 0].all()


def test_the_command_line_and_the_report_count_alike(fitted, sample, monkeypatch, tmp_path, capsys):
    import sys

    from oneshot_medad import cli

    rows, columns = np.mgrid[:200, :200]
    stripes = (127 + 120 * np.sin(rows / 3) * np.sin(columns / 5)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    for i, image in enumerate([*sample.images, stripes]):
        Image.fromarray(image).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "torn.png").write_bytes(b"\x89PNG")
    detector = AnomalyDetector.from_pretrained(fitted.save_pretrained(tmp_path / "detector"))
    detector.calibrate(sample.images[:4], target_fpr=0.2, uncertain_fpr=0.6).save_pretrained(tmp_path / "detector")

    said = []
    for command in (["predict", "--out", tmp_path / "out"], ["report", "--out", tmp_path / "report.html"]):
        arguments = [command[0], tmp_path / "detector", tmp_path / "in", *command[1:], "--json"]
        monkeypatch.setattr(sys, "argv", ["oneshot-medad", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 3
        said.append(json.loads(capsys.readouterr().out))
    one, other = ({k: v for k, v in values.items() if k not in ("table", "report")} for values in said)
    assert one == other
    assert (one["images"], one["cannot_judge"], one["failed"]) == (10, 1, 1)
    assert one["uncertain"] > 0
    page = Rows((tmp_path / "report.html").read_text())
    assert [page.counts[k] for k in ("flagged", "unsure", "calm", "foreign", "unread")] == [
        one[k] for k in ("flagged", "uncertain", "normal", "cannot_judge", "failed")
    ]
    lines = {row["name"]: row for row in csv.DictReader((tmp_path / "out" / "scores.csv").open())}
    assert sum(row["flag"] == "True" for row in lines.values()) == one["flagged"]
    for name in ("8.png", "torn.png"):
        row = lines[str(tmp_path / "in" / name)]
        assert [row[k] for k in ("score", "shown", "flag", "percentile", "p_value", "heatmap")] == [""] * 6
        assert row["reason"]
