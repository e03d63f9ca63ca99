"""The app that openenv.yaml names: the pocket world, judged exactly.

uvicorn server.app:app --host 127.0.0.1 --port 8000      # or, from anywhere: humor-env serve
"""

from humor_env.episodes.episode import Task
from humor_env.experiments.sharing.openenv import make_app

app = make_app(Task("pocket", "pocket"), sessions=64)
