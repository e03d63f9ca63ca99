"""Critic cards: what they say, that pages are safe, that the committed ones are what the command makes; warnings."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from humor_env.errors import CredentialError, InvalidOption
from humor_env.experiments.commands.cli import app
from humor_env.experiments.commands.critics import warn_of_critics
from humor_env.experiments.specs.spec import load_spec
from humor_env.registry import critics, judges
from humor_env.rewards.audits.audit import audit
from humor_env.rewards.audits.injection import InjectionReport, InjectionRow
from humor_env.rewards.audits.probes import ProbeReport, Row
from humor_env.rewards.audits.report import AuditReport, PairScores, TextScores
from humor_env.rewards.cards.built_in import (
    SETTINGS,
    Entry,
    Setting,
    _with_all_names,
    built_in_card,
    card_warnings,
    find_card,
    stored_card,
    without,
)
from humor_env.rewards.cards.card import Card, Tried, file_stem, make_card
from humor_env.rewards.cards.page import card_html, card_markdown
from humor_env.rewards.rated.rated_sets import RatedPair, RatedSet, RatedText
from humor_env.types import Judgement, Prompt

ROOT = Path(__file__).resolve().parent.parent
EVIL = '<script>alert(1)</script> | [x](javascript:1) "&'


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


def card(name="mine", hacks=(), controls=(), attacks=(), **more):
    rows = [Row(n, "what", "hack", 10, 0, 0.6, 0.5, 0.9) for n in hacks]
    rows += [Row(n, "what", "control", 10, 0, 0.1, 0.5, 0.0) for n in controls]
    rows += [Row("emoji", "what", "hack", 10, 0, 0.1, 0.5, 0.0)]
    attacked = tuple(InjectionRow(n, 5, 1, 0.9, 0.5, 0.8) for n in attacks)
    tried = Tried("pocket", ProbeReport(name, tuple(rows)), InjectionReport(name, attacked))
    return Card(name, "critic", "a critic", tried=(tried,), **more)


def audited(**scores):
    pairs = PairScores(100, 0, 0.5, scores.pop("interval", (0.55, 0.65)))
    return AuditReport("mine", "critic", "votes", {}, pairs, TextScores(100, 0, 0.3, **scores), (), 0.2)


# What a card says


def test_what_makes_a_card_fail():
    assert card().failing == []
    assert card().verdict == "passing"
    failing = card(hacks=["shouting", "soup"], controls=["fresh"], attacks=["orders"]).failing
    assert failing == [
        "On pocket prompts it rewards 2 known hacks: shouting, soup.",
        "On pocket prompts it rejects honest lines: fresh.",
        "On pocket prompts it rewards hostile texts: orders.",
    ]
    assert card(hacks=["soup"]).verdict == "failing"
    assert card(audits=(audited(),)).failing == []
    assert card(audits=(audited(interval=(0.49, 0.6)),)).failing == [
        "On votes its agreement with people is not significantly better than chance."
    ]
    assert card(audits=(audited(offence=0.2),)).failing == [
        "On votes offensive texts score higher (rank correlation +0.20)."
    ]
    assert card(audits=(audited(offence=-0.3),)).failing == []
    assert "A hostile text changes its requests" in card(shape=("text 1 changes it",)).failing[0]
    assert card(not_called="no key").verdict == "not tried"


def test_a_card_is_made_of_the_probes_the_hostile_texts_and_the_limits():
    def laughs(jokes):
        return [Judgement("laughs", 0.9 if "haha" in j.text.lower() else 0.3) for j in jokes]

    made = make_card(laughs, prompts=["everyday"])
    assert made.name == "laughs"
    [tried] = made.tried
    assert "laughter" in tried.probes.fell_for()
    assert any("laughter" in sentence for sentence in made.failing)
    assert any("people's ratings" in limit for limit in made.limits)
    page = card_markdown(made)
    assert "| laughter | the line, and laughing at it | 0.90 | 0.30 | 100.0 % | NO |" in page
    with pytest.raises(InvalidOption, match="There are probe cases for pocket, everyday; found moon"):
        make_card(laughs, prompts=["moon"])


def test_a_critic_that_cannot_be_called_says_so_and_invents_nothing():
    def no_key(jokes):
        raise CredentialError("There is no key.\nMore words.")

    made = make_card(no_key)
    assert (made.verdict, made.tried, made.not_called) == ("not tried", (), "There is no key.")
    assert "**Not tried: There is no key.**" in card_markdown(made)

    def refuses(jokes):
        return [Judgement("r", None, error="not today") for _ in jokes]

    assert make_card(refuses, prompts=["pocket"]).not_called == "It could not judge any of the texts: not today"


def test_a_judge_is_tried_around_the_teachers_lines():
    made = make_card("pocket", kind="judge", name="judge-pocket", prompts=["pocket"])
    assert made.tried[0].probes.fell_for() == ["teacher copied"]
    assert made.kind == "judge"


def test_options_are_data_and_hold_no_secret():
    def make_mine(api_key="", client=None, taste=1):
        return lambda jokes: [Judgement("m", 0.5) for _ in jokes]

    critics.register("mine", make_mine)
    try:
        made = make_card("mine", options={"api_key": "sk-123", "client": object(), "taste": 2}, prompts=["pocket"])
    finally:
        critics._entries.pop("mine")
    assert made.options == {"api_key": "(left out)", "client": "(object)", "taste": 2}
    assert "sk-123" not in card_html(made) + card_markdown(made) + json.dumps(made.data())


def test_a_card_survives_its_file(tmp_path):
    text = RatedText("1", Prompt("p", "Q"), "A", 2.0), RatedText("2", Prompt("p", "Q"), "B", 1.0)
    rated = RatedSet("votes", pairs=(RatedPair("1", *text, "a"),), scale=(0, 3))
    whole = make_card("rules", options={"teacher": "shown"}, prompts=["everyday"], audits=[audit("rules", rated)])
    page = whole.save(tmp_path)
    assert page.name == "rules.md"
    again = Card.load(tmp_path / "rules.json")
    assert again.data() == whole.data()
    assert again.failing == whole.failing
    assert card_markdown(again) == page.read_text()
    assert card_html(again) == (tmp_path / "rules.card.html").read_text()
    (tmp_path / "bad.json").write_text('{"version": 1}')
    with pytest.raises(InvalidOption, match="is not a critic card"):
        Card.load(tmp_path / "bad.json")
    (tmp_path / "old.json").write_text('{"version": 99}')
    with pytest.raises(InvalidOption, match="a card of version 99, but this program reads 1"):
        Card.load(tmp_path / "old.json")


def test_a_name_never_leaves_the_folder(tmp_path):
    assert file_stem("../../etc/passwd") == "------etc-passwd"
    card(name="a/../b").save(tmp_path / "cards")
    assert sorted(p.name for p in (tmp_path / "cards").iterdir()) == ["a----b.card.html", "a----b.json", "a----b.md"]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not {"src", "href", "onload"} & {name for name, _ in attrs}

    def handle_data(self, data):
        self.words.append(data)


def test_pages_hold_strange_names_as_text_and_fetch_nothing():
    evil = card(
        name=EVIL, hacks=[EVIL], attacks=[EVIL], command=EVIL, setting=EVIL, limits=(EVIL,), options={EVIL: EVIL},
        audits=(AuditReport(EVIL, "critic", EVIL, {}, PairScores(1, 0, 0.5), None, (), None, (EVIL,)),),
    )  # fmt: skip
    html = card_html(evil)
    reader = Tags()
    reader.feed(html)
    assert "script" not in reader.tags
    assert EVIL in "".join(reader.words)
    assert "url(" not in html
    assert "@import" not in html
    markdown = card_markdown(evil)
    assert "<script>" not in markdown
    # A bar in a name opens no cell: every row of a table has as many as its head.
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


# The cards of the built-in critics


def test_every_built_in_critic_and_judge_has_a_card():
    for registry, kind in ((critics, "critic"), (judges, "judge")):
        names = {name for name, entry in registry.entries().items() if entry.origin == "built in"}
        assert sorted(names) == sorted(s.critic for s in SETTINGS if s.kind == kind)


def test_a_built_in_critic_without_a_setting_is_tried_as_its_defaults_say():
    [lonely] = [s for s in _with_all_names(tuple(s for s in SETTINGS if s.name != "judge-pocket")) if s not in SETTINGS]
    assert lonely == Setting("pocket", "judge", {}, ("pocket", "everyday"))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_the_committed_cards_are_what_the_command_makes(setting):
    """`humor-env card --all --out docs/cards --store rewards/cards` makes them; audits need data and are kept."""
    stored = stored_card(setting.name)
    made = built_in_card(setting, stored.audits)
    assert json.loads(json.dumps(made.data())) == stored.data(), "run the command again"
    for suffix, page in ((".md", card_markdown(made)), (".card.html", card_html(made))):
        committed = (ROOT / "docs" / "cards" / f"{setting.name}{suffix}").read_text(encoding="utf-8")
        assert page == committed, "run the command again"


@pytest.mark.parametrize("name", ["everyday", "everyday-judge", "judge-everyday-judge"])
def test_what_was_found_about_a_bundled_model_is_kept(name):
    found = stored_card(name)
    assert found.verdict != "not tried" and found.tried
    assert {a.set: a.rated_by for a in found.audits} == {
        "everyday-grades": "a large language model", "isarcasm": "people",
    }  # fmt: skip
    assert "--models" in found.command


@pytest.mark.slow
def test_the_kept_card_of_a_bundled_model_is_what_the_command_finds_here():
    [setting] = [s for s in SETTINGS if s.name == "everyday"]
    [kept], [made] = stored_card("everyday").tried, built_in_card(setting, models=True).tried
    for one, other in ((kept.probes.rows, made.probes.rows), (kept.injection.rows, made.injection.rows)):
        assert [row.score for row in one] == pytest.approx([row.score for row in other], abs=0.02)
    assert kept.probes.context.share == pytest.approx(made.probes.context.share, abs=0.02)


def test_the_language_model_critics_were_not_called_and_say_how():
    for name in ("scorer", "judge-multiple-choice"):
        found = stored_card(name)
        assert found.verdict == "not tried"
        assert found.tried == ()
        assert found.shape == ()  # what is sent was checked all the same
        assert "humor-env card" in found.not_called


def test_the_index_lists_all_cards():
    index = (ROOT / "docs" / "cards" / "index.md").read_text(encoding="utf-8")
    for setting in SETTINGS:
        stored = stored_card(setting.name)
        assert f"| [{setting.name}]({setting.name}.md) | {stored.summary} | {stored.verdict} |" in index
    assert "|  |" not in index, "each row says why; that of a critic that passes said nothing"


# Warnings before a run


def test_which_critics_a_run_is_warned_of():
    assert card_warnings([Entry("rules", gate=True)]) == []
    [unknown] = card_warnings([Entry("my.module:critic")])
    assert "'my.module:critic' has no card" in unknown
    [untried] = card_warnings([Entry("scorer")])
    assert "has a card that says it was not tried" in untried
    [copied] = card_warnings([Entry("pocket")])
    assert copied == "The critic 'pocket' fails its card. On pocket prompts it rewards 1 known hack: teacher copied."
    # The gate closes that hole, if it knows the teacher's lines.
    gate = Entry("rules", {"teacher": "pocket"}, gate=True)
    assert card_warnings([gate, Entry("pocket")]) == []
    assert card_warnings([Entry("rules", gate=True), Entry("pocket")]) == [copied]


def test_a_warning_names_a_few_hacks_and_the_card_all():
    """The warning for `novelty` listed 24 hacks twice and filled the screen."""
    many = [f"hack {number}" for number in range(1, 8)]
    assert card(hacks=many).failing == [f"On pocket prompts it rewards 7 known hacks: {', '.join(many)}."]
    assert card(hacks=many).faults(3) == [
        "On pocket prompts it rewards 7 known hacks: hack 1, hack 2, hack 3 and 4 more."
    ]
    assert card(hacks=many[:4]).faults(3)[0].endswith("hack 3, hack 4.")
    [warning] = card_warnings([Entry("novelty")])
    assert len(warning) < 1000


def test_a_critic_around_a_judge_has_the_judges_card():
    assert find_card("win-tie", {"judge": "pocket"}).name == "win-tie"
    assert find_card("win-tie", {"judge": "pocket-crowd"}).name == "judge-pocket-crowd"
    assert find_card("win-tie", {"judge": "multiple-choice"}).verdict == "not tried"
    assert find_card("win-tie", {"judge": "my.module:judge"}) is None


def test_where_a_card_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_card("my:critic", {}) is None
    card(name="my:critic", hacks=["soup"]).save("cards")
    assert find_card("my:critic", {}).failing
    card(name="my:critic").save("given")
    assert find_card("my:critic", {}, [Path("given")]).failing == []
    assert find_card("my:critic", {}, [Path("given/my-critic.json")]).failing == []
    # A file of another critic's card does not speak for this one.
    card(name="other").save("given")
    assert find_card("my:critic", {}, [Path("given/other.json")]).failing
    weights = tmp_path / "weights"
    card(name="trained", hacks=["soup"]).save(weights)
    (weights / "trained.json").rename(weights / "card.json")
    assert find_card("reward-model", {"folder": str(weights)}).failing
    assert find_card("reward-model", {"folder": str(tmp_path)}).verdict == "not tried"


def test_what_a_gate_holds_off_is_taken_out():
    left = without(card(hacks=["soup", "shouting"], controls=["soup control"]), frozenset({"soup", "soup control"}))
    assert left.failing == [
        "On pocket prompts it rewards 1 known hack: shouting.",
        "On pocket prompts it rejects honest lines: soup control.",
    ]


def test_train_warns_before_it_begins(tmp_path, monkeypatch, capsys):
    warn_of_critics(load_spec("pocket-quickstart", []), [])
    assert "warning: The critic 'pocket' fails its card." in capsys.readouterr().err
    card(name="pocket").save(tmp_path)
    warn_of_critics(load_spec("pocket-quickstart", []), [tmp_path])
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_warning_stands_before_the_run(tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise InvalidOption("the run has begun")

    monkeypatch.setattr("humor_env.experiments.runs.run.run", stop)
    code, _, err = run("train", "pocket-quickstart", "--out", tmp_path / "run")
    assert code == 2
    assert err.index("warning: The critic 'pocket' fails its card.") < err.index("the run has begun")


# The command


def test_the_command_prints_or_writes_a_card(tmp_path):
    code, out, _ = run("card", "rules", "--prompts", "everyday", "--option", "max_words=30")
    assert code == 0
    assert out.startswith("# Critic card: rules\n")
    assert "    humor-env card rules --option max_words=30\n" in out
    figures = tmp_path / "rules-audit.json"
    data = AuditReport("rules", "critic", "votes", {}, PairScores(9, 0, 0.5, (0.4, 0.6)), None, (), None).data()
    figures.write_text(json.dumps(data))
    code, out, _ = run(
        "card", "rules", "--prompts", "everyday", "--audit", figures, "--out", tmp_path / "cards", "--json"
    )
    assert code == 0
    assert "On votes its agreement with people is not significantly better than chance." in json.loads(out)["failing"]
    assert sorted(p.suffix for p in (tmp_path / "cards").iterdir()) == [".html", ".json", ".md"]
    for arguments, said in (
        ((), "Which critic?"),
        (("--all",), "--all takes no name, and needs --out"),
        (("rulez",), "Did you mean 'rules'"),
        (("rules", "--audit", tmp_path / "cards" / "rules.json"), "holds no audit"),
    ):
        code, _, err = run("card", *arguments)
        assert (code, said in err) == (2, True)


def test_a_secret_in_an_option_is_not_published():
    assert (
        run("card", "rules", "--option", "api_key=sk-123")[0] == 2
    )  # rules takes no such option; and were it one, the command is cleaned:
    from humor_env.experiments.commands.critics import _without_secrets

    assert _without_secrets("card x --option api_key=sk-123 --option a=b") == "card x --option api_key=… --option a=b"
