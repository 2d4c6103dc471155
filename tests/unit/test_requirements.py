"""The short list of requirements says what the package declares, and names all that is imported."""

import re
from importlib.metadata import requires
from pathlib import Path

LIST = Path(__file__).parents[2] / "requirements-light.txt"


def named(lines):
    """Versions by normalised name, without comments and extras."""
    found = [re.match(r"([\w.-]+)([^;#]*)", line) for line in lines if "extra ==" not in line and line[:1] != "#"]
    return {match[1].lower().replace("-", "_"): match[2].strip() for match in found if match}


def test_the_short_list_asks_for_what_the_package_declares():
    declared, listed = named(requires("oneshot-medad")), named(LIST.read_text(encoding="utf-8").splitlines())
    by_hand = {"torch", "torchvision", "medvae", "open_clip_torch"}
    assert declared.keys() - listed.keys() == by_hand
    assert listed.keys() - declared.keys() == {"einops", "ftfy", "regex"}  # of medvae's and open_clip's modules
    same = declared.keys() & listed.keys() - {"numpy"}  # whose bounds differ by Python's version
    assert {name: listed[name] for name in same} == {name: declared[name] for name in same}
