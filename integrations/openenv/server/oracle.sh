#!/bin/sh
# The best line that is known for a prompt: the pocket teacher's. Prompt id in, line out.
exec python -c '
import sys
from humor_env.teacher import pocket_lines
print(pocket_lines(1).lines_for(sys.argv[1])[0])
' "$1"
