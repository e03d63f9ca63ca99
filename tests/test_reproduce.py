"""The reproduction of a paper: its figures, rules, data and critics, and the whole path with small stand-ins."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from conftest import ROOT
from fake_messages_server import running
from typer.testing import CliRunner

from humor_env.errors import CheckpointError, HumorEnvError, InvalidOption, PromptError
from humor_env.experiments.commands.cli import app
from humor_env.experiments.reproduction import cells, claims, numbers, paper, sentences, spec, tables
from humor_env.experiments.reproduction import reproduce as entry
from humor_env.experiments.reproduction.estimate import estimate
from humor_env.experiments.reproduction.judges import ClozeJudge, RatedJudge, make_judge
from humor_env.experiments.reproduction.numbers import Estimate, Ref, Results
from humor_env.experiments.reproduction.spec import ClozeTable, DataSpec, SourceSpec, load_scale
from humor_env.experiments.reproduction.systems import SYSTEMS, by_name
from humor_env.pocket.teacher import PocketTeacher
from humor_env.prompts import load_prompts
from humor_env.rewards.pocket import CrowdJudge, PocketJudge
from humor_env.types import Joke, Prompt, Verdict

# The paper's figures


def test_each_claim_is_what_the_paper_reports() -> None:
    """Arranged so that the paper's difference is above 0; a figure or a sign typed wrong turns one of them round."""
    for claim in claims.CLAIMS:
        assert (claim.published is not None) != bool(claim.quote), claim.text
        assert claim.published is None or claim.published > 0, claim.text


def test_the_differences_that_the_text_of_the_paper_gives() -> None:
    second, fourth = paper.PUBLISHED["2"], paper.PUBLISHED["4"]
    assert [second["brio"][j] - second["ft"][j] for j in ("outside", "training")] == [18, 25]
    assert [second["brio"][j] - second["sd"][j] for j in ("outside", "training")] == [13, 17]
    rounds = [fourth[f"brio-1{r}"]["training"] for r in ("", "-rounds-2", "-rounds-10")]
    assert rounds == [43, 56, 66]
    assert [row["training"] - row["outside"] for row in second.values()] == [-2, 1, 5, 8, 9]


def test_every_row_is_a_system_of_the_grid_that_writes_what_the_row_needs() -> None:
    for table, split in (("2", "test"), ("3", "ood"), ("4", "test"), ("length", "test")):
        for row in paper.PUBLISHED[table]:
            assert split in by_name(row).splits
    assert {s.name for s in SYSTEMS if s.people} == set(paper.PUBLISHED["6"])


def test_every_system_starts_from_an_earlier_warm_start_on_the_same_data() -> None:
    done = {}
    for system in SYSTEMS:
        if system.starts_from is not None:
            start = done[system.starts_from]
            assert (start.kind, start.thirds) == ("warm", system.thirds)
        done[system.name] = system
    assert len(done) == len(SYSTEMS)


# Numbers and rules

SD_LESS_FT = [(1.0, Ref("2", "sd", "training")), (-1.0, Ref("2", "ft", "training"))]


def results_of(**systems: list[list[float | None]]) -> Results:
    """Systems by name, `[seed][prompt]` values of the training judge on the test split."""
    seeds = range(len(next(iter(systems.values()))))
    return Results(
        {
            seed: {
                name.replace("_", "-"): {"splits": {"test": {"beams": {"training": values[seed]}}}}
                for name, values in systems.items()
            }
            for seed in seeds
        }
    )


def test_a_mean_is_over_what_is_there() -> None:
    results = results_of(ft=[[1.0, 0.0, None, None], [1.0, 1.0, 1.0, None]])
    found = numbers.estimate(results, [(100.0, Ref("2", "ft", "training"))])
    assert found is not None
    assert found.mean == pytest.approx(80.0)  # 4 of 5
    assert (found.seeds, found.items) == (2, 3)
    assert numbers.estimate(results, [(1.0, Ref("2", "dpo", "training"))]) is None


def test_an_interval_covers_seeds_and_prompts() -> None:
    steady = numbers.estimate(results_of(ft=[[0.5] * 50] * 3), [(1.0, Ref("2", "ft", "training"))])
    assert steady is not None  # nothing differs: by the rule of three, 3 of 50 may
    assert (steady.low, steady.high) == pytest.approx((0.44, 0.56))
    assert (steady.mean, steady.seeds, steady.items) == (0.5, 3, 50)
    # Seeds that differ and prompts that do not: a resample of three seeds is all of one kind in 2 of 27 cases each.
    seeds = numbers.estimate(results_of(ft=[[0.0] * 50, [0.0] * 50, [1.0] * 50]), [(1.0, Ref("2", "ft", "training"))])
    assert seeds is not None
    assert (seeds.low, seeds.high) == (0.0, 1.0)
    prompts = numbers.estimate(results_of(ft=[[0.0, 1.0] * 200] * 3), [(1.0, Ref("2", "ft", "training"))])
    assert prompts is not None
    assert prompts.low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(400), abs=0.01)
    assert prompts.high == pytest.approx(0.5 + 1.96 * 0.5 / math.sqrt(400), abs=0.01)


def test_a_difference_is_taken_prompt_by_prompt() -> None:
    low = [[0.1 * (i % 7) for i in range(40)] for _ in range(3)]
    results = results_of(ft=low, sd=[[v + 0.2 + 0.001 * (i == 3) for i, v in enumerate(row)] for row in low])
    found = numbers.estimate(results, SD_LESS_FT)
    assert found is not None
    assert (found.low, found.mean, found.high) == pytest.approx((0.2, 0.2, 0.2), abs=1e-3)
    # All equal but for rounding: 3 of 40 may differ, the whole way from -1 to 1.
    found = numbers.estimate(results_of(ft=low, sd=[[v + 0.2 for v in row] for row in low]), SD_LESS_FT)
    assert found is not None
    assert (found.low, found.mean, found.high) == pytest.approx((0.125, 0.2, 0.275))


def test_a_difference_is_over_the_seeds_that_both_have() -> None:
    """SD is 0.1 above FT everywhere. Without SD's second seed its third was paired with FT's second: 0.00 instead of
    0.10, with bounds from -0.4 to 0.3."""
    ft = [[level + 0.001 * i for i in range(60)] for level in (0.2, 0.5, 0.8)]
    for gone in ("sd", "ft"):
        results = results_of(ft=ft, sd=[[v + 0.1 for v in row] for row in ft])
        del results.cells[1][gone]  # type: ignore[attr-defined]
        found = numbers.estimate(results, SD_LESS_FT)
        assert found is not None
        assert (found.low, found.mean, found.high) == pytest.approx((0.05, 0.1, 0.15))  # 3 of 60
        assert (found.seeds, found.items) == (2, 60)
    del results.cells[0]["sd"], results.cells[2]["sd"]  # type: ignore[attr-defined]
    assert numbers.estimate(results, SD_LESS_FT) is None


def test_a_difference_is_over_the_prompts_that_both_have() -> None:
    """SD is 0.05 below FT on every prompt. Without the judgements of SD's 30 hardest ones it was 0.07 above."""
    ft = [0.1 + 0.008 * i for i in range(100)]
    results = results_of(ft=[ft, ft], sd=[[None] * 30 + [v - 0.05 for v in ft[30:]]] * 2)
    found = numbers.estimate(results, SD_LESS_FT)
    assert found is not None
    assert (found.low, found.mean, found.high) == pytest.approx((-0.05 - 3 / 70, -0.05, -0.05 + 3 / 70))
    assert found.items == 70
    # A prompt that was judged in one seed counts in that seed only.
    results = results_of(ft=[[0.5] * 20, [0.5] * 20], sd=[[None] * 10 + [0.6] * 10, [0.7] * 10 + [None] * 10])
    found = numbers.estimate(results, SD_LESS_FT)
    assert found is not None
    assert (found.mean, found.items) == (pytest.approx(0.15), 10)


def people_results(**columns: list[float | None]) -> Results:
    return Results({0: {"people": {"critics": {"mcp/overall": {k.replace("_", " "): v for k, v in columns.items()}}}}})


def test_where_all_pairs_agree_the_rule_of_three_gives_the_bounds() -> None:
    """Ten pairs of ten had [100, 100]; three may be otherwise."""
    found = numbers.estimate(people_results(agree_humor=[1.0] * 10), [(100.0, Ref("1", "mcp/overall", "agree humor"))])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((100.0, 70.0, 100.0))
    # People decide on humor for some pairs and on consistency for others, so these two are not compared pair by pair.
    results = people_results(agree_humor=[1.0] * 12 + [None] * 10, agree_consistency=[None] * 12 + [0.5] * 10)
    both = [Ref("1", "mcp/overall", name) for name in ("agree humor", "agree consistency")]
    found = numbers.estimate(results, [(1.0, both[0]), (-1.0, both[1])])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.2, 0.8))


def test_the_pairs_of_a_prompt_are_drawn_together() -> None:
    """By hand: 20 prompts, ten with 1 for all three systems and ten with 0. Of 20 coins 5 or fewer heads are 2.1 %, 6
    or fewer 5.8 %. Drawn one by one, 60 pairs would give 0.37 to 0.63."""
    people = {
        "critics": {"mcp/overall": {"agree humor": [1.0, 0.0] * 30}},
        "systems": {name: {"humor": [0.5] * 20} for name in ("ft", "brio", "dpo")},
    }
    found = numbers.estimate(Results({0: {"people": people}}), [(1.0, Ref("1", "mcp/overall", "agree humor"))])
    assert found is not None
    assert (found.low, found.mean, found.high) == pytest.approx((0.3, 0.5, 0.7))
    # Nine prompts are too few, however many pairs they have.
    people["critics"]["mcp/overall"]["agree humor"] = [1.0] * 27
    people["systems"] = {name: {"humor": [0.5] * 9} for name in ("ft", "brio", "dpo")}
    found = numbers.estimate(Results({0: {"people": people}}), [(1.0, Ref("1", "mcp/overall", "agree humor"))])
    assert found is not None
    assert math.isnan(found.low)
    assert found.items == 27


def test_below_ten_prompts_there_is_no_interval_and_no_finding() -> None:
    """As in the benchmark. Intervals used to be shown for a single prompt, and claims decided by them."""

    def of(prompts: int) -> tuple[dict[str, object], dict[str, object], str]:
        # The last prompt was never judged, so it does not count.
        made = tables.make_tables(results_of(ft=[[0.2] * prompts + [None]], sd=[[0.4] * prompts + [None]]))
        return made["2"]["rows"][0]["cells"]["training"]["ours"], made["2"]["claims"][0], tables.as_text(made)

    cell, claim, text = of(9)
    assert cell == {"mean": 20.0, "low": None, "high": None, "seeds": 1, "items": 9}
    assert (claim["ours"]["mean"], claim["ours"]["low"], claim["finding"]) == (20.0, None, "undecided")
    [row] = [line.split("|")[2:5] for line in text.splitlines() if "SD is above FT by the training judge" in line]
    assert [column.strip() for column in row] == ["+8", "+20.0", "undecided"]
    cell, claim, _ = of(10)  # 3 of 10 may be otherwise
    assert (cell["low"], cell["high"], claim["finding"]) == (0.0, 50.0, "undecided")
    cell, claim, _ = of(16)
    assert (cell["low"], claim["ours"]["low"], claim["finding"]) == (1.25, 1.25, "agrees")
    # A difference between test and ood is known from the smaller of the two only.
    few = Results(
        {0: {"ft": {"splits": {s: {"beams": {"training": [0.5] * n}} for s, n in (("test", 40), ("ood", 9))}}}}
    )
    both = numbers.estimate(few, [(1.0, Ref("2", "ft", "training")), (-1.0, Ref("3", "ft", "training"))])
    assert both is not None
    assert math.isnan(both.low)


def test_the_rule() -> None:
    def at(low: float, high: float) -> Estimate:
        return Estimate((low + high) / 2, low, high, 3, 100)

    assert claims.decide(at(0.01, 0.2)) == "agrees"
    assert claims.decide(at(-0.2, -0.01)) == "disagrees"
    assert claims.decide(at(0.0, 0.2)) == claims.decide(at(-0.2, 0.0)) == "undecided"
    assert claims.decide(None) == "not measured"

    def table(*kinds: claims.Finding) -> claims.Finding:
        return claims.of_table([claims.Found(claims.CLAIMS[0], None, kind) for kind in kinds])

    assert table("agrees", "agrees") == "agrees"
    assert table("agrees", "undecided") == "undecided"
    assert table("agrees", "undecided", "disagrees") == "disagrees"
    assert table("agrees", "not measured") == "agrees"
    assert table("not measured") == "not measured"


def test_tables_say_what_was_measured_and_what_was_not() -> None:
    values = [[0.2] * 30] * 3
    made = tables.make_tables(results_of(ft=values, sd=[[0.4] * 30] * 3))
    ft = made["2"]["rows"][0]
    assert (ft["row"], ft["cells"]["training"]["paper"], ft["cells"]["training"]["ours"]["mean"]) == ("ft", 28, 20.0)
    first = made["2"]["claims"][0]
    assert (first["finding"], first["paper"], first["ours"]["mean"]) == ("agrees", 8, 20.0)
    assert made["6"]["verdict"] == "not measured"
    text = tables.as_text(made)
    assert "| SD is above FT by the training judge" in text
    assert "+20.0 [+10.0, +30.0]" in text  # 3 of 30
    assert tables.PEOPLE_MISSING in text
    assert "- Table 2: agrees (of 9 claims 1 agree, 8 not measured)" in text


# Critics beside people

PROMPT = Prompt("p", "The meeting was slow.")


def verdict(p: float | None, flipped: bool | None = None) -> Verdict:
    return Verdict("x", p, error=None if p is not None else "failed", flipped=flipped)


def test_a_critic_beside_people_by_hand() -> None:
    short, long = Joke(PROMPT, "ab"), Joke(PROMPT, "abcd")
    pairs = [(short, long), (long, short), (short, long), (short, long), (short, short)]
    said = [verdict(0.1, True), verdict(0.9, False), verdict(0.9, False), verdict(None), verdict(0.5, False)]
    truth = {
        "overall": [verdict(1.0), verdict(1.0), verdict(0.0), verdict(1.0), verdict(1.0)],
        "humor": [verdict(1.0), verdict(1.0), verdict(0.5), verdict(1.0), verdict(1.0)],
        "consistency": [verdict(0.0), verdict(None), verdict(1.0), verdict(0.5), verdict(0.5)],
    }
    found = cells.compare(pairs, said, truth, "overall")
    # People without a preference, and critics without an answer, leave nothing to compare; a critic's tie disagrees.
    assert found["agree humor"] == [0.0, 1.0, None, None, 0.0]
    assert found["agree consistency"] == [1.0, None, 1.0, None, None]
    assert found["position bias"] == [1.0, 0.0, 0.0, None, 0.0]
    # Only the first: people prefer the short line, the critic the long one.
    assert found["length bias"] == [1.0, 0.0, 0.0, None, 0.0]
    humor = cells.compare(pairs, said, truth, "humor")
    assert humor["agree consistency"] == [None] * 5
    assert humor["length bias"] == [1.0, 0.0, None, None, 0.0]


def test_people_see_half_of_the_pairs_turned_round_and_nobody_learns_which() -> None:
    jokes = [(Joke(PROMPT, f"mine {i}", "brio"), Joke(PROMPT, f"theirs {i}", "teacher")) for i in range(200)]
    blind = [cells._blind(*pair) for pair in jokes]
    assert 70 < sum(first.author == "teacher" for first, _ in blind) < 130
    for pair in blind:
        rate = cells._win_or_tie(pair, verdict(1.0))
        assert rate == (1.0 if pair[0].author == "brio" else 0.0)
    assert cells._win_or_tie(jokes[0], Verdict("x", 0.5, tie=1.0)) == 1.0


def test_ratings_of_several_people_are_averaged(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "first": "a", "second": "b", "humor": "first", "consistency": "tie"},
        {"prompt": "p", "first": "b", "second": "a", "humor": "first", "consistency": ""},
        {"prompt": "p", "first": "a", "second": "b", "humor": "first"},
    ]
    path = tmp_path / "ratings.jsonl"
    path.write_text("\n".join([json.dumps(row) + "\n \t" for row in rows]))  # lines of spaces are no ratings
    a, b, c = (Joke(PROMPT, t) for t in "abc")
    [one, other, none] = RatedJudge(path, "humor")([(a, b), (b, a), (a, c)])
    assert (one.probability, other.probability) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert none.failed
    [tie] = RatedJudge(path, "consistency")([(a, b)])
    assert (tie.probability, tie.tie) == (0.5, 1.0)
    path.write_text('{"prompt": "p", "first": "a", "second": "b", "humor": "1"}\n')
    with pytest.raises(PromptError, match="line 1: 'humor' is 'first', 'second' or 'tie', found '1'"):
        RatedJudge(path, "humor")


def test_cloze_is_the_perplexity_of_the_claim(tmp_path: Path) -> None:
    import torch

    words, model = tiny.tokenizer(), tiny.llama(len(tiny.tokenizer()))
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    judge = ClozeJudge(ClozeTable(model=str(tmp_path), device="cpu"), "overall")
    jokes = [Joke(PROMPT, "Glaciers overtook it."), Joke(PROMPT, "{input} it was so slow that moss grew on all of us.")]
    by_hand = []
    for joke in jokes:
        text = f'"{joke.text}" is the funny paraphrase of "{PROMPT.text}"'
        ids = torch.tensor([[words.bos_token_id, *words(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)
        steps = [-float(logprobs[0, t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1)]
        by_hand.append(sum(steps) / len(steps))
    assert judge.perplexities(jokes) == pytest.approx(by_hand, abs=1e-5)
    [found] = judge([(jokes[0], jokes[1])])
    assert found.probability == float(by_hand[0] < by_hand[1])
    assert found.flipped is False
    with pytest.raises(InvalidOption, match=r"set cloze\.model"):
        ClozeJudge(ClozeTable(), "humor")


def test_the_cloze_critics_inputs_go_where_its_model_is(tmp_path: Path) -> None:
    """They went to the device "cuda", which in a critic's thread is the student's GPU and not the model's."""
    import torch

    words = tiny.tokenizer()
    tiny.llama(len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    judge = ClozeJudge(ClozeTable(model=str(tmp_path), device="cpu"), "overall")
    seen = []

    class Elsewhere:
        device = torch.device("meta")

        def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
            seen.append(input_ids.device.type)
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, len(words)))

    judge.model = Elsewhere()
    judge.perplexities([Joke(PROMPT, "Moss grew.")])
    assert seen == ["meta"]


def test_the_pocket_judges_can_be_asked_about_one_part() -> None:
    prompts = load_prompts("pocket").split("train")[:40]
    faithful = PocketTeacher(seed=1, wrong_complaint_rate=1.0, lost_meaning_rate=0.0)
    funny = PocketTeacher(seed=2, wrong_complaint_rate=0.0, lost_meaning_rate=1.0)
    pairs = [(Joke(p, faithful.lines(p, 1)[0]), Joke(p, funny.lines(p, 1)[0])) for p in prompts]
    means = {part: np.mean([v.probability for v in PocketJudge(part)(pairs)]) for part in ("meaning", "humor")}
    assert means["meaning"] > 0.9
    assert means["humor"] < 0.5
    quiet = {"noise": 0.0, "position_bias": 0.0, "length_bias": 0.0}
    for part in ("meaning", "humor", "score"):
        for exact, crowd in zip(PocketJudge(part)(pairs), CrowdJudge(part=part, **quiet)(pairs), strict=True):
            assert (exact.probability > 0.5) == (crowd.probability > 0.5)
    with pytest.raises(InvalidOption, match="found 'humour'"):
        CrowdJudge(part="humour")


def test_each_role_and_seed_has_a_taste_of_its_own(tmp_path: Path) -> None:
    scale = load_scale("pocket")
    made = {
        (role, seed): make_judge(scale, table, role, seed=seed, out=tmp_path)
        for role, table in (("critic", scale.critic), ("outside", scale.outside))
        for seed in (0, 1)
    }
    assert len({judge.seed for judge in made.values()}) == 4
    assert made["outside", 0].noise == 0.3
    assert make_judge(scale, scale.critic, "critic", seed=0, out=tmp_path, part="humor").part == "humor"
    assert make_judge(scale, scale.outside, "outside", seed=0, out=tmp_path, part="humor") is None


# Sentences


def published_files(folder: Path) -> tuple[Path, Path]:
    """EmpatheticDialogues and SAMSum in their published columns."""
    rows = []
    for number in range(60):
        split = ("train", "validation", "test")[number % 3] if number < 30 else "train"
        text = f"I felt proud_comma_ for the {number} time this week."
        row = {"conv_id": f"hit:{number}", "context": "proud", "prompt": text, "selfeval": "5", "split": split}
        rows += [row | {"utterance_idx": turn, "speaker_idx": turn % 2, "utterance": "Oh!"} for turn in (1, 2, 3)]
    # The same words again in another split, and a sentence that is too short.
    rows.append({"conv_id": "hit:99", "prompt": "i felt PROUD_comma_ for the 1 time  this week.", "split": "train"})
    rows.append({"conv_id": "hit:98", "prompt": "Too short.", "split": "train"})
    first = folder / "empathetic.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = "Amanda: Hi!\r\nJerry: I baked {n} cookies: do you want some?\nAmanda: <file_photo>"
    talks = [
        {"id": str(n), "dialogue": said.format(n=n), "summary": "…", "split": ("train", "test")[n % 2]}
        for n in range(20)
    ]
    second = folder / "samsum.jsonl"
    second.write_text("".join(json.dumps(row) + "\n" for row in talks))
    return first, second


def data_spec(folder: Path, **counts: int) -> DataSpec:
    first, second = published_files(folder)
    undo = {"_comma_": ","}
    sizes = {"train": 24, "dev": 3, "test": 8, "ood": 6} | counts

    def own(split: str, splits: list[str]) -> SourceSpec:
        return SourceSpec(source=str(first), column="prompt", splits=splits, count=sizes[split], replace=undo)

    return DataSpec(
        train=own("train", ["train"]),
        dev=own("dev", ["validation"]),
        test=own("test", ["validation", "test"]),
        ood=SourceSpec(source=str(second), column="dialogue", splits=["test"], count=sizes["ood"], turns=True),
    )


def test_sentences_come_clean_once_and_in_one_split_only(tmp_path: Path) -> None:
    found = sentences.read_sentences(data_spec(tmp_path))
    assert {split: len(prompts) for split, prompts in found.items()} == {"train": 24, "dev": 3, "test": 8, "ood": 6}
    texts = [p.text.casefold() for prompts in found.values() for p in prompts]
    assert len(set(texts)) == len(texts)
    assert all("_comma_" not in text and "," in text for text in texts if "proud" in text)
    assert all(p.split == split for split, prompts in found.items() for p in prompts)
    odd = {int(p.text.split()[2]) for p in found["ood"]}
    assert all(p.text.startswith("I baked") and p.text.endswith("cookies: do you want some?") for p in found["ood"])
    assert all(n % 2 for n in odd)  # the rows of "test"
    held = {int(p.text.split()[5]) for p in found["test"]}
    assert all(n < 30 and n % 3 for n in held)


def test_the_sample_depends_on_the_seed_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    data = data_spec(tmp_path)
    before = sentences.read_sentences(data)
    path = Path(data.train.source)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert sentences.read_sentences(data) == before
    other = sentences.read_sentences(data.model_copy(update={"seed": 1}))
    assert {p.text for p in other["test"]} != {p.text for p in before["test"]}


def test_too_few_sentences_and_a_wrong_column_are_told(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"for the split 'ood' \(from 10 rows.*11 are needed"):
        sentences.read_sentences(data_spec(tmp_path, ood=11))
    data = data_spec(tmp_path)
    wrong = data.model_copy(update={"test": data.test.model_copy(update={"column": "literal"})})
    with pytest.raises(PromptError, match=r"line \d+: no column 'literal'\. It has: conv_id, context"):
        sentences.read_sentences(wrong)


# Scales


@pytest.mark.parametrize("name", spec.SCALES)
def test_each_scale_is_whole(name: str) -> None:
    scale = load_scale(name)
    for system in SYSTEMS:
        if system.kind not in ("warm", "ft"):
            config = scale.learner_config(system.kind, 3, **cells.protocol(scale, system))
            phases = [config.brio, config.dpo] if system.kind == "brio-dpo" else [config]
            assert [phase.seed for phase in phases] == [3] * len(phases)
            assert all(phase.epochs == 10 and phase.pairs.candidates == 6 for phase in phases)
            assert all(phase.pairs.length_filter == ("after" if system.filtered else "off") for phase in phases)
            assert phases[-1].rounds == system.rounds
    if name == "paper":
        sizes = {s: getattr(scale.data, s).count for s in ("train", "test", "ood")}
        assert (sizes, scale.teacher.lines, scale.writing.beams) == ({"train": 12000, "test": 1000, "ood": 500}, 3, 5)
        assert scale.imitation_config("warm_start", 0).epochs == 10


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learners.dpo.beta=-1"], r"\[learners.dpo\].*beta must be above 0"),
        (["learners.dop.beta=1"], "Did you mean 'dpo'"),
        (["critic.judge=pocket-crwd"], "pocket-crowd"),
        (["writing.beam=3"], "'writing.beam': Extra inputs"),
        (["outside={judge='pocket-crowd', humor={part='humor'}, consistency={part='meaning'}}"], "must be a different"),
        (["data.train={source='x.jsonl', count=3}"], "some sources and not others"),
        (["learners.sd.epochs='ten'"], r"\[learners.sd.epochs\]"),
    ],
)
def test_mistakes_in_a_scale_are_told(overrides: list[str], said: str) -> None:
    with pytest.raises(HumorEnvError, match=said):
        load_scale("pocket", overrides)


def test_an_unknown_scale_and_paper_are_told() -> None:
    with pytest.raises(InvalidOption, match="Did you mean 'pocket'"):
        load_scale("poket")
    with pytest.raises(InvalidOption, match="Known: small-but-funny"):
        entry.check_paper("big-but-dull")


def test_an_estimate_by_hand() -> None:
    price = {"mine": {"input": 1.0, "output": 10.0}}
    client = {"client": "openai:mine@http://127.0.0.1:1/v1", "options": {"prices": price}}
    scale = load_scale("paper").model_copy(
        update={
            "critic": spec.JudgeTable(judge="multiple-choice", options=client),
            "outside": spec.JudgeTable(judge="multiple-choice", options={"client": "openai:other@http://x/v1"}),
        }
    )
    found = estimate(scale, 2)
    measured = 2 * (13 * 1000 + 5 * 500)  # seeds x (systems x test + those of Table 3 x ood)
    feedback = 12000 * (1 + 1 + 1 + 2 + 1 + 1) + 8000 + 4000 * (1 + 2 + 10)  # brio, dpo, sd, brio-dpo, both unfiltered
    assert found["student"]["lines measured"] == measured
    assert found["roles"]["critic"]["items"] == measured + 2 * feedback
    assert found["roles"]["critic"]["calls"] == 2 * (measured + 2 * feedback)
    assert found["roles"]["critic"]["tokens written"] == 200 * found["roles"]["critic"]["calls"]
    assert found["student"]["lines imitated"] == 2 * 2 * (36000 + 24000 + 12000) * 10
    assert found["roles"]["teacher"]["dollars"] == 0
    assert found["roles"]["outside"]["dollars"] is None
    assert found["dollars"] is None
    assert found["student"]["candidates sampled"] == 2 * 6 * (feedback - 12000)  # half of BRIO-DPO's are the teacher's
    written, read = (found["roles"]["critic"][f"tokens {what}"] for what in ("written", "read"))
    assert found["roles"]["critic"]["dollars"] == pytest.approx((read + 10 * written) / 1e6, abs=0.01)
    people = spec.PeopleTable(who="ratings.jsonl", prompts=100)
    compared = 2 * 3 * 100  # seeds x (FT, BRIO, DPO) x prompts: Table 1 asks the critic about these pairs too
    asked = estimate(scale.model_copy(update={"people": people}), 2)
    assert asked["roles"]["critic"]["items"] == measured + 2 * feedback + compared
    critic = spec.JudgeTable(judge="multiple-choice", options=client, humor={"template": "x"})
    asked = estimate(scale.model_copy(update={"people": people, "critic": critic}), 2)
    assert asked["roles"]["critic"]["items"] == measured + 2 * feedback + 2 * compared  # about humor alone, too


@pytest.mark.parametrize("name", spec.SCALES)
def test_a_dry_run_names_models_data_and_money(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["reproduce", "small-but-funny", "--scale", name, "--dry-run"])
    assert done.exit_code == 0, done.output
    for said in ("student ", "teacher ", "critic ", "train ", "ood ", "calls", "Money: "):
        assert said in done.output
    assert not list(tmp_path.iterdir())
    data = CliRunner().invoke(app, ["reproduce", "small-but-funny", "--scale", name, "--dry-run", "--json"])
    assert json.loads(data.output)["scale"] == name


# The whole path


def save_student(folder: Path) -> str:
    words = tiny.tokenizer()
    tiny.llama(len(words), context=256).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def tiny_scale(folder: Path, url: str) -> Path:
    """The scale `small` with everything it names replaced by something small and local; the protocol is untouched."""
    table = tomllib.loads(spec.scale_text("small"))
    data = data_spec(folder).model_dump(exclude_none=True)
    model = save_student(folder / "model")
    lines = [
        'name = "tiny"',
        "workers = 2",
        "[student]",
        f'model = "{model}"',
        f'instruction = "{table["student"]["instruction"]}"',
        "lora = { rank = 4, alpha = 8 }",
        "[teacher]",
        'teacher = "anthropic:claude-haiku-4-5"',
        f'options = {{ options = {{ base_url = "{url}" }} }}',
        "[critic]",
        'judge = "multiple-choice"',
        'humor = { template = "multiple_choice_humor_symbol" }',
        "[critic.options]",
        f'client = "openai:judge@{url}/v1"',
        'options = { probabilities = true, prices = { "judge" = { input = 0.0, output = 0.0 } } }',
        "[outside]",
        'judge = "multiple-choice"',
        f'options = {{ client = "anthropic:claude-haiku-4-5", options = {{ base_url = "{url}" }} }}',
        "[people]",
        "prompts = 4",
        "[cloze]",
        f'model = "{model}"',
        'device = "cpu"',
        "[warm_start]",
        "epochs = 1",
        "[more_imitation]",
        "epochs = 1",
        "[feedback]",
        "share = 0.5",
        "epochs = 10",
        "[writing]",
        "beams = 2",
        "max_new_tokens = 8",
        "sampled = false",
        "[budget]",
        "max_cost = 100.0",
    ]
    for learner in ("sd", "brio", "dpo", "brio-dpo.brio", "brio-dpo.dpo"):
        lines += [
            f"[learners.{learner}]",
            "learning_rate = 1e-3",
            "pairs = { candidates = 3, shortest_ratio = 0.0, longest_ratio = 99.0, sampling = { max_new_tokens = 8 } }",
        ]
    for split, source in data.items():
        if isinstance(source, dict):
            lines += [f"[data.{split}]", *(f"{k} = {_toml(v)}" for k, v in source.items())]
    path = folder / "tiny.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{k}" = {json.dumps(v)}' for k, v in value.items()) + " }"
    return json.dumps(value)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # seventeen processes, one after the other: slow where others compute too
def test_the_whole_protocol_with_small_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teach, imitate, pairs, judge, learners, evaluate, people: one path for every scale, here with a tiny student,
    files in the published columns and a server that answers as Anthropic's and OpenAI's do."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret-0123456789")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    out = tmp_path / "out"
    with running() as server:
        scale = tiny_scale(tmp_path, server.url)
        command = ["reproduce", "small-but-funny", "--scale", str(scale), "--seeds", "1", "--out", str(out)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert {row["cell"] for row in rows} == {"about", "teacher", *(s.name for s in SYSTEMS)}
        brio = next(row["result"] for row in rows if row["cell"] == "brio-1-rounds-10")
        assert brio["feedback"]["rounds"] == 10
        assert brio["prompts"] == 4  # half of a third of 24
        values = brio["splits"]["test"]["beams"]
        assert [len(values[name]) for name in ("training", "outside", "length ratio")] == [8, 8, 8]
        made = json.loads((out / "tables.json").read_text())
        assert made["2"]["rows"][4]["cells"]["training"]["ours"]["items"] == 8
        assert made["6"]["verdict"] == made["1"]["verdict"] == "not measured"
        assert tables.PEOPLE_MISSING in done.output
        assert (out / "TABLES.md").read_text() in done.output
        assert (out / "TABLES.md").read_text() == entry.as_text_of(out)

        # People rate what was laid out for them; started again, only their cell is done.
        asked = server.stats()["calls"]
        pairs = [json.loads(line) for line in (out / "people.jsonl").read_text().splitlines()]
        assert 4 <= len(pairs) <= 12
        rated = [row | {"humor": "first", "consistency": "tie", "overall": "second"} for row in pairs]
        ratings = tmp_path / "ratings.jsonl"
        ratings.write_text("".join(json.dumps(row) + "\n" for row in rated))
        again = CliRunner().invoke(app, [*command, "--set", f"people.who={ratings}"])
        assert again.exit_code == 0, again.output
        made = json.loads((out / "tables.json").read_text())
        assert made["6"]["rows"][0]["cells"]["consistency"]["ours"]["mean"] == 100.0
        critics = {row["row"]: row["cells"] for row in made["1"]["rows"]}
        assert critics["mcp/overall"]["agree humor"]["ours"] is not None
        assert critics["mcp/humor"]["agree humor"]["ours"] is not None
        assert critics["cloze/humor"]["position bias"]["ours"]["mean"] == 0.0
        assert critics["mcp/consistency"]["agree consistency"]["ours"] is None  # the scale has no template for it
        # Two orders and two questions for at most twelve pairs, of which the first question was partly asked before.
        assert 0 < server.stats()["calls"] - asked <= 2 * 2 * len(pairs)
        with pytest.raises(CheckpointError, match="other settings"):
            entry.reproduce(load_scale(str(scale), ["learners.dpo.beta=0.3"]), out, seeds=[0])


# The page


def test_other_settings_are_refused_before_the_scale_on_disk_is_replaced(tmp_path: Path) -> None:
    cell = cells.make_cells(load_scale("pocket"), tmp_path, [0])[0]
    cell.folder.mkdir(parents=True)
    done = {"cell": cell.asked, "seconds": {"wall": 1.0}, "result": {}}
    (cell.folder / "result.json").write_text(json.dumps(done), encoding="utf-8")
    (tmp_path / "spec.json").write_text("as it was", encoding="utf-8")
    other = load_scale("pocket", ["warm_start.epochs=1"])
    with pytest.raises(CheckpointError, match="other settings"):
        entry.reproduce(other, tmp_path, seeds=[0])
    assert (tmp_path / "spec.json").read_text(encoding="utf-8") == "as it was"


def test_the_page_holds_the_tables_of_the_result_files() -> None:
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    folder = ROOT / "docs" / "results" / "reproduction-pocket"
    if not (folder / "results.jsonl").is_file():
        between = page.partition(entry.BEGIN)[2].partition(entry.END)[0]
        assert "|" not in between, "the page has tables and no result files to make them of"
        return
    assert entry.with_tables(page, entry.as_text_of(folder)) == page
    assert json.loads((folder / "tables.json").read_text()) == tables.make_tables(Results.read(folder))


def test_tables_are_put_between_the_marks() -> None:
    page = f"Before\n\n{entry.BEGIN}\nold\n{entry.END}\n\nAfter\n"
    put = entry.with_tables(page, "new\n")
    assert put == f"Before\n\n{entry.BEGIN}\n\nnew\n\n{entry.END}\n\nAfter\n"
    assert entry.with_tables(put, "new\n") == put
    with pytest.raises(InvalidOption, match="has no place for tables"):
        entry.with_tables("no marks", "new\n")
