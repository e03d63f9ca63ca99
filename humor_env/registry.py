"""Registries of critics, judges, prompt sets, learners, teachers and language models, open to additions.

    registry.critics.make("pocket")                         # built in, or installed through an entry point
    registry.critics.make("my_package.critics:Dry", taste=2)  # any importable object, named explicitly
    registry.critics.make(lambda jokes: [...])               # a live object passes through
    registry.critics.register("dry", "my_package.critics:Dry", "loves understatement")

One rule applies to every target: a class, or a function whose name starts with `make_`, is called with the options;
anything else *is* the object and takes no options. Code is only imported for a name that is registered, installed as an
entry point, or written as `package.module:name` by the user.

A `package.module:name` may come from a stranger's file, so not every importable object is accepted:
`subprocess:Popen` as a critic would run a command before anyone noticed that it judges nothing. The object must be
defined in a module that imports something from humor_env (the standard library and other packages do not), and a class
must have the method of its kind. Importing the module still runs the module's own code.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from humor_env.errors import InvalidOption, UnknownName, did_you_mean, unknown_name


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name: its target, and a one-line summary."""

    name: str
    target: Any
    summary: str
    origin: str


class Registry:
    """Names of one kind. Built-in targets are strings, so that listing them imports nothing.

    Objects of this kind have at least one of `methods`; empty if they are functions.
    """

    def __init__(
        self, kind: str, group: str, builtin: Mapping[str, tuple[str, str]], methods: tuple[str, ...] = ()
    ) -> None:
        self.kind = kind
        self.group = group
        self.methods = methods
        self._entries = {name: Entry(name, target, summary, "built in") for name, (target, summary) in builtin.items()}

    def register(self, name: str, target: Any, summary: str = "") -> None:
        """Add a name. `target` is an object or a string `package.module:name`; registering twice replaces."""
        if not name or ":" in name or any(c.isspace() for c in name):
            raise InvalidOption(f"A {self.kind}'s name has no colon and no space; found {name!r}.")
        self._entries[name] = Entry(name, target, summary, "registered")

    def entries(self) -> dict[str, Entry]:
        """All names: built-in and registered ones first, then those of installed distributions."""
        entries = dict(self._entries)
        for point in entry_points(group=self.group):
            if point.name not in entries:
                entries[point.name] = Entry(point.name, point, "", _origin(point))
        return entries

    def names(self) -> list[str]:
        return sorted(self.entries())

    def summary(self, name: str) -> str:
        """A one-line summary of a name; for an installed one the first line of its docstring, which imports it."""
        entry = self.entries()[name]
        if entry.summary or not isinstance(entry.target, EntryPoint):
            return entry.summary
        try:
            target = entry.target.load()
        except Exception as problem:  # one broken distribution must not hide the others
            return f"cannot be imported ({type(problem).__name__}: {problem})"
        documented = target if inspect.isclass(target) or inspect.isroutine(target) else type(target)
        # Not inspect.getdoc, which gives a class without a docstring its parent's.
        return (documented.__doc__ or "").strip().partition("\n")[0].rstrip(".")

    def resolve(self, name: str) -> Any:
        """The object (often a class) behind a name or a `package.module:name`."""
        entry = self._entries.get(name) or self.entries().get(name)
        if entry is None:
            if ":" in name:
                self._refuse_standard_library(name)
                target = _import_object(self.kind, name)
                self._check_meant(name, target)
                return target
            raise unknown_name(self.kind, name, self.names(), "For your own, give package.module:name.")
        if isinstance(entry.target, EntryPoint):
            return entry.target.load()
        if isinstance(entry.target, str):
            return _import_object(self.kind, entry.target)
        return entry.target

    def make(self, what: Any, **options: Any) -> Any:
        """The object for a name, a `package.module:name`, or a live object (which takes no options)."""
        if not isinstance(what, str):
            if options:
                raise InvalidOption(
                    f"A live {self.kind} takes no options ({', '.join(options)}): build it with them instead."
                )
            return what
        target = self.resolve(what)
        if not _is_factory(target):
            if options:
                raise InvalidOption(
                    f"The {self.kind} '{what}' is an object, not a class or a make_… function: "
                    f"it takes no options, but {', '.join(options)} were given."
                )
            return target
        try:
            inspect.signature(target).bind(**options)
        except TypeError as problem:
            accepted = [p for p in inspect.signature(target).parameters if p not in ("args", "kwargs")]
            raise InvalidOption(
                f"The {self.kind} '{what}' {_wrong_option(target, options, accepted) or f'cannot be made: {problem}.'} "
                f"It accepts: {', '.join(accepted) or 'no options'}."
            ) from None
        return target(**options)

    def _refuse_standard_library(self, path: str) -> None:
        # Before importing: some modules of the standard library have side effects on import.
        if root := standard_library_module(path):
            raise UnknownName(
                f"'{path}' is not a {self.kind}: '{root}' is part of Python's standard library, and a {self.kind} is "
                "written for humor_env."
            )

    def _check_meant(self, path: str, target: Any) -> None:
        """Refuse a target not written as an object of this kind, before calling any of it."""
        if not callable(target):  # such as a list of prompts: it runs nothing, and its user checks its type
            return
        home = _home(target)
        if not _knows_us(home):
            raise UnknownName(
                f"'{path}' is not a {self.kind}: it is defined in '{home}', which imports nothing from humor_env. If "
                "it is yours, write `import humor_env` at the top of that module."
            )
        if inspect.isclass(target) and self.methods and not _has_one(target, self.methods):
            method_names = " or ".join(f"{method}()" for method in self.methods)
            raise UnknownName(f"'{path}' is not a {self.kind}: the class {target.__name__} has no {method_names}.")


def _home(target: Any) -> str:
    """The module that defines an object, or for an instance its class."""
    while isinstance(target, functools.partial):
        target = target.func
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        target = type(target)
    return getattr(target, "__module__", None) or "builtins"


def _knows_us(module: str) -> bool:
    """Whether a module belongs to humor_env or has imported something from it."""
    package = __name__.partition(".")[0]

    def ours(name: object) -> bool:
        return isinstance(name, str) and name.partition(".")[0] == package

    def is_ours(value: Any) -> bool:
        return ours(value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None))

    return ours(module) or (module in sys.modules and any(map(is_ours, vars(sys.modules[module]).values())))


def _has_one(target: type, methods: tuple[str, ...]) -> bool:
    # Not getattr: every class has a `__call__`, its constructor.
    return any(method in vars(cls) for cls in target.__mro__ for method in methods)


def _is_factory(target: Any) -> bool:
    return inspect.isclass(target) or (inspect.isroutine(target) and target.__name__.startswith("make_"))


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an installed distribution"


def standard_library_module(path: str) -> str:
    """The module of the standard library that `package.module:name` is in; "" for any other package."""
    root = path.partition(":")[0].partition(".")[0]
    return root if root in sys.stdlib_module_names else ""


def _import_object(kind: str, path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UnknownName(f"Write your own {kind} as package.module:name; found '{path}'.")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name and (module_name == problem.name or module_name.startswith(problem.name + ".")):
            raise UnknownName(
                f"The {kind} '{path}' names the module '{module_name}', which Python cannot find. "
                "Is it installed, or is its folder on PYTHONPATH?"
            ) from None
        raise
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [n for n in vars(target) if not n.startswith("_")]
            raise unknown_name(f"object in {module_name}", attribute, public)
        target = getattr(target, part)
    return target


def _wrong_option(target: Any, options: Mapping[str, Any], accepted: Sequence[str]) -> str:
    """The first option that is not known, or else the first that is missing."""
    for name in options:
        if name not in accepted:
            return f"has no option '{name}'.{did_you_mean(name, accepted)}"
    parameters = inspect.signature(target).parameters
    needed = (name for name in accepted if parameters[name].default is inspect.Parameter.empty)
    missing = next((name for name in needed if name not in options), None)
    return f"needs the option '{missing}'." if missing else ""


critics = Registry(
    "critic",
    "humor_env.critics",
    {
        "pocket": ("humor_env.rewards.pocket:PocketCritic", "the pocket world's exact judge, by parsing"),
        "rules": ("humor_env.rewards.rules:RulesCritic", "gates without a model: form, length, repetition, copying"),
        "scorer": ("humor_env.rewards.scorer:ScorerCritic", "a language model scores each joke on a rubric"),
        "win-tie": ("humor_env.rewards.win_tie:WinTieCritic", "a judge compares each joke with the teacher's line"),
        "tournament": ("humor_env.rewards.tournament:TournamentCritic", "siblings compete; Bradley-Terry strengths"),
        "reward-model": ("humor_env.rewards.reward_model:RewardModelCritic", "a trained scoring head, from a folder"),
        "diversity": (
            "humor_env.rewards.diversity:DiversityCritic",
            "how much a line differs from its siblings and an archive",
        ),
        "everyday": (
            "humor_env.rewards.everyday:EverydayCritic",
            "for real sentences: funny, with the meaning kept; to train on",
        ),
        "everyday-judge": (
            "humor_env.rewards.everyday:EverydayJudgeCritic",
            "the same by a held-out model; to evaluate with, not to train on",
        ),
        "fill-in": (
            "humor_env.rewards.fill_in:FillInCritic",
            "for prompts with a word in [brackets]: another critic scores the sentence with the line in its place",
        ),
        "lift": ("humor_env.rewards.lift:LiftCritic", "another critic's score minus that with other prompts"),
        "fit": (
            "humor_env.rewards.likelihood.fit:FitCritic",
            "how much likelier a language model finds a line with its prompt than without",
        ),
        "novelty": (
            "humor_env.rewards.novelty:NoveltyCritic",
            "lowers the score of what the student keeps writing; it has a memory",
        ),
        "mix": ("humor_env.rewards.mix:MixCritic", "a weighted sum of critics with gates"),
    },
    ("__call__",),
)

judges = Registry(
    "judge",
    "humor_env.judges",
    {
        "pocket": ("humor_env.rewards.pocket:PocketJudge", "the pocket world's exact judge on pairs"),
        "pocket-crowd": ("humor_env.rewards.pocket:CrowdJudge", "the exact judge with noise, position and length bias"),
        "multiple-choice": ("humor_env.rewards.multiple_choice:MultipleChoiceJudge", "a language model picks 1 or 2"),
        "jury": ("humor_env.rewards.jury:Jury", "several judges: their mean and their disagreement"),
        "everyday-judge": (
            "humor_env.rewards.everyday:EverydayJudge",
            "the held-out critic of real sentences, on pairs",
        ),
        "reward-model": ("humor_env.rewards.reward_model:RewardModelJudge", "a trained scoring head on pairs"),
        "cheap-first": (
            "humor_env.rewards.cheap_first:CheapFirstJudge",
            "a cheap judge, and a paid one where it is unsure",
        ),
    },
    ("__call__",),
)

prompts = Registry(
    "prompt set",
    "humor_env.prompts",
    {
        "pocket": ("humor_env.prompts:make_pocket", "literal sentences of the pocket world"),
        "pocket-oneliner": ("humor_env.prompts:make_pocket_oneliner", "topics, headlines and word pairs, pocket world"),
        "everyday": ("humor_env.prompts:make_everyday", "everyday sentences, written for this project"),
        "everyday-oneliner": ("humor_env.prompts:make_everyday_oneliner", "everyday topics, headlines, word pairs"),
    },
    ("__iter__",),
)

learners = Registry(
    "learner",
    "humor_env.learners",
    {
        "sft": ("humor_env.agents.sft:train", "imitation: cross-entropy on the teacher's lines"),
        "sd": ("humor_env.agents.self_distill:train", "imitation of the student's own lines that a judge preferred"),
        "brio": ("humor_env.agents.brio:train", "contrastive ranking of pairs, with imitation"),
        "dpo": ("humor_env.agents.dpo:train", "direct preference optimisation against the frozen imitation; IPO"),
        "brio-dpo": (
            "humor_env.agents.brio_dpo:train",
            "BRIO on pairs of teacher lines, then DPO on the student's own",
        ),
        "ppo": ("humor_env.agents.ppo:train", "proximal policy optimisation with a value head"),
        "grpo": ("humor_env.agents.grpo:train", "group-relative: siblings are each other's baseline"),
        "rloo": ("humor_env.agents.rloo:train", "REINFORCE with a leave-one-out baseline"),
        "reinforce++": ("humor_env.agents.reinforce_pp:train", "clipped REINFORCE, advantages whitened over the batch"),
        "expert-iteration": (
            "humor_env.agents.expert_iteration:train",
            "write several lines, imitate the best, repeat",
        ),
        "best-of-n": ("humor_env.agents.best_of_n:train", "no learning: several lines, the critic picks one"),
        "trl-sft": ("humor_env.agents.trl.peers:train_sft", "TRL's SFTTrainer on the teacher's lines"),
        "trl-dpo": ("humor_env.agents.trl.peers:train_dpo", "TRL's DPOTrainer on one round of student pairs"),
        "trl-grpo": ("humor_env.agents.trl.peers:train_grpo", "TRL's GRPOTrainer with a critic as its reward"),
        "trl-rloo": ("humor_env.agents.trl.peers:train_rloo", "TRL's RLOOTrainer with a critic as its reward"),
    },
)

teachers = Registry(
    "teacher",
    "humor_env.teachers",
    {"pocket": ("humor_env.pocket.teacher:PocketTeacher", "the pocket world's own")},
    ("lines", "lines_batch", "__call__"),
)

# Services ("anthropic:MODEL", "openai:MODEL@URL", "local:FOLDER") are read by `humor_env.llm.factory.make_client`.
clients = Registry("language model", "humor_env.clients", {}, ("__call__",))
