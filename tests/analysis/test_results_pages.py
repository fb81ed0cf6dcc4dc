"""The pages of results: what each says at its top of date, device, code and pilot is what its pack and the list of pages say."""

import re
from pathlib import Path

import pytest

from gatelab.analysis.packed import read_pack

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGES = sorted(p.stem for p in RESULTS.glob("*.md") if p.stem not in ("README", "pages", "claims"))
# Packs whose page has another name.
OF = {
    "backcopy-depth": "backcopy-causes",
    "gates-on-easy-tasks-fresh": "gates-on-easy-tasks",
}
TOP = re.compile(
    r"# .+\n\n\*\*Date\*\* (20\d\d-\d\d-\d\d) · \*\*device\*\* (.+) · \*\*code\*\* (.+) · \*\*pilot\*\* (.+)\n"
)


def text(name: str) -> str:
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def top(name: str) -> tuple[str, ...]:
    """Date, device, code, pilot."""
    return TOP.match(text(name)).groups()


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_its_facts_and_the_list_of_pages_has_them(name):
    date, _, _, pilot = top(name)
    (row,) = [x for x in text("pages").splitlines() if x.startswith("| 20") and f"]({name}.md)" in x]
    assert row.startswith(f"| {date} |")
    assert re.search(r"\b(yes|no)\b", pilot) and ("(pilot)" in row) == ("yes" in pilot)


def test_the_front_page_is_one_screen_of_findings():
    """One interval a finding, and each with its page."""
    front = text("README")
    assert len(front.splitlines()) <= 60 and len(front.split()) <= 700
    found = re.findall(r"^(?:\d\. |Seen again).+?(?=\n\n|\n\d\. )", front, re.MULTILINE | re.DOTALL)
    assert len(found) == 7 and all(re.search(r"\]\([\w-]+\.md", x) for x in found)
    for x in found:
        assert len(re.findall(r"\([^()]*\d to [^()]*\)", x)) == 1, x


@pytest.mark.parametrize("pack", sorted(p.parent.name for p in RESULTS.glob("*/folder.parquet")))
def test_the_code_is_what_the_pack_recorded(pack):
    code = top(OF.get(pack, pack))[2]
    runs = read_pack(RESULTS / pack / "folder.parquet").runs.values()
    environments = [r["environment.json"] for r in runs]
    recorded = {e.get("code") or (e.get("git") or {}).get("commit", "") for e in environments}
    assert all(c[:12] in code for c in recorded)
    assert ("not recorded" in code) == ("" in recorded)


@pytest.mark.parametrize("name", [*PAGES, "README", "pages", "claims"])
def test_links_lead_somewhere(name):
    for path, anchor in re.findall(r"\]\(((?!http)[^)#\s]*)(?:#([^)\s]*))?\)", text(name)):
        there = RESULTS / (path or f"{name}.md")
        assert there.exists(), path
        if anchor and there.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(re.sub(r"[`*]", "", h)) for h in headings}, f"{path}#{anchor}"
