"""Language models as critics and teachers: clients, ledger, budget. Nothing heavy is imported before its first use."""

from humor_env.llm.budget import Budget
from humor_env.llm.factory import make_client
from humor_env.llm.ledger import Ledger
from humor_env.llm.ledgered_client import LedgeredClient
from humor_env.llm.protocol import Client, Reply, Request

__all__ = ["Budget", "Client", "Ledger", "LedgeredClient", "Reply", "Request", "make_client"]
