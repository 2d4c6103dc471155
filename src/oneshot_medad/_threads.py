"""What keeps threads and forked processes out of each other's way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeVar

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Guard:
    """A lock that a thread may take again, and that a forked process finds free: whoever held it is not in there."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


LOADING = Guard()
"""Held while a part of the frozen networks is loaded."""


def loaded_once(load: Callable[[Any], T]) -> cached_property[T]:
    """A `cached_property` that one thread loads while others wait; Python 3.12 and later let all of them load."""
    name = load.__name__

    @wraps(load)
    def loaded(self: Any) -> T:
        with LOADING:
            return vars(self)[name] if name in vars(self) else load(self)

    return cached_property(loaded)


def cached_once(maxsize: int) -> Callable[[F], F]:
    """`lru_cache` in which one thread computes while others wait for its result."""

    def decorate(function: F) -> F:
        cached, guard = lru_cache(maxsize)(function), Guard()

        @wraps(function)
        def call(*arguments: Hashable) -> Any:
            with guard:
                return cached(*arguments)

        call.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


def last_of_thread(open_: Callable[..., T]) -> Callable[..., T]:
    """Keep the last result of a function for each thread of each process by itself.

    Open files have a place that they are read from, and datasets parse themselves while they are read: neither may be
    shared between threads, or with a forked process.
    """
    own = threading.local()

    @wraps(open_)
    def last(*arguments: Hashable) -> T:
        key = (os.getpid(), *arguments)
        if getattr(own, "key", None) != key:
            vars(own).clear()  # before the next is opened, so that memory holds one
            own.value, own.key = open_(*arguments), key
        return own.value

    return last
