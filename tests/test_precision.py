"""`dtype = "auto"` takes what `humor-env doctor` knows to pay on this device."""

import pytest
import torch
from tiny import llama, tokenizer

from humor_env.agents.student import Student
from humor_env.llm.clients.local import LocalClient
from humor_env.rewards.likelihood.language_model import LanguageModel
from humor_env.shared import precision


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    """A model that was saved in 16 bits, as most are."""
    folder = str(tmp_path_factory.mktemp("narrow"))
    llama().to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def says(monkeypatch: pytest.MonkeyPatch, pays: str) -> None:
    monkeypatch.setattr(precision, "measure", lambda kind: {"device": kind, "pays": pays})


def precisions(saved: str, **options) -> list[torch.dtype]:
    """Of a student, a local judge and a measure of surprisal."""
    model, _ = LanguageModel(saved).load()
    student, client = Student.load(saved, **options), LocalClient(saved, device="cpu", **options)
    return [student.base.dtype, client.model.dtype, model.dtype]


def test_auto_is_32_bits_where_16_do_not_pay(saved, monkeypatch):
    """It was the saved model's 16 bits, 2.7 times slower on a processor of which `doctor` said so."""
    says(monkeypatch, "float32")
    assert precisions(saved) == [torch.float32] * 3
    wide, narrow = Student.load(saved), Student.load(saved, dtype="bfloat16")
    assert narrow.base.dtype == torch.bfloat16  # what is said is done
    for name, weight in narrow.base.state_dict().items():
        if "lora" not in name:  # adapters are new, and so rounded
            assert torch.equal(wide.base.state_dict()[name], weight.float()), name


def test_auto_is_as_saved_where_that_pays_or_where_there_is_no_room(saved, monkeypatch, tmp_path):
    says(monkeypatch, "bfloat16")
    assert precisions(saved) == [torch.bfloat16] * 3
    llama().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert Student.load(tmp_path).base.dtype == torch.float32  # never narrowed
    says(monkeypatch, "float32")
    monkeypatch.setattr(precision, "free_memory", lambda: 1000)
    assert precisions(saved) == [torch.bfloat16] * 3


def test_a_quantised_gguf_takes_16_bits_where_they_pay(monkeypatch, tmp_path):
    """Its weights had 4 to 8 bits, so 16 hold all of them; a file in 32 bits is never narrowed."""
    model, words = llama(), tokenizer()
    weights = sum(w.numel() for w in model.parameters())
    folder = tmp_path / "unpacked"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    monkeypatch.setattr("humor_env.sources.gguf.unpacked", lambda path: folder)
    for name, size in (("small.gguf", weights), ("wide.gguf", 4 * weights)):
        (tmp_path / name).write_bytes(bytes(size))
    found = {}
    for pays in ("bfloat16", "float32"):
        says(monkeypatch, pays)
        for name in ("small.gguf", "wide.gguf"):
            found[name, pays] = Student.load(tmp_path / name).base.dtype
        assert Student.load(str(tmp_path / "small.gguf"), dtype="float32").base.dtype == torch.float32
    assert [pair for pair, dtype in found.items() if dtype == torch.bfloat16] == [("small.gguf", "bfloat16")]
    says(monkeypatch, "bfloat16")
    chosen, said = (Student.load(tmp_path / "small.gguf", dtype=dtype).base for dtype in ("auto", "bfloat16"))
    # The frequencies of rotary positions, which are no weights, were rounded too: 0.2 % of every distance.
    for kind in ("named_buffers", "named_parameters"):
        expected = dict(getattr(said, kind)())
        assert {n: t.dtype for n, t in getattr(chosen, kind)() if not torch.equal(t, expected[n])} == {}


def test_it_is_what_doctor_shows():
    from humor_env.experiments.commands import doctor

    assert doctor.examine()["precision"] is precision.measure("cuda" if torch.cuda.is_available() else "cpu")


def test_a_container_has_what_its_limit_leaves(tmp_path):
    """The machine's memory was taken for the container's: what was chosen to fit it ended in a kill."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert precision.free_memory(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 2000000\nfile 500000\n")
    for limit, free in (("max", 8000 * 1024), ("4000000", 1_500_000), ("2000000", 0), ("90000000", 8000 * 1024)):
        (group / "memory.max").write_text(f"{limit}\n")
        assert precision.free_memory(tmp_path) == free
    assert precision.free_memory(tmp_path / "nowhere") is None
