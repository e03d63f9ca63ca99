"""Where prompts, people's lines and students come from: files, data sets, and packages that carry weights."""
