"""Language models as critics and teachers: clients, ledger, budget. Nothing heavy is imported before it is used."""

from humor_env.llm.budget import Budget
from humor_env.llm.desk import Desk
from humor_env.llm.factory import make_client
from humor_env.llm.ledger import Ledger
from humor_env.llm.protocol import Client, Reply, Request

__all__ = ["Budget", "Client", "Desk", "Ledger", "Reply", "Request", "make_client"]
