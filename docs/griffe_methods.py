"""Shows methods that a class takes from a module (``explain = _inspection.explain``) as what they are: functions."""

from __future__ import annotations

import copy
from typing import Any

import griffe


class Methods(griffe.Extension):
    """Put the function in the place of the attribute that names it."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """All modules are loaded now."""
        owner = pkg["detector.AnomalyDetector"]
        for name, member in list(owner.members.items()):
            value = str(getattr(member, "value", "")).removeprefix("classmethod(").removesuffix(")")
            if member.is_attribute and value.startswith("_") and value.endswith(f".{name}"):
                function = copy.copy(pkg[value])
                function.parent, function.lineno = owner, member.lineno
                owner.members[name] = function
