"""One critic shared by many callers: when it is free, all waiting lines are judged in one call.

critic = SharedCritic(task)
critic.judge(joke).result()          # from any thread; the critic runs on its own
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

from humor_env.episodes.episode import Task
from humor_env.types import Joke, Judgement

AT_ONCE = 256  # jokes in one call of the critic


class SharedCritic:
    """A task's critic on its own thread; `judge` may be called from any other."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.waiting: queue.Queue[tuple[Joke, Future[Judgement]]] = queue.Queue()
        threading.Thread(target=self._work, name="critic", daemon=True).start()

    def judge(self, joke: Joke) -> Future[Judgement]:
        future: Future[Judgement] = Future()
        self.waiting.put((joke, future))
        return future

    def _work(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < AT_ONCE and not self.waiting.empty():
                batch.append(self.waiting.get())
            # A session that has ended in the meantime no longer needs its answer.
            batch = [(joke, future) for joke, future in batch if future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                judgements = self.task.judge([joke for joke, _ in batch])
            except Exception as problem:
                for _, future in batch:
                    future.set_exception(problem)
            else:
                for (_, future), judgement in zip(batch, judgements, strict=True):
                    future.set_result(judgement)
