"""Words of others within a Markdown page are shown as they were written."""

from __future__ import annotations

from humor_env.experiments.sharing.model_card import _table
from humor_env.shared.markdown import table_cell


def test_no_mark_of_a_text_means_anything_in_a_cell():
    assert table_cell("*a*  |\nb") == r"\*a\* \| b"
    assert table_cell("[x](y) <b> `c` $d$ #e ~f~ {g} h_i \\") == (
        r"\[x\](y) \<b\> \`c\` \$d\$ \#e \~f\~ \{g\} h\_i " + "\\\\"
    )


def test_a_long_text_is_cut_before_its_marks_are_escaped():
    """A card cut after escaping could end in half an escape: a backslash that nobody wrote."""
    assert table_cell("abcdefg", 5) == "abcd…"
    assert table_cell("abcde", 5) == "abcde"
    assert table_cell("abc|||", 5) == r"abc\|…"


def test_a_models_line_is_no_link_in_a_card():
    """A card escaped bars and tags only: a line could hold a link, or code that swallowed the rest of its row."""
    assert r"| \[here\](http://x) \`ha |" in _table(("line",), [("[here](http://x) `ha",)])
