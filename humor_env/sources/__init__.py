"""Sources of prompts, human lines and students: files, data sets, and packages with weights."""
