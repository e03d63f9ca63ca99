"""humor_env for verifiers, which finds each part by this package's name:

vf-eval humor-env-v1 --env.taskset.prompts pocket --env.taskset.task.critic pocket --no-push
"""

from humor_env_v1.chat import ChatEnv, OneReply
from humor_env_v1.critic import CriticJudge
from humor_env_v1.taskset import HumorTaskset

__all__ = ["ChatEnv", "CriticJudge", "HumorTaskset", "OneReply"]
