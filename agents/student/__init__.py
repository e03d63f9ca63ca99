"""Who writes: one frozen language model with adapters, how it samples, and what its tokens' log-probabilities are."""

from humor_env.agents.student.student import IMITATION, POLICY, Lora, Student, ValueHead

__all__ = ["IMITATION", "POLICY", "Lora", "Student", "ValueHead"]
