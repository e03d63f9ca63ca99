"""The documentation site: it builds strictly, is complete, and asks nothing of the network."""

import html.parser
import re
import tomllib
from pathlib import Path

import pytest

from humor_env.errors import InvalidOption
from humor_env.experiments.upkeep.site import build_site, main, with_all_pages

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def pages_of(nav):
    for entry in nav:
        for target in entry.values():
            yield from pages_of(target) if isinstance(target, list) else [target]


def test_every_page_is_in_the_navigation_once():
    config = with_all_pages((ROOT / "zensical.toml").read_text(encoding="utf-8"), DOCS)
    nav = list(pages_of(tomllib.loads(config)["project"]["nav"]))
    assert len(set(nav)) == len(nav)
    assert set(nav) == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_a_new_learner_and_a_new_card_are_in_the_navigation_by_themselves(tmp_path):
    for name, text in {"algorithms/nop.md": "# Nop (`nop`)\n", "cards/x.md": "# Critic card: x\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    config = 'nav = [\n  { "A" = "algorithms/index.md" },\n  { "C" = "cards/index.md" },\n]\n'
    nav = tomllib.loads(with_all_pages(config, tmp_path))["nav"]
    assert [*nav[1].items(), *nav[3].items()] == [("Nop (nop)", "algorithms/nop.md"), ("x", "cards/x.md")]


class Loaded(html.parser.HTMLParser):
    """What a browser fetches by itself, and the page's words."""

    def __init__(self):
        super().__init__()
        self.fetched, self.words = [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video") or (tag == "link" and given.get("rel") != "canonical"):
            self.fetched += [v for k in ("src", "href") if (v := given.get(k))]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "site"
    build_site(ROOT, out)
    return out


def test_the_build_says_that_the_search_box_needs_a_server(tmp_path, monkeypatch, capsys):
    """Opened from the disk, as `make docs` said, the search did nothing."""
    monkeypatch.setattr("humor_env.experiments.upkeep.site.build_site", lambda *_: None)
    assert main(["--out", str(tmp_path)]) == 0
    assert f"needs a server: python -m http.server -d {tmp_path}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing_from_elsewhere(site):
    for page in DOCS.rglob("*.md"):
        built = site / page.relative_to(DOCS).with_suffix(".html")
        assert built.is_file(), page
        loaded = Loaded()
        loaded.feed(built.read_text(encoding="utf-8"))
        assert [url for url in loaded.fetched if re.match(r"(https?:)?//", url)] == [], page
        for url in loaded.fetched:
            assert url.startswith("data:") or (built.parent / url.partition("?")[0]).exists(), (page, url)
    styles = "".join(f.read_text(encoding="utf-8") for f in site.rglob("*.css"))
    assert re.findall(r"url\(\s*[\"']?(?:https?:)?//", styles) == []


@pytest.mark.slow
def test_the_reference_reads_all_four_folders(site):
    def shown(name):
        return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")

    assert 'id="humor_env.types.Joke"' in shown("humor_env")
    assert 'id="humor_env.rewards.mix.MixCritic"' in shown("rewards")
    assert 'id="humor_env.agents.ppo.PPOConfig"' in shown("agents")
    assert 'id="humor_env.experiments.specs.spec.load_spec"' in shown("experiments")


@pytest.mark.slow
def test_a_broken_link_ends_the_build(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for page in pages_of(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]):
        (docs / page).parent.mkdir(exist_ok=True)
        (docs / page).write_text("# Page\n")
    build_site(ROOT, tmp_path / "good", docs=docs)
    (docs / "index.md").write_text("# Page\n\n[gone](nowhere.md)\n")
    with pytest.raises(InvalidOption, match=r"(?s)not built.*index\.md"):
        build_site(ROOT, tmp_path / "bad", docs=docs)
    assert not (tmp_path / "bad").exists()


def test_outside_a_checkout_the_build_says_so(tmp_path):
    with pytest.raises(InvalidOption, match="checkout"):
        build_site(tmp_path, tmp_path / "site")
