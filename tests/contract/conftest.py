from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from browsers import CHROMIUM, DRIVER
from hub_server import serving

from oneshot_medad import _hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(_hub, "_wait", lambda retry_after, attempt: waits.append(retry_after) or 0.0)
        waits: list[str | None] = []
        server.waits = waits
        yield server


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    """huggingface_hub waits between its own retries too; tests need not."""
    import huggingface_hub.utils._http as http

    # its own reference alone: the module's function is everybody's, a browser driver's that waits for its port too
    monkeypatch.setattr(http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless=new no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
    for flag in [*flags.split(), f"user-data-dir={tmp_path / 'profile'}", "window-size=1280,900"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()
