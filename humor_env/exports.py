"""Export of a teacher's demonstrations to Hugging Face datasets, and to Minari for offline RL.

    buffer.to_dataset().to_json("sft.jsonl")
    buffer.scored("pocket").to_minari("humor/pocket-v0")     # extra `minari`

Both store UTF-8, which has no lone surrogates: those are replaced.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any, cast

from humor_env.errors import InvalidOption, MissingExtra, PromptError
from humor_env.types import Demonstration


def to_dataset(items: Sequence[Demonstration]) -> Any:
    """One row per demonstration; `prompt` and `completion` are the columns that SFT trainers read."""
    from datasets import Dataset, Features, Value

    columns: dict[str, list[Any]] = {
        "prompt": [_storable(d.prompt.text) for d in items],
        "completion": [_storable(d.text) for d in items],
        "prompt_id": [_storable(d.prompt.id) for d in items],
        "task": [d.prompt.task for d in items],
        "split": [d.prompt.split for d in items],
        "source": [_storable(d.source) for d in items],
        "licence": [_storable(d.licence) for d in items],
        "score": [d.score for d in items],
    }
    kinds = {name: Value("float64" if name == "score" else "string") for name in columns}
    return Dataset.from_dict(columns, features=Features(kinds))


def to_minari(items: Sequence[Demonstration], dataset_id: str, data_format: str = "hdf5") -> Any:
    """One-step episodes. `data_format` "hdf5" makes two files; "arrow" makes two per episode and needs no h5py."""
    try:
        import minari
        from minari.data_collector import EpisodeBuffer

        if data_format == "hdf5":
            import h5py  # noqa: F401
    except ImportError as problem:
        raise MissingExtra(
            f"Minari cannot be used ({problem}). Install it with: pip install 'humor-env[minari]'"
        ) from problem
    if not items:
        raise PromptError("An empty buffer cannot become a Minari dataset: fill it first.")
    unscored = sum(d.score is None for d in items)
    if unscored:
        raise InvalidOption(
            f"{unscored} of {len(items)} demonstrations have no score, and an episode needs a reward: "
            "use buffer.scored(critic).to_minari(...)."
        )
    prompt_texts, lines = [_storable(d.prompt.text) for d in items], [_storable(d.text) for d in items]
    episodes = [
        EpisodeBuffer(
            id=i,
            observations=[prompt, ""],
            actions=[line],
            rewards=[float(cast(float, d.score))],
            terminations=[True],
            truncations=[False],
            infos={},
        )
        for i, (d, prompt, line) in enumerate(zip(items, prompt_texts, lines, strict=True))
    ]
    with warnings.catch_warnings():
        # Minari warns about a missing author's address and link to code.
        warnings.simplefilter("ignore", UserWarning)
        return minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            observation_space=_text_space(prompt_texts),
            action_space=_text_space(lines),
            algorithm_name=", ".join(sorted({d.source for d in items})),
            data_format=data_format,
        )


def register_minari_spaces() -> None:
    """Make Minari write and read `UnicodeText`: its `DataCollector` and `load_dataset` know stock spaces only.

    Call it once in each program that collects or loads such a dataset.
    """
    try:
        from minari.serialization import deserialize_space, serialize_space
    except ImportError as problem:
        raise MissingExtra(
            f"Minari cannot be used ({problem}). Install it with: pip install 'humor-env[minari]'"
        ) from problem

    from humor_env.spaces import UnicodeText

    def write(space: UnicodeText, to_string: bool = True) -> dict[str, Any] | str:
        description = {"type": "UnicodeText", "max_length": space.max_length, "min_length": space.min_length}
        return json.dumps(description) if to_string else description

    def read(description: dict[str, Any]) -> UnicodeText:
        return UnicodeText(description["max_length"], min_length=description["min_length"])

    serialize_space.register(UnicodeText, write)
    deserialize_space.register("UnicodeText")(read)


def _text_space(texts: Sequence[str]) -> Any:
    from gymnasium.spaces import Text

    # Sorted, because the space is stored and a set's order differs between processes.
    return Text(max(map(len, texts)) + 1, min_length=0, charset="".join(sorted(set("".join(texts)))))


def _storable(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")
