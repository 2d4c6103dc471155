"""The Space of a detector, started as it was published and used in a browser."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from browsers import CHROMIUM, DRIVER
from dicom_files import write_dicom
from PIL import Image

from oneshot_medad import AnomalyDetector, space
from oneshot_medad.errors import NotFittedError, OneShotError

gradio = pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture
def served(fitted, hub, tmp_path):
    """Address of the published app, run in a process of its own as a Space runs it."""
    fitted.push_to_hub("clinic/brain", token="hf_test", modality="brain MRI", space=True)
    for name, content in hub.at("spaces/clinic/brain", "main")[1].items():
        (tmp_path / name).write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path / "uploads"),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    log = (tmp_path / "log").open("w+")
    app = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            assert app.poll() is None, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(address, timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        app.terminate()
        app.wait(30)
        log.close()


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium or its driver is not installed")
def test_upload_judge_and_move_the_threshold_in_a_browser(served, fitted, sample, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    files = [tmp_path / "normal.png", tmp_path / "lesion.png", tmp_path / "scan", tmp_path / "torn.png"]
    Image.fromarray(sample.images[0]).save(files[0])
    Image.fromarray(sample.images[-1]).save(files[1])
    write_dicom(files[2], sample.images[1])
    files[3].write_bytes(files[0].read_bytes()[:500])
    wanted = fitted.predict([files[0], files[1], files[2]]).scores

    def all_of(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(until):
        return WebDriverWait(browser, 300, ignored_exceptions=[Exception]).until(lambda _: until())

    def rows():
        cells = all_of("#table")[0].text.splitlines()
        width = len(space.HEAD)
        assert cells[:width] == space.HEAD
        return {cells[i]: cells[i + 1 : i + width] for i in range(width, len(cells), width)}

    browser.get(served)
    wait(lambda: all_of("#images input[type=file]"))
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "not a medical device" in text
    assert "brain MRI" in text
    assert all_of('a[href="https://huggingface.co/clinic/brain"]')
    all_of("#images input[type=file]")[0].send_keys("\n".join(map(str, files)))
    wait(lambda: "torn" in all_of("#images")[0].text and not all_of("#images .progress-bar"))
    all_of("#judge")[0].click()
    wait(lambda: "4 images" in all_of("#said")[0].text)
    found = wait(lambda: len(rows()) == 4 and rows())
    assert [float(found[name][1]) for name in ("normal.png", "lesion.png", "scan")] == pytest.approx(wanted, abs=1e-3)
    assert found["torn.png"] == ["not read", "–", "–"]
    assert "torn.png: Cannot read 'torn.png' as an image" in all_of("#said")[0].text
    pictures = wait(lambda: len(all_of("#gallery img")) >= 3 and all_of("#gallery img"))
    assert wait(lambda: all(picture.get_property("naturalWidth") > 0 for picture in pictures))

    def move(to):
        number = all_of("#threshold input[type=number]")[0]
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys(str(to), Keys.ENTER)

    move(-1)
    wait(lambda: "3 flagged" in all_of("#said")[0].text)
    assert {row[0] for row in wait(lambda: len(rows()) == 4 and rows()).values()} == {"abnormal", "not read"}
    move(3)
    wait(lambda: "3 normal" in all_of("#said")[0].text)
    browser.save_screenshot(str(tmp_path / "space.png"))


def test_a_page_of_a_detector_at_hand(fitted):
    texts = [block.value for block in space.app(fitted).blocks.values() if isinstance(block, gradio.Markdown)]
    assert space.RESEARCH in texts[0]
    assert "modality not stated" in texts[0]
    with pytest.raises(NotFittedError):
        space.app(AnomalyDetector())


def test_what_is_told_follows_the_threshold(fitted, sample):
    found = fitted.predict(sample.images[:2])
    rows, pictures, said = space._told(found, float(found.scores.min()) - 0.1)
    assert [row[1] for row in rows] == ["abnormal"] * 2
    assert said == "2 images, 2 flagged"
    assert pictures[0][0].width == 3 * sample.images[0].shape[1]
    rows, _, said = space._told(found, float(found.scores.max()) + 0.1)
    assert [row[1] for row in rows] == ["normal"] * 2
    assert all(float(row[3]) < 0.5 for row in rows)


def test_no_files_and_too_many_are_refused(fitted, sample, tmp_path, monkeypatch):
    with pytest.raises(OneShotError, match="Got no file"):
        space._predict(fitted, [])
    monkeypatch.setattr(space, "MOST", 1)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.asarray(sample.images[0])).save(tmp_path / name)
    with pytest.raises(OneShotError, match="Got 2 images; this page takes 1 at a time"):
        space._predict(fitted, [str(tmp_path / "a.png"), str(tmp_path / "b.png")])
