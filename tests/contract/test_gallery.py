"""What others find: cards in the Hub's terms, `search` through huggingface_hub, and the Space beside a detector."""

import json
from copy import copy
from pathlib import Path

import pytest
import yaml
from hub_server import Fault, front_matter
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from oneshot_medad import __version__, search
from oneshot_medad.cli import app
from oneshot_medad.errors import HubError
from oneshot_medad.persistence import gallery
from oneshot_medad.persistence.space import GRADIO, space_files

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
EXAMPLE = Path(__file__).parents[2] / "examples" / "space"


@pytest.fixture
def published(fitted, sample, hub):
    """Three detectors, one of them measured, and a model of another library."""
    fitted.push_to_hub("clinic/head", token="hf_test", modality="brain MRI, T1, axial", license="cc-by-4.0")
    fitted.push_to_hub("clinic/chest", token="hf_test", modality="chest radiograph")
    fitted.push_to_hub("other/brain", token="hf_test")
    hub.put("other/words", {"README.md": b"---\nlibrary_name: transformers\ntags: [brain]\n---\n"})
    hub.downloads.update({"clinic/chest": 7, "other/brain": 900, "clinic/head": 30})
    return fitted


def test_search_lists_detectors_alone_by_downloads_over_all_pages(published):
    assert [found.repo_id for found in search()] == ["other/brain", "clinic/head", "clinic/chest"]
    assert [found.repo_id for found in search(limit=1)] == ["other/brain"]
    assert [found.repo_id for found in search(owner="clinic")] == ["clinic/head", "clinic/chest"]


def test_search_finds_words_in_names_and_tags(published):
    assert [found.repo_id for found in search("Brain")] == ["other/brain", "clinic/head"]
    assert [found.repo_id for found in search("brain", "t1")] == ["clinic/head"]
    assert search("knee") == []
    head = search("T1")[0]
    assert (head.tags, head.license, head.measures) == (["brain MRI", "T1", "axial"], "cc-by-4.0", {})
    assert "not measured" in str(head)


@pytest.mark.parametrize("apart", [True, False])
def test_measures_are_on_the_card_and_in_the_listing(published, sample, hub, apart):
    """Whether the Hub lists them apart from the rest of the front matter or within it."""
    hub.index_apart = apart
    detector = copy(published)  # the evaluation stays off the one that other tests share
    measured = detector.evaluate(sample.images, sample.labels)
    detector.push_to_hub("clinic/measured", token="hf_test")
    card = ModelCard(hub.at("clinic/measured", "main")[1]["README.md"].decode())
    first = card.data.eval_results[0]
    assert (first.metric_type, first.metric_value) == ("roc_auc", round(measured["image_auroc"], 4))
    assert "chosen by the author: 4 normal, 4 abnormal" in first.dataset_name
    assert search("measured")[0].measures == {
        name: round(measured[name], 4) for name in ("image_auroc", "image_ap", "sensitivity", "specificity")
    }


def test_a_listing_of_anything_at_all_is_read(hub):
    odd = {"library_name": "oneshot-medad", "tags": [3, "knee"], "license": ["x"], "model-index": [{"name": "x"}]}
    hub.put("odd/one", {"README.md": f"---\n{yaml.safe_dump(odd)}---\n".encode()})
    assert [(found.repo_id, found.tags, found.license, found.measures) for found in search()] == [
        ("odd/one", ["knee"], None, {})
    ]


def test_search_on_the_command_line(published):
    done = CliRunner().invoke(app, ["search", "t1", "--json"])
    assert [one["repo_id"] for one in json.loads(done.output)["detectors"]] == ["clinic/head"]
    assert (
        "clinic/head: brain MRI, T1, axial; not measured; cc-by-4.0; 30 downloads"
        in CliRunner().invoke(app, ["search", "--owner", "clinic"]).output
    )
    assert "No published detector" in CliRunner().invoke(app, ["search", "elbow"]).output


def test_a_refused_search_is_a_clear_error(hub):
    hub.faults.append(Fault("GET /api/models", 403))
    with pytest.raises(HubError, match="Cannot list detectors: the Hub answered 403"):
        search()


def test_front_matter_says_library_task_and_modality(published, hub):
    data = front_matter(hub.at("clinic/head", "main")[1]["README.md"])
    assert (data["library_name"], data["pipeline_tag"]) == ("oneshot-medad", "image-classification")
    assert data["tags"] == [*gallery.TAGS, "brain MRI", "T1", "axial"]
    assert "model-index" not in data


def test_the_card_says_what_the_embedded_networks_are(published, hub):
    card = hub.at("clinic/head", "main")[1]["README.md"].decode()
    row = next(line for line in card.splitlines() if line.startswith("| frozen networks |"))
    for said in ("EfficientNet-Lite0", "open_clip", "real lesion masks and labels", "terms differ", "WEIGHTS.md"):
        assert said in row


def test_a_space_goes_up_beside_the_detector(fitted, hub):
    address = fitted.push_to_hub("clinic/brain", token="hf_test", space=True)
    _, files = hub.at("spaces/clinic/brain", "main")
    detector = hub.at("clinic/brain", "main")[0]
    assert address.endswith(detector)
    assert files.keys() == {"app.py", "requirements.txt", "README.md"}
    assert f'space.app("clinic/brain", revision="{detector}")' in files["app.py"].decode()
    compile(files["app.py"], "app.py", "exec")
    data = front_matter(files["README.md"])
    assert (data["sdk"], data["sdk_version"], data["app_file"], data["models"]) == (
        "gradio",
        GRADIO,
        "app.py",
        ["clinic/brain"],
    )
    assert len(data["short_description"]) <= 60
    assert b"not a medical device" in files["README.md"]
    torch = fitted.provenance_["versions"]["torch"].split("+")[0]
    pins = files["requirements.txt"].decode().splitlines()
    assert f"torch=={torch}" in pins
    assert f"oneshot-medad[dicom,space]=={__version__}" in pins


def test_without_being_asked_there_is_no_space(fitted, hub):
    fitted.push_to_hub("clinic/brain", token="hf_test")
    assert "spaces/clinic/brain" not in hub.commits


def test_a_refused_space_leaves_the_detector_published(fitted, hub):
    hub.faults.append(Fault("POST /api/spaces/.*/commit/", 403))
    with pytest.raises(HubError, match="Cannot upload to clinic/brain"):
        fitted.push_to_hub("clinic/brain", token="hf_test", space=True)
    assert "config.json" in hub.at("clinic/brain", "main")[1]


def test_the_example_is_what_is_generated():
    """To write it again: ``space_files`` with these values, into examples/space."""
    versions = {"torch": "2.14.1", "open_clip_torch": "2.24.0", "medvae": "0.1.7", "safetensors": "0.8.0"}
    made = space_files("your-name/brain-detector", "main", versions)
    assert {path.name: path.read_text(encoding="utf-8") for path in EXAMPLE.iterdir()} == made
