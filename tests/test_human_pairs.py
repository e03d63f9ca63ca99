"""Human sets of literal and humorous sentences: small files in their formats, written for these tests."""

import json
import os
from collections import Counter

import pytest

from humor_env.errors import InvalidOption, PromptError
from humor_env.experiments.runs.ingredients import check_named
from humor_env.experiments.specs.spec import parse_spec
from humor_env.prompts import load_prompts, split_by_hash
from humor_env.rewards.audits.audit import audit
from humor_env.rewards.rated.rated_sets import load_rated
from humor_env.teacher import open_lines
from humor_env.types import Judgement

HEAD = ",tweet,sarcastic,rephrase,sarcasm,irony,satire,understatement,overstatement,rhetorical_question\n"


@pytest.fixture
def write(tmp_path):
    def written(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return written


def row(*, label="Contradiction", **sides):
    return json.dumps({"id": 1, **sides, "label": label, "explanation": "Rain is wet."})


def test_isarcasm(write):
    """A quoted comma and a line break; a row that is not sarcastic; a rephrase of one word; one that is the tweet."""
    rows = (
        '0,"Lovely, rain\nagain ",1,It is raining again. ,1,0,0,0,0,0\n'
        "1,I had soup,0,,,,,,,\n"
        "2,Sure I did,1,No.,1,0,0,0,0,0\n"
        "3,it is  Late now,1,It is late now,1,0,0,0,0,0\n"
        "4,Best bus ever,1,The bus was late.,1,0,0,0,0,0\n"
    )
    name = "isarcasm:" + write("train.csv", HEAD + rows)
    prompts = load_prompts(name)
    assert [p.text for p in prompts] == ["It is raining again.", "The bus was late."]
    lines = open_lines(name)
    assert [lines.lines_for(p.id) for p in prompts] == [["Lovely, rain again"], ["Best bus ever"]]
    assert [(d.source, d.prompt.split) for d in lines] == [("isarcasm", split_by_hash(p.text)) for p in prompts]


def test_an_empty_mark_in_the_first_row_is_no_missing_column(write):
    """The whole file was refused: "no column 'sarcastic', so this is not a file of isarcasm"."""
    rows = "0,Half a row,,,,,,,,\n1,Best bus ever,1,The bus was late.,1,0,0,0,0,0\n"
    assert [p.text for p in load_prompts("isarcasm:" + write("train.csv", HEAD + rows))] == ["The bus was late."]
    with pytest.raises(PromptError, match="line 2: no column 'sarcastic'"):
        load_prompts("isarcasm:" + write("other.csv", "text,score\na,1\nb,2\n"))


def test_isarcasm_as_pairs_that_a_critic_is_asked_about(write):
    """Is the tweet found better than the sentence that says the same plainly? By hand: of one, and a tie is half."""
    rows = (
        "0,Best bus ever,1,The bus was late.,1,0,0,0,0,0\n"
        "1,I had soup,0,,,,,,,\n"
        "2,It rains,1,It is raining again.,1,0,0,0,0,0\n"
        "3,What a day,1,The day was bad.,1,0,0,0,0,0\n"
    )
    rated = load_rated("isarcasm", write("train.csv", HEAD + rows))
    assert [(p.a.text, p.b.text, p.a.prompt.text, p.label) for p in rated.pairs] == [
        ("Best bus ever", "The bus was late.", "The bus was late.", "a"),
        ("It rains", "It is raining again.", "It is raining again.", "a"),
        ("What a day", "The day was bad.", "The day was bad.", "a"),
    ]
    scores = {"Best bus ever": 0.9, "The bus was late.": 0.2, "It rains": 0.1, "It is raining again.": 0.3}

    def critic(jokes):
        return [Judgement("by hand", scores.get(joke.text, 0.5)) for joke in jokes]

    report = audit(critic, rated, context=0, surprisal=None)
    assert (report.pairs.count, report.pairs.accuracy) == (3, 0.5)


def test_flute(write):
    """Only contradictions are sarcastic; one premise, spelled twice, is one prompt with two lines."""
    rows = (
        row(premise="My tea is cold.", hypothesis="I love my tea as cold as the sea."),
        row(premise="My tea is cold.", hypothesis="My tea has gone cold.", label="Entailment"),
        row(hypothesis="Cold tea, my favorite.", premise="my tea is  cold."),
        row(premise="The rain ruined our fair.", hypothesis="What a day for a fair."),
    )
    name = "flute:" + write("sarcasm.jsonl", "\n".join(rows))
    prompts = load_prompts(name)
    assert [p.text for p in prompts] == ["My tea is cold.", "The rain ruined our fair."]
    lines = open_lines(name)
    assert lines.lines_for(prompts.prompts[0].id) == ["I love my tea as cold as the sea.", "Cold tea, my favorite."]
    assert len({p.id for p in prompts} | {d.prompt.id for d in lines}) == 2


def test_humicroedit(write):
    """Two places of one headline are two prompts of one split; what people found dull is no teacher line."""
    rows = (
        "1,The <Senate/> votes on a budget,gerbil,33222,2.4\n"
        "2,The Senate votes on a <budget/>,pizza,22111,1.4\n"
        "3,The Senate votes on a <budget/>,law,10000,0.2\n"
        "4,The Senate votes on a <budget/>,burrito,21111,1.2\n"
        "5,Police find the <mayor/> asleep,money,00000,0\n"
    )
    name = "humicroedit:" + write("task-1.csv", "id,original,edit,grades,meanGrade\n" + rows)
    prompts, lines = load_prompts(name), open_lines(name)
    assert [p.text for p in prompts] == ["The [Senate] votes on a budget", "The Senate votes on a [budget]"]
    assert [lines.lines_for(p.id) for p in prompts] == [["gerbil"], ["pizza", "burrito"]]
    assert {p.split for p in prompts} == {split_by_hash("The Senate votes on a budget")}


def test_what_is_no_file_of_theirs_is_said(write):
    with pytest.raises(PromptError, match=r"is a \.csv file, as in 'isarcasm:train\.csv'; found 'x\.jsonl'"):
        load_prompts("isarcasm:x.jsonl")
    with pytest.raises(PromptError, match="cannot be read"):
        open_lines("flute:none.jsonl")
    with pytest.raises(PromptError, match=r"line 2: no column 'sarcastic', so this is not a file of isarcasm"):
        load_prompts("isarcasm:" + write("other.csv", "text,label\nA,1\n"))
    with pytest.raises(PromptError, match="line 2: 'rephrase' must hold a non-empty text, found None"):
        load_prompts("isarcasm:" + write("test.csv", HEAD + "0,Lovely,1,,1,0,0,0,0,0\n"))
    with pytest.raises(PromptError, match=r"no row of flute has both sides \(label is Contradiction\)"):
        load_prompts("flute:" + write("e.jsonl", row(premise="It is late now.", hypothesis="x", label="Entailment")))
    name = "flute:" + write("s.jsonl", row(premise="It is late now.", hypothesis="How early."))
    with pytest.raises(InvalidOption, match="take no options, found limit"):
        load_prompts(name, limit=3)


@pytest.mark.parametrize(
    ("name", "prompts", "lines"), [("isarcasm", 859, 859), ("flute", 1223, 2212), ("humicroedit", 2841, 3553)]
)
def test_their_own_files(name, prompts, lines):
    """HUMOR_ENV_ISARCASM and HUMOR_ENV_FLUTE name train.En.csv and sarcasm_train.jsonl; HUMOR_ENV_HUMICROEDIT names the
    folder of task-1_train.csv, as for the audit's test."""
    path = os.environ.get(f"HUMOR_ENV_{name.upper()}")
    if path is None:
        pytest.skip(f"HUMOR_ENV_{name.upper()} names no file")
    if name == "humicroedit":
        path = os.path.join(path, "task-1_train.csv")
    found, buffer = load_prompts(f"{name}:{path}"), open_lines(f"{name}:{path}")
    assert (len(found), len(buffer)) == (prompts, lines)
    sizes = Counter(p.split for p in found)
    assert all(0.07 < sizes[split] / len(found) < 0.13 for split in ("dev", "test"))
    assert all(buffer.lines_for(p.id) for p in found)


def test_a_spec_may_name_them(write):
    """A name of this kind ends like a file's, so a run looked for a file called "flute:…" and refused to begin."""
    spec = """
        seeds = [0]
        [student]
        model = "pocket:causal"
        [env]
        prompts = "NAME"
        [teacher]
        lines = "NAME"
        [learner]
        name = "sft"
        [[eval.critic]]
        critic = "rules"
    """
    there = "flute:" + write("s.jsonl", row(premise="It is late now.", hypothesis="How early."))
    check_named(parse_spec(spec.replace("NAME", there)))
    with pytest.raises(InvalidOption, match=r"There is no file 'none\.jsonl', which env\.prompts names"):
        check_named(parse_spec(spec.replace("NAME", "flute:none.jsonl")))
