"""When a token environment may join bytes instead of asking the tokenizer to decode."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from humor_env.episodes.token_table import _byte_pieces


def tokenizer(*words, decoder=None, **options):
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    core.decoder = decoder or decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, **options)


def test_tokens_are_the_bytes_that_their_letters_stand_for():
    some = tokenizer("a", "Ġb", "Ċ", "Ã©")
    assert _byte_pieces(some, set()) == [b"a", b" b", b"\n", "é".encode()]
    assert _byte_pieces(some, {1}) == [b"a", b"", b"\n", "é".encode()]
    for word in range(4):
        assert some.decode([word]) == _byte_pieces(some, set())[word].decode()


@pytest.mark.parametrize(
    "other",
    [
        lambda: tokenizer("a", "日"),  # a letter that stands for no byte
        lambda: tokenizer("a", "<x>", pad_token="<x>"),  # an added token, which is decoded as it is spelled
        lambda: tokenizer("a", "b", decoder=decoders.WordPiece()),
        lambda: tokenizer("a", "b", clean_up_tokenization_spaces=True),
    ],
)
def test_every_other_tokenizer_decodes_itself(other):
    assert _byte_pieces(other(), set()) is None
