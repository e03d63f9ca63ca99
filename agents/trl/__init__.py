"""Our critics and prompts in TRL's trainers, and those trainers as learners of ours."""
