import sys

import numpy as np
import pytest
from PIL import Image

from oneshot_medad import Predictions
from oneshot_medad.errors import ImageError, ImageFileError
from oneshot_medad.results.pictures import (
    OPACITY,
    OUTLINE,
    blend,
    captioned,
    colours,
    contact_sheet,
    outlined,
    overlay,
    strength,
)

GREY = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


def made(heatmaps, sources, **more):
    n = len(heatmaps)
    names = [str(source) if not isinstance(source, np.ndarray) else f"image {i}" for i, source in enumerate(sources)]
    return Predictions(
        np.array([h.max() if h.size else np.nan for h in heatmaps]),
        heatmaps,
        0.5,
        names,
        ["" if h.size else "torn" for h in heatmaps],
        None,
        [None] * n,
        sources,
        **more,
    )


def test_the_threshold_has_one_colour_whatever_the_threshold_and_the_image():
    for threshold, rest in ((0.1, -3.0), (0.9, 5.0)):
        heatmap = np.full((4, 4), rest)
        heatmap[0, 0] = threshold
        middle = np.asarray(overlay(np.zeros((4, 4), np.uint8), heatmap, threshold))[0, 4]
        assert middle.tolist() == colours(np.array([0.5]))[0].tolist()


def test_lightness_of_the_colours_rises_all_the_way():
    from skimage.color import rgb2lab

    lightness = rgb2lab(colours(np.linspace(0, 1, 64))[None])[0, :, 0]
    assert (np.diff(lightness) > 0).all()


def test_a_calm_heatmap_leaves_the_image_as_it_is():
    assert strength(np.array([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == [0, 0, 0.5, 1, 1]
    calm = np.full(GREY.shape, 0.5 - 0.28)  # 0.246 on the shown scale
    assert np.array_equal(blend(GREY, calm, 0.5), np.repeat(GREY[..., None], 3, axis=2))
    hot = blend(GREY, np.full(GREY.shape, 9.0), 0.5)
    expected = (GREY[3, 4] * (1 - OPACITY) + colours(np.array([1.0]))[0] * OPACITY).astype(int)
    assert hot[3, 4].tolist() == expected.tolist()


def test_overlay_of_predictions_and_what_is_left_without_the_image(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    heat = np.linspace(0, 1, GREY.size, dtype=np.float32).reshape(GREY.shape)
    torn = np.zeros((0, 0), np.float32)
    predictions = made([heat, heat, torn], [tmp_path / "a.png", GREY, tmp_path / "torn.png"])
    whole = predictions.overlay(0)
    assert whole.size == (60, 12)
    assert np.array_equal(np.asarray(whole), np.asarray(predictions.overlay(1)))
    assert np.array_equal(np.asarray(whole)[:, :20, 0], GREY)
    with pytest.raises(ImageError, match="torn"):
        predictions.overlay(2)

    Image.fromarray(GREY.T).save(tmp_path / "a.png")  # another image now
    other = predictions.overlay(0)
    (tmp_path / "a.png").unlink()
    alone = predictions.overlay(0)
    assert np.array_equal(np.asarray(alone), np.asarray(other))
    assert np.array_equal(np.asarray(alone)[:12, :20], np.asarray(whole)[:, 20:40])
    assert alone.height == 30
    assert np.asarray(alone)[12:].max() > 200  # the note
    with pytest.raises(ImageFileError, match="without sources"):
        Predictions(np.array([1.0]), [heat], 0.5, ["a"]).image(0)


def test_captions_are_never_cut():
    sheet = captioned(Image.new("RGB", (10, 10)), ["i" * 5, "W" * 60])
    wide = captioned(Image.new("RGB", (900, 10)), ["W" * 60])
    assert np.array_equal(np.asarray(sheet)[28:, :400], np.asarray(wide)[10:, :400])
    assert wide.width == 900
    assert not np.asarray(sheet)[:, -4:].any()


def test_plot_draws_a_grid_without_pyplots_state(tmp_path):
    heat = np.linspace(0, 1, GREY.size, dtype=np.float32).reshape(GREY.shape)
    predictions = made([heat, heat, np.zeros((0, 0))], [GREY, tmp_path / "gone.png", tmp_path / "$torn_{.png"])
    before = "matplotlib.pyplot" in sys.modules
    figure = predictions.plot(columns=2)
    assert ("matplotlib.pyplot" in sys.modules) == before
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["image 0\n0.88 ABNORMAL", "gone.png\n0.88 ABNORMAL (heatmap only)"]
    assert titles[2] == "$torn_{.png"
    bar = figure.axes[-1]
    assert bar.get_ylim() == (0, 1)
    assert "0.5 threshold" in [label.get_text() for label in bar.get_yticklabels()]
    drawn = outlined(blend(GREY, heat, 0.5), heat > 0.5, OUTLINE)  # as in overlays
    assert (drawn == OUTLINE).all(axis=2).any()
    assert np.array_equal(figure.axes[0].images[0].get_array(), drawn)
    figure.savefig(tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 300
    assert len(predictions.plot(n=1).axes) == 2


def test_the_notebook_table_is_short_and_escaped(tmp_path):
    heat = np.ones(GREY.shape, np.float32)
    predictions = made([heat] * 24 + [np.zeros((0, 0))], ["<script>alert(1)</script>.png", *[GREY] * 24])
    text = predictions._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert text.count("data:image/jpeg;base64,") == 20
    assert "and 5 more" in text
    assert "not read: torn" in made([np.zeros((0, 0))], ["x"])._repr_html_()


def test_regions_are_outlined_where_the_image_is_blended():
    heat = np.zeros(GREY.shape, np.float32)
    heat[3:8, 5:12] = 0.9
    found = made([heat, heat], [GREY, GREY])
    drawn = np.asarray(found.overlay(0))[:, 40:]
    edge = (drawn == OUTLINE).all(axis=2)
    expected = np.zeros(GREY.shape, bool)
    expected[3:8, 5:12] = True
    expected[4:7, 6:11] = False
    assert np.array_equal(edge, expected)
    calm = made([heat * 0.3], [GREY])
    assert not (np.asarray(calm.overlay(0)) == OUTLINE).all(axis=2).any()


def test_captions_stay_with_their_picture():
    pictures = [Image.new("RGB", (20, height), "blue") for height in (10, 60, 30)]
    sheet = np.asarray(contact_sheet(pictures, ["WWW"] * 3))
    assert sheet.shape[:2] == (60 + 18 + 30 + 18, 40)
    dark = (sheet < 90).all(axis=2)
    assert dark[10:28, :20].any()  # right below the small picture of the first row
    assert not dark[28:78, :20].any()
    assert dark[60:78, 20:].any()
    assert dark[108:126, :20].any()


def test_notebooks_show_figures_without_being_set_up():
    heat = np.zeros(GREY.shape, np.float32)
    figure = made([heat], [GREY]).plot()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_what_is_typed_alone_is_one_line():
    heat = np.full(GREY.shape, 0.9, np.float32)
    assert repr(made([heat, heat * 0, np.zeros((0, 0))], [GREY, GREY, GREY])) == (
        "<Predictions: 3 images, 1 flagged, 1 normal, 1 failed, threshold 0.500>"
    )
