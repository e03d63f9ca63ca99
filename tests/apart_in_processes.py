"""What two processes do that do not both do the same. After each case, each writes what it found as JSON to OUT.RANK.

WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 apart_in_processes.py OUT      # and RANK=1
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tiny import letters_critic, prompts, student

from humor_env.agents.best_of_n import BestOfN, BestOfNConfig
from humor_env.agents.session.processes import is_main_process, process_index
from humor_env.agents.student.sampling import Sampling
from humor_env.experiments.runs.evaluate import written_by

SHORT = Sampling(max_new_tokens=4)


def best_of_n() -> dict[str, Any]:
    """The main process measures; the other goes on to the next exchange."""
    lines = 0
    if is_main_process():
        writer = BestOfN(student(), letters_critic(), BestOfNConfig(n=2, sampling=SHORT))
        lines = len(written_by(writer, prompts(4), lines=2, seed=0))
    PartialState().wait_for_everyone()
    return {"lines": lines}


def main(out: str) -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    found: dict[str, Any] = {}
    for case in (best_of_n,):
        found[case.__name__] = case()
        Path(f"{out}.{process_index()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
