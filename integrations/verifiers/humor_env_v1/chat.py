"""How a student is asked: once, from this process. A joke needs no tools and no sandbox.

Without these two verifiers would give the student a shell in a sandbox of Prime's cloud.
"""

from __future__ import annotations

import verifiers.v1 as vf
from openai import AsyncOpenAI


class OneReply(vf.Harness[vf.HarnessConfig]):
    """The prompt goes out and the reply is the line."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        system, prompt = self.resolve_text_prompt(data)
        said = [("system", system), ("user", prompt)]
        messages = [{"role": role, "content": text} for role, text in said if text is not None]
        # verifiers has its own timeout for the whole rollout, and adds how to sample.
        async with AsyncOpenAI(base_url=endpoint, api_key=secret, timeout=None) as client:
            await client.chat.completions.create(model=ctx.model, messages=messages)
        return vf.ProgramResult(0, "", "")


class ChatEnvConfig(vf.SingleAgentEnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class ChatEnv(vf.Env[ChatEnvConfig]):
    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        await agents.agent.run(task)
