"""How long raters wait for the arena, and whether it loses an answer. The last figures of docs/arena.md:

python tests/arena_load.py 32 200 1.0            # raters, answers of each, seconds to think
"""

import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from arena_sessions import Server, Taste, Visitor, write_lines

from humor_env.experiments.arena.store import Store

TASTE = {"a": 0, "b": 1, "c": 2, "d": 3, "teacher": 4}


def judge(link, seed, think, waits):
    chance, taste, one = random.Random(seed), Taste(TASTE, seed=seed), Visitor(link)
    while one.page.asks:
        said = taste(one.page.texts[1:])
        time.sleep((0.5 + chance.random()) * think)
        began = time.perf_counter()
        page = one.post("/answer", one.page.fields | {"humor": said, "consistency": "tie"}, follow=False)
        answered = time.perf_counter()
        assert page.status == 303, page.body
        one.page = one.get("/judge")
        waits.append((answered - began, time.perf_counter() - began))
        if 'action="/rest"' in one.page.body:
            one.page = one.post("/rest", one.page.fields)
    assert one.page.title == "Thank you", one.page.title


def main(raters, answers, think):
    waits, folder = [], Path(tempfile.mkdtemp())
    write_lines(folder / "lines.jsonl", tuple(TASTE), prompts=400)
    with Server(folder, "--file", "lines.jsonl", "--raters", raters, "--per-rater", answers) as server:
        threads = [
            threading.Thread(target=judge, args=(link, seed, think, waits)) for seed, link in enumerate(server.links)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Store.open(folder / "arena.sqlite") as store:
        kept = Counter(answer.ask.rater for answer in store.answers())
    assert len(waits) == raters * answers and set(kept.values()) == {answers} and len(kept) == raters, kept
    answer, both = (1000 * statistics.median(column) for column in zip(*waits, strict=True))
    print(f"{len(waits)} answers, none lost or twice; median {answer:.0f} ms, with the next page {both:.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
