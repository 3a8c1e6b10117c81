"""One function of many values, several at a time. Whoever is interrupted waits for nobody: a server may never answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from queue import SimpleQueue
from typing import TypeVar

LANES = 8

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")


def in_lanes(
    name: str, function: Callable[[_Value], _Result], values: Iterable[_Value], lanes: int = LANES
) -> Generator[_Result, None, None]:
    """``function`` of each value, in the order of the values, as soon as it is known. ``name`` is that of the threads.

    An error of ``function`` is raised in its turn. After that, or when the caller is interrupted, nothing new is begun, and
    what was begun ends by itself: the threads keep no process alive.
    """
    todo = deque(enumerate(values))
    count, stopped = len(todo), threading.Event()
    done: SimpleQueue[tuple[int, Callable[[], _Result]]] = SimpleQueue()

    def work() -> None:
        while not stopped.is_set():
            try:
                at, value = todo.popleft()
            except IndexError:
                return
            done.put((at, _outcome(function, value)))

    for number in range(min(lanes, count)):
        threading.Thread(target=work, name=f"{name}-{number}", daemon=True).start()
    known: dict[int, Callable[[], _Result]] = {}
    try:
        for at in range(count):
            while at not in known:
                number, outcome = done.get()
                known[number] = outcome
            yield known.pop(at)()
    finally:
        stopped.set()


def _outcome(function: Callable[[_Value], _Result], value: _Value) -> Callable[[], _Result]:
    """What came of one call: returns its result, or raises its error."""
    try:
        result = function(value)
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        failure = error

        def raise_() -> _Result:
            raise failure

        return raise_
    return lambda: result
