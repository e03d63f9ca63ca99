"""Students and how they learn. Each algorithm is one file here; what they share is in the sub-folders.

plain.py             the loop to read first: prompts, lines, judgements, one REINFORCE update
sft.py               imitation of a teacher
ppo.py grpo.py rloo.py reinforce_pp.py expert_iteration.py     learn from a critic's scores
dpo.py brio.py brio_dpo.py self_distill.py                     learn from a judge's preferences between pairs
best_of_n.py         a control that learns nothing

student/             the language model with its adapters: generates lines and scores them token by token
session/             common to every run: settings, checkpoints, logs, limits, the monitor, multiple processes
feedback/            generated and judged lines: rollouts, pairs, rounds, and their metrics
update/              one optimiser step, and the two training loops
trl/                 our critics and prompts for TRL's trainers, and TRL's trainers as learners here

Imports point down this list: student <- session <- feedback <- update <- the algorithms. Import what you need from its
own module.
"""
