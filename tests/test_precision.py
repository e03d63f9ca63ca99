"""`dtype = "auto"` takes what `humor-env doctor` knows to pay on this device."""

import json

import pytest
import torch
from tiny import llama, tokenizer

from humor_env import registry
from humor_env.agents.student import Student
from humor_env.agents.student.transfers import ready
from humor_env.errors import InvalidOption, StudentError
from humor_env.experiments.commands.doctor import memory_of
from humor_env.experiments.compare.benchmark_cell import load_in_folder
from humor_env.experiments.reports.differences import what_differs
from humor_env.experiments.reports.report_data import load_run
from humor_env.experiments.runs.run import run
from humor_env.experiments.specs.spec import load_spec, parse_spec
from humor_env.llm.clients.local import LocalClient
from humor_env.rewards.likelihood.language_model import LanguageModel
from humor_env.rewards.reward_model import RewardModelCritic
from humor_env.shared import precision
from humor_env.shared.precision import device_for
from humor_env.teacher import TeacherBuffer
from humor_env.types import Demonstration, Joke, Prompt


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


def a_spec(saved: str, *settings: str):
    text = f"""
name = "precise"
[env]
prompts = "pocket"
[student]
model = {saved!r}
lora = {{ rank = 2 }}
[[critic]]
critic = "rules"
[learner]
name = "grpo"
steps = 2
batch_size = 4
siblings = 2
checkpoint_every = 1
sampling = {{ max_new_tokens = 3 }}
[eval]
limit = 2
"""
    return parse_spec(text, settings)


def test_a_resumed_run_keeps_its_precision_on_another_machine(saved, monkeypatch, tmp_path):
    """The first half was learned in 16 bits and the rest in 32, and nothing said which."""
    says(monkeypatch, "bfloat16")
    run(a_spec(saved, "learner.steps=1"), tmp_path / "run")
    says(monkeypatch, "float32")
    run(a_spec(saved), tmp_path / "run", resume=True)
    run(a_spec(saved), tmp_path / "new")
    found = [json.loads((tmp_path / name / "run.json").read_text())["precision"] for name in ("run", "new")]
    assert found == ["bfloat16", "float32"]
    differences = {
        row.cells[0]: row.cells[1:] for row in what_differs(*map(load_run, (tmp_path / "run", tmp_path / "new"))).rows
    }
    assert differences["precision"] == ["bfloat16", "float32"]
    assert load_spec(tmp_path / "run").student.dtype == "auto"


def test_a_cell_that_is_continued_elsewhere_keeps_its_precision(saved, monkeypatch, tmp_path):
    found = []
    for pays in ("bfloat16", "float32"):
        says(monkeypatch, pays)
        found.append(load_in_folder(a_spec(saved), tmp_path / "one", 0, tmp_path / "one").base.dtype)
    other = load_in_folder(a_spec(saved, "learner.clip=0.3"), tmp_path / "one", 0, tmp_path / "one")  # it starts over
    # The cell of a learner that goes on from this one's student keeps its precision too.
    later = load_in_folder(a_spec(saved), tmp_path / "two", 0, tmp_path / "one")
    alone = load_in_folder(a_spec(saved), tmp_path / "three", 0, tmp_path / "three")
    assert [*found, other.base.dtype, later.base.dtype] == [torch.bfloat16] * 4
    assert alone.base.dtype == torch.float32


def test_a_base_that_is_trained_itself_is_read_in_32_bits(saved, monkeypatch, tmp_path):
    """With `dtype = "auto"` the run was refused, with the line to set, wherever 16 bits pay."""
    says(monkeypatch, "bfloat16")
    prompts = [Prompt(split, f"The {split} meeting was slow.", split=split) for split in ("train", "test")]
    rows = [{"id": p.id, "text": p.text, "split": p.split} for p in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    TeacherBuffer(tmp_path / "lines.jsonl", [Demonstration(p, "Glaciers overtook it.", "t") for p in prompts])
    files = (f"env.prompts='{tmp_path / 'prompts.jsonl'}'", f"teacher.lines='{tmp_path / 'lines.jsonl'}'")
    spec = a_spec(saved, "learner={name='sft', full=true, epochs=1}", *files)
    assert spec.trains_base and not a_spec(saved).trains_base
    run(spec, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["precision"] == "float32"
    with pytest.raises(StudentError, match=r"full = true.*bfloat16"):
        run(
            spec.model_copy(update={"student": spec.student.model_copy(update={"dtype": "bfloat16"})}),
            tmp_path / "said",
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("device", "said"), [("cuda", "no usable GPU. Set device"), ("nope", "'nope' is no torch device")]
)
def test_a_device_that_is_not_there_is_a_sentence(saved, device, said):
    """It was torch's assertion for every model but the student."""
    for load in (
        lambda: LocalClient(saved, device=device),
        lambda: LanguageModel(saved, device=device).load(),
        lambda: registry.critics.make("everyday", device=device)(
            [Joke(Prompt("p", "It was slow."), "Glaciers overtook it.")]
        ),
    ):
        with pytest.raises(InvalidOption, match=said):
            load()


def test_a_second_gpu_or_a_mac_that_is_not_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_for(d) for d in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    with pytest.raises(InvalidOption, match=r"'cuda:2', but torch finds 2 GPUs, of which the last is 'cuda:1'"):
        device_for("cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InvalidOption, match="'mps', but torch finds no usable GPU"):
        device_for("mps")
    with pytest.raises(StudentError, match=r"student cannot be loaded.*'cuda:7'"):
        ready("cuda:7")


@pytest.mark.parametrize(("device", "said"), [("cuda:9", "device is 'cuda:9'"), ("nope", "'nope' is no torch device")])
def test_doctor_says_it_too(device, said):
    with pytest.raises(InvalidOption, match=said):
        memory_of("pocket-quickstart", [f"student.device={device}"])


def test_a_temperature_that_is_none_is_a_sentence(saved):
    for wrong in (float("nan"), -1.0, "0.7"):
        with pytest.raises(InvalidOption, match="temperature must be a number of at least 0"):
            LocalClient(saved, device="cpu", temperature=wrong)
    assert LocalClient(saved, device="cpu", temperature=0).temperature is None


def test_a_mistyped_precision_is_a_sentence(saved):
    """It was torch's AttributeError."""
    for load in (Student.load, lambda path, dtype: LocalClient(path, device="cpu", dtype=dtype)):
        with pytest.raises(InvalidOption, match=r"found 'flot32'\. Did you mean 'float32'"):
            load(saved, dtype="flot32")
    with pytest.raises(InvalidOption, match="dtype must be one of auto, float32, bfloat16; found 'float16'"):
        RewardModelCritic(saved, dtype="float16")
    with pytest.raises(InvalidOption, match="found 16"):
        RewardModelCritic(saved, dtype=16)


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
