"""Generation by a server that holds the same weights, instead of by this process.

    backend = Server("http://127.0.0.1:8000", student, base="Qwen/Qwen3-0.6B", adapters="run/adapters")
    out = backend.generate(observations, sampling, uniforms)
    backend.refresh()          # after an update: the next lines come from the new policy
    backend.close()

Any server works that offers OpenAI's completions API with token ids and loads LoRA adapters at run time (vLLM started
with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1). Its lines are scored again here, so that a numerical
difference shows up as `update/first_mismatch` and not as a wrong step.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from humor_env.agents.student.sampling import Generation, Sampling
from humor_env.agents.student.settings import ServerSettings
from humor_env.agents.student.student import POLICY, Student
from humor_env.errors import StudentError
from humor_env.llm.clients.failed_calls import redact
from humor_env.shared.json_lines import NOT_JSON

LARGEST_ANSWER = 64 * 2**20
"""Bytes. Far above the tokens of one line."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Reports a redirect as a failure: urllib would send the key along to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


_open = urllib.request.build_opener(_NoRedirects).open


class Server:
    """An OpenAI-compatible server. Each row's seed comes from `uniforms`, so a run is as reproducible as the server."""

    exact = False

    def __init__(
        self,
        url: str,
        student: Student,
        *,
        base: str,
        adapters: str | Path,
        key: str | None = None,
        timeout: float = ServerSettings.timeout,
        concurrency: int = ServerSettings.concurrency,
    ) -> None:
        if student.is_seq2seq:
            raise StudentError("A completions server serves causal models; this student is an encoder-decoder.")
        if not url.startswith(("http://", "https://")):  # urllib would also read files
            raise StudentError(f"'{url}' is not an address of a server. Expected one like http://127.0.0.1:8000.")
        self.url, self.student, self.base = url.rstrip("/"), student, base
        self.folder, self.timeout, self.concurrency = Path(adapters), timeout, concurrency
        self._key = key
        self._version = 0
        self._loaded: dict[str, str] = {}  # the server's name for each adapter
        self.refresh()

    def generate(
        self,
        observations: Sequence[str],
        sampling: Sampling,
        uniforms: Tensor,
        *,
        adapter: str | None = POLICY,
        values: bool = False,
    ) -> Generation:
        student = self.student
        if adapter is not None and adapter not in self._loaded:
            self._load(adapter)
        model = self.base if adapter is None else self._loaded[adapter]
        prompts = [student.encode_prompt(o) for o in observations]
        bodies = [
            {
                "model": model,
                "prompt": prompt,
                "max_tokens": min(sampling.max_new_tokens, max(1, student.context - len(prompt))),
                **sampling.how(),
                "top_k": sampling.top_k or -1,  # -1 means all
                "seed": int(float(row[0]) * (1 << 24)),  # all bits of a single-precision number
                "return_token_ids": True,
                "stop_token_ids": list(student.end_tokens),
            }
            for prompt, row in zip(prompts, uniforms, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            choices = list(pool.map(self._complete, bodies))
        responses, stops = [], []
        for choice in choices:
            ids = choice.get("token_ids")
            if ids is None:
                raise StudentError(
                    f"The server at {self.url} returned text without token ids: it must support `return_token_ids`, "
                    "because text does not tell which tokens were chosen."
                )
            ended = choice.get("finish_reason") == "stop"
            # Servers may omit the end token, but the student did choose it.
            ids = [int(i) for i in ids]
            if ended and (not ids or ids[-1] not in student.end_tokens):
                ids.append(student.end_token)
            responses.append(ids or [student.end_token])
            stops.append("end" if ended or not ids else "length")
        texts = [student.decode(r[:-1] if stop == "end" else r) for r, stop in zip(responses, stops, strict=True)]
        width = max(map(len, responses), default=0)
        blank = torch.zeros(len(responses), width)
        return Generation(prompts, responses, texts, stops, blank, blank.clone() if values else None)

    def refresh(self) -> None:
        """Make the server load the current policy and drop the previous one."""
        before = self._loaded.get(POLICY)
        self._load(POLICY)
        if before is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": before})

    def _load(self, adapter: str) -> None:
        """Save the adapter where the server can read it, and make the server load it."""
        self._version += 1
        name = f"{adapter}-{self._version}"
        path = self.folder / name
        self.student.model.save_pretrained(str(path), selected_adapters=[adapter], save_embedding_layers=False)
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str((path / adapter).resolve())})
        self._loaded[adapter] = name

    def close(self) -> None:
        while self._loaded:
            self._post("/v1/unload_lora_adapter", {"lora_name": self._loaded.popitem()[1]})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with _open(request, timeout=self.timeout) as reply:
                text = reply.read(LARGEST_ANSWER).decode()
                if reply.length:  # cut off by the server, or by us
                    raise http.client.IncompleteRead(b"", reply.length)
        except urllib.error.HTTPError as problem:
            why = redact(problem.read(LARGEST_ANSWER).decode(errors="replace"), self._key)[:300]
            raise StudentError(f"The server at {self.url} refused {path} with status {problem.code}: {why}") from None
        except (OSError, http.client.HTTPException, UnicodeDecodeError) as problem:
            raise StudentError(f"The server at {self.url} does not answer {path}: {problem}.") from None
        if not text.lstrip().startswith("{"):
            return {}
        try:
            return dict(json.loads(text))
        except NOT_JSON:
            raise StudentError(f"The server at {self.url} answered {path} with broken JSON: {text[:100]!r}.") from None

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        reply = self._post("/v1/completions", body)
        if not reply.get("choices"):
            raise StudentError(
                f"The server at {self.url} answered /v1/completions without a completion. Is it an OpenAI-compatible "
                "server, not a proxy's page?"
            )
        return dict(reply["choices"][0])
