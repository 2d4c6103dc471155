"""Dividing images for scikit-learn so that a detector is fitted on normal images alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from oneshot_medad.errors import ConfigError


class NormalOnlySplit:
    """Draws of the one image for ``cv=``: each fold fits on other normal images and tests on all the rest.

    Parameters
    ----------
    n_splits
        Draws. No normal image is fitted on in two of them.
    n_support
        Normal images that each draw fits on.
    random_state
        Seed of the draws.

    Examples
    --------
    >>> labels = [0, 0, 0, 1, 1]
    >>> for fitted, tested in NormalOnlySplit(n_splits=2, random_state=0).split(labels, labels):
    ...     print(fitted, tested)
    [2] [0 1 3 4]
    [0] [1 2 3 4]
    """

    def __init__(self, n_splits: int = 5, *, n_support: int = 1, random_state: int | None = None) -> None:
        self.n_splits = n_splits
        self.n_support = n_support
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: N803
        """Number of draws."""
        return self.n_splits

    def split(
        self,
        X: Sequence[Any],  # noqa: N803
        y: Sequence[int],
        groups: Sequence[Hashable] | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows to fit on and rows to test on.

        Parameters
        ----------
        X
            The images.
        y
            0 for normal, 1 for abnormal, one per image.
        groups
            Patient of each image: nobody is on both sides.

        Raises
        ------
        ConfigError
            Labels that do not fit, or fewer normal images than all draws need.
        """
        if y is None:
            raise ConfigError("Got no y; wanted 0 for normal and 1 for abnormal, one per image.")
        normal = normal_rows(y, len(X))
        needed = self.n_splits * self.n_support
        if self.n_splits < 1 or self.n_support < 1 or needed > len(normal):
            raise ConfigError(
                f"Got n_splits={self.n_splits!r} with n_support={self.n_support!r} for {len(normal)} normal images; "
                f"wanted positive numbers whose product is at most {len(normal)}."
            )
        members = np.arange(len(X)) if groups is None else np.unique(np.asarray(groups, str), return_inverse=True)[1]
        drawn = np.random.default_rng(self.random_state).permutation(normal)[:needed]
        for support in drawn.reshape(self.n_splits, self.n_support):
            yield np.sort(support), np.flatnonzero(~np.isin(members, members[support]))


def normal_rows(y: Any, n: int) -> np.ndarray:
    """Positions of the normal ones among n images.

    Parameters
    ----------
    y
        0 for normal, 1 for abnormal, one per image; None takes all for normal.
    n
        Number of images.

    Raises
    ------
    ConfigError
        Labels of another length or other values, or without a normal image.

    Examples
    --------
    >>> normal_rows([0, 1, 0], 3).tolist()
    [0, 2]
    """
    if y is None:
        return np.arange(n)
    labels = np.asarray(y)
    values = set(labels.ravel().tolist())
    if labels.shape != (n,) or not values <= {0, 1}:
        raise ConfigError(
            f"Got y of shape {labels.shape} with values {sorted(map(str, values))[:5]} for {n} images; wanted one per "
            "image, 0 for normal and 1 for abnormal."
        )
    if 0 not in values:
        raise ConfigError(f"Got {n} images labelled abnormal; wanted at least one normal image (0) to fit on.")
    return np.flatnonzero(labels == 0)
