"""Students and how they learn. Each algorithm is one file here; what they share is in the sub-folders.

plain.py             the loop to read first: prompts, lines, judgements, one REINFORCE update
sft.py               imitation of a teacher
ppo.py grpo.py rloo.py reinforce_pp.py expert_iteration.py     learn from a critic's scores
dpo.py brio.py brio_dpo.py self_distill.py                     learn from a judge's preferences between pairs
best_of_n.py         the control that learns nothing

student/             the language model with its adapters: writing lines, and scoring them token by token
session/             what every run has: settings, checkpoints, logs, limits, the monitor, several processes
feedback/            what was written and judged: rollouts, pairs, rounds, and the numbers that describe them
update/              how one optimiser step is taken, and the loops' two sessions
trl/                 the same critics and prompts for TRL's trainers, and those trainers as learners of ours

Imports point down this list: student <- session <- feedback <- update <- the algorithms. Import what you need from its
own module.
"""
