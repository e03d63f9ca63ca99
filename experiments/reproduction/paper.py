"""The paper's results as data: every number that a reproduction is compared with, by table.

    PUBLISHED["2"]["brio"]["training"]       # 53: win-tie rate x 100, by the judge that also trained the student

Source: Ravi, Huber, Shrivastava, Sagar, Aly, Shwartz, Einolghozati, "Small But Funny: A Feedback-Driven Approach to
Humor Distillation", ACL 2024 (arXiv 2402.18113v1), Tables 1 to 4 and 6 and the section on length (RQ5). Table 5 holds
four examples and no numbers. The paper gives one run of each and no intervals. BART-FT on all data is 28 in its Table 2
and 30 in its Table 4, although both name the same judge; each table below has what that table prints.
"""

from __future__ import annotations

from collections.abc import Mapping

SOURCE = (
    'Ravi et al., "Small But Funny: A Feedback-Driven Approach to Humor Distillation", ACL 2024, arXiv 2402.18113v1'
)

Row = Mapping[str, float | None]

PUBLISHED: Mapping[str, Mapping[str, Row]] = {
    # Critic compared with people on 100 blind pairs, x 100.
    "1": {
        "cloze/humor": {"agree humor": 57, "agree consistency": None, "position bias": 0, "length bias": 18},
        "cloze/consistency": {"agree humor": None, "agree consistency": 46, "position bias": 0, "length bias": 21},
        "cloze/overall": {"agree humor": 57, "agree consistency": 47, "position bias": 0, "length bias": 25},
        "mcp/humor": {"agree humor": 76, "agree consistency": None, "position bias": 18, "length bias": 17},
        "mcp/consistency": {"agree humor": None, "agree consistency": 65, "position bias": 28, "length bias": 19},
        "mcp/overall": {"agree humor": 76, "agree consistency": 59, "position bias": 15, "length bias": 20},
    },
    # Win-tie rate against the teacher, x 100. "training" is Llama-2 70B chat, "outside" GPT-4.
    "2": {
        "ft": {"outside": 30, "training": 28},
        "sd": {"outside": 35, "training": 36},
        "brio": {"outside": 48, "training": 53},
        "dpo": {"outside": 52, "training": 60},
        "brio-dpo": {"outside": 56, "training": 65},
    },
    # The same by the training judge on SAMSum. BART-SD is not given.
    "3": {
        "ft": {"training": 34},
        "sd": {"training": None},
        "brio": {"training": 42},
        "dpo": {"training": 47},
        "brio-dpo": {"training": 49},
    },
    # Data size (12K, 24K, 36K pairs are one, two, three thirds) and rounds of feedback within ten epochs.
    "4": {
        "ft": {"training": 30},
        "ft-2": {"training": 26},
        "ft-1": {"training": 24},
        "brio": {"training": 53},
        "brio-2": {"training": 45},
        "brio-1": {"training": 43},
        "brio-1-rounds-2": {"training": 56},
        "brio-1-rounds-10": {"training": 66},
    },
    # People, against the teacher, x 100.
    "6": {
        "ft": {"humor": 23, "consistency": 38, "overall": 29},
        "brio": {"humor": 43, "consistency": 32, "overall": 45},
        "dpo": {"humor": 51, "consistency": 34, "overall": 50},
    },
    # RQ5 has no table: it says that unmitigated outputs nearly double in length, and that BRIO suffers most.
    "length": {
        "ft": {"length ratio": None},
        "brio": {"length ratio": None},
        "brio-unfiltered": {"length ratio": None},
        "dpo": {"length ratio": None},
        "dpo-unfiltered": {"length ratio": None},
    },
}

TITLES: Mapping[str, str] = {
    "1": "The critic against people",
    "2": "Win-tie rate against the teacher, in distribution",
    "3": "Win-tie rate against the teacher, out of distribution",
    "4": "Data size and rounds of feedback",
    "6": "Win-tie rate against the teacher, by people",
    "length": "Output over input (the paper has words and no table)",
}
