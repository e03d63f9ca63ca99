"""The pages that go to the Hub with a student or a file of lines, made from the run's files.

    text = model_card(run, seed, repo="owner/name", base="owner/base", merged=False)

Nothing is guessed: what a run does not record is stated as unknown, so that no field is empty.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from humor_env import __version__
from humor_env.experiments.runs.run_folder import read_json, read_results
from humor_env.experiments.sharing.publishable import publishable
from humor_env.experiments.specs.spec import Spec, load_spec
from humor_env.rewards.cards.built_in import find_card
from humor_env.shared.json_lines import read_lines
from humor_env.shared.markdown import table_cell

OURS = ("pocket", "everyday", "oneliners")
OWN_DATA = "CC-BY-4.0, written by the authors of humor_env"
UNKNOWN = "not stated by its source: ask its author before you use it"
SHOWN = 9


def model_card(run: Path, seed: Path, *, repo: str, base: str | None, merged: bool) -> str:
    """The README of a pushed student. `base` is the Hub name of its base model; None if the base is uploaded too."""
    spec, results, record = (
        load_spec(run / "spec.toml"),
        read_results(seed / "results.json"),
        read_json(run / "run.json"),
    )
    learner = spec.learner_name
    header = [
        "---",
        *([f"base_model: {base}"] if base else []),
        "library_name: peft",
        "license: other",
        "license_name: that-of-the-base-model",
        "language: en",
        "tags:",
        *(f"- {tag}" for tag in ("humor", "humor_env", "lora", learner.replace(":", "-"))),
        "---",
    ]
    parts = [
        "\n".join(header),
        f"# {repo.rpartition('/')[2]}",
        f"A small language model that rewrites literal sentences as jokes, trained by `{learner}` with "
        f"[humor_env](https://pypi.org/project/humor-env/) {__version__}; seed {results_seed(seed)}, "
        f"{results['steps'] or 0} steps, started {record['started']}.",
        "## Use",
        _use(repo, base, merged),
        "## Base and data",
        _table(("what", "which", "licence"), _sources(spec, base, run)),
        "## Critics",
        "\n".join(_critics(spec)),
        "## Held-out results",
        f"Mean score on the split `{spec.eval.split}`, with the 95 % bootstrap interval over prompts. A score is a "
        "critic's opinion, not a person's.",
        _table(("system", "score", "interval", "lines", "not judged"), _results(results["stages"])),
        "## Sample lines",
        f"Held-out lines after training, evenly spaced from the lowest to the highest score ({SHOWN} at most).",
        _table(("sentence", "line", "score"), _samples(seed, learner)),
        "## Known hacks",
        "\n".join(_hacks(spec)),
        "## Commands",
        "```text\n"
        f"humor-env pull {repo} student\n"
        "humor-env train student/run/spec.toml          # repeats the run\n"
        "humor-env evaluate student --critic pocket     # measures it again\n"
        "```",
    ]
    return "\n\n".join(parts) + "\n"


def results_seed(seed: Path) -> str:
    return seed.name.removeprefix("seed-")


def _use(repo: str, base: str | None, merged: bool) -> str:
    source = f'"{base}"' if base else f'"{repo}", subfolder="base"'
    code = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({source})    # a seq2seq base: AutoModelForSeq2SeqLM",
        f'model = PeftModel.from_pretrained(model, "{repo}", subfolder="policy")',
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
    ]
    if merged:
        code += ["", f'whole = AutoModelForCausalLM.from_pretrained("{repo}", subfolder="merged")    # without PEFT']
    return "```python\n" + "\n".join(code) + "\n```"


def _sources(spec: Spec, base: str | None, run: Path) -> list[tuple[str, str, str]]:
    model = base or _name(spec.student.model)
    of_base = OWN_DATA if spec.student.model.startswith("pocket:") else "the base model's own, see its page"
    prompts = spec.env.prompts or "pocket"
    rows = [("base model", model, of_base), ("sentences", _name(prompts), _licence(prompts))]
    if spec.teacher is not None:
        lines = spec.teacher.lines
        rows.append(("teacher's lines", _name(lines), _licence(lines)))
    return rows


def _name(what: str) -> str:
    """A file's name without its folder or server."""
    return Path(publishable(what)).name


def _licence(what: str) -> str:
    """The licence of a set: ours are known, and a file may state it line by line."""
    if what in OURS:
        return OWN_DATA
    path = Path(what)
    if path.is_file():
        licences: Counter[str] = Counter()
        for line in read_lines(path, errors="replace"):
            try:
                licences[str(json.loads(line).get("licence") or "unknown")] += 1
            except (ValueError, AttributeError):
                continue
        names = [name for name, _ in licences.most_common() if name != "unknown"]
        if names:
            return ", ".join(names)
    return UNKNOWN


def _critics(spec: Spec) -> list[str]:
    sentences = []
    for what, critics in (("gave the reward", spec.critic), ("measured the results", spec.eval.critic or spec.critic)):
        sentences += [f"- `{c.critic}` {what}{_options(c.options)}: {_verdict(c.critic, c.options)}" for c in critics]
    return sentences


def _options(options: Mapping[str, Any]) -> str:
    """Plain values only: an option may be a path or an address of somebody's machine."""
    plain_values = {k: v for k, v in options.items() if isinstance(v, (bool, int, float))}
    return f" ({', '.join(f'{k} = {v}' for k, v in plain_values.items())})" if plain_values else ""


def _verdict(critic: str, options: Mapping[str, Any]) -> str:
    card = find_card(critic, options)
    if card is None:
        return "it has no card, so it was not tested on known hacks or compared with people."
    sentences = {
        "not tried": "its card says that it was not tried.",
        "passing": "its card: it rewards none of the known hacks that were tried.",
    }
    return sentences.get(card.verdict, f"its card finds {len(card.failing)} faults, listed under known hacks.")


def _hacks(spec: Spec) -> list[str]:
    """The known hacks of the critics that gave the reward, from their cards."""
    sentences = []
    for critic in spec.critic or spec.eval.critic:
        card = find_card(critic.critic, critic.options)
        sentences += [f"- `{critic.critic}`: {sentence}" for sentence in (card.failing if card else ())]
    return list(dict.fromkeys(sentences)) or [
        "None is known for the critics it was trained with. Without a card this says little: read the lines above."
    ]


def _results(stages: Mapping[str, Mapping[str, float | None]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, numbers in stages.items():
        low, high = numbers.get("low"), numbers.get("high")
        interval = "too few lines for one" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
        score = numbers.get("score")
        score_text = "nothing was judged" if score is None else f"{score:.3f}"
        rows.append(
            (name, score_text, interval, f"{numbers.get('count') or 0:.0f}", f"{numbers.get('failures') or 0:.0f}")
        )
    return rows or [("none", "it was not measured", "none", "0", "0")]


def _samples(seed: Path, learner: str) -> list[tuple[str, ...]]:
    path = seed / f"evaluation-{learner}.jsonl"
    lines = [json.loads(line) for line in read_lines(path)] if path.is_file() else []
    lines = sorted((line for line in lines if line["score"] is not None), key=lambda line: line["score"])
    if len(lines) > SHOWN:
        lines = [lines[round(i * (len(lines) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
    rows: list[tuple[str, ...]] = [
        (line["prompt"], line["text"] or "(nothing)", f"{line['score']:.3f}") for line in lines
    ]
    return rows or [("none", "no held-out line was judged", "none")]


def dataset_card(file: Path, repo: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The README of a file of lines: a teacher's buffer, or lines that a critic judged."""
    columns = Counter(key for row in rows for key in row)
    values = {
        name: Counter(str(row[name]) for row in rows if row.get(name)) for name in ("source", "critic", "licence")
    }
    licence = ", ".join(values["licence"]) or UNKNOWN
    facts = [
        ("rows", str(len(rows))),
        ("columns", ", ".join(columns)),
        ("written by", ", ".join(values["source"]) or "a student of humor_env or whoever the file does not name"),
        ("judged by", ", ".join(values["critic"]) or "nobody"),
        ("licence", licence),
    ]
    header = ["---", "license: other", "license_name: see-below", "language: en", "tags:", "- humor", "- humor_env"]
    header += ["configs:", "- config_name: default", "  data_files: data.jsonl", "---"]
    return (
        "\n\n".join(
            [
                "\n".join(header),
                f"# {repo.rpartition('/')[2]}",
                f"Humorous lines with the sentences they were made from, one a row, kept by humor_env {__version__}.",
                _table(("what", "is"), facts),
                f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repo}", split="train")\n```',
            ]
        )
        + "\n"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(table_cell(cell, 300) for cell in row)} |" for row in body)
