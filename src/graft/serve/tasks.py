"""Tasks: what any thread wants done while no batch runs, as loading an adapter, and waits for."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

Task = Callable[[], Any]


class Tasks:
    """Done by the engine's thread while one `takes` them, else by whoever asks."""

    def __init__(self) -> None:
        self.lock, self.taken = threading.Lock(), False
        self.queue: deque[tuple[Task, Future[Any]]] = deque()

    def run(self, task: Task, wake: Callable[[], None]) -> Any:
        """What a task returns, or its error, once it was done; `wake` the engine's thread for it."""
        done: Future[Any] = Future()
        with self.lock:
            if self.taken:
                self.queue.append((task, done))
            else:
                with torch.inference_mode(False), torch.no_grad():
                    return task()
        wake()
        return done.result()

    def later(self, task: Task) -> None:
        """Let the engine's thread do a task that nobody waits for."""
        self.queue.append((task, Future()))

    @torch.inference_mode(False)
    @torch.no_grad()
    def do(self) -> None:
        """Do all there are. An error is for who asked, not for the engine."""
        while self.queue:
            task, done = self.queue.popleft()
            try:
                done.set_result(task())
            except BaseException as error:
                done.set_exception(error)

    def take(self, taken: bool) -> None:
        """Say whether the engine's thread does them from now on; where it no longer does, those that are left are done here."""
        with self.lock:
            self.taken = taken
        if not taken:
            self.do()
