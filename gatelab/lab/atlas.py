"""The atlas: several studies, from their folders or archives, on one page."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from ..analysis.atlas import Atlas, Sheet, shared, taken_from
from ..analysis.ledger_of_claims import CLAIMS, Entry, judged
from ..analysis.packed import SUFFIX
from ..analysis.planned import Open, still_open
from ..config import ConfigError
from ..report.atlas import write_atlas
from ..store import StoreError, read_json
from .companions import among
from .sheet import sheet
from .sources import Source, opened, sources_in
from .writing import written_to

FILE = "atlas.html"
DATA = "data.json"  # beside studies' folders: what files of text hold
_SECTION = re.compile(r'<section id="([a-z]+)"')


def atlas(
    paths: Sequence[str | Path], out: str | Path | None = None, *, tell: Callable[[str], None] = lambda _: None
) -> Path:
    """Write the page of all studies that `paths` name, and its CSV file; returns the page's path. A study that cannot be read, and
    one that has the runs of another, is named there, and `tell` is told why. Without `out` it is atlas.html in the one folder that
    is named, or here where there are several.

    Raises:
        ConfigError: a page that cannot be there.
        StoreError: nothing to read, or a study named twice, as `sources_in` says; none that can be read; a page that cannot be
            written.
    """
    sources = sources_in(paths)
    page = (
        Path(out)
        if out is not None
        else (Path(paths[0]) if len(paths) == 1 and Path(paths[0]).is_dir() else Path()) / FILE
    )
    if page.is_dir() or not page.parent.is_dir() or page.suffix == ".csv":
        missing = "its folder does not exist" if not page.parent.is_dir() else "its numbers are written there"
        what = "is a folder" if page.is_dir() else missing
        raise ConfigError([f"--out {page}: {what}; name a file in a folder that there is, as in {FILE}"])
    if page.name == "report.html" and (page.parent / "study.json").exists():
        raise ConfigError([f"--out {page}: is the page of its study, not an atlas; name another file, as in {FILE}"])
    made, refused = read_atlas(sources, page, tell)
    if not made:
        raise StoreError(f"{refused[0][0]}: {refused[0][1]}")
    try:
        claims = _claims(paths)
    except StoreError as error:
        claims = None
        refused.append(("the ledger of claims", str(error)))
    home = _home(paths)
    stored: dict[str, dict] = {}
    unlike: dict[str, set] = {}
    for s in made:
        stored.setdefault(s.name, {}).update({key: n for key, n in s.plan.items() if key[0] not in s.otherwise})
        unlike.setdefault(s.name, set()).update(key for key in s.plan if key[0] in s.otherwise)
    begun = [Open(s.name, s.question, s.n_open, len(s.plan), s.again) for s in made if s.n_open]
    never = [] if home is None else still_open(home, stored, unlike)
    with written_to(page):
        return write_atlas(page, Atlas(_told_apart(made), refused, claims, [*begun, *never]))


def read_atlas(
    sources: Sequence[Source], page: Path, tell: Callable[[str], None]
) -> tuple[list[Sheet], list[tuple[str, str]]]:
    """A sheet a study, and (what, why) of those that have none."""
    sheets: list[Sheet] = []
    read: dict[str, Source] = {}
    plans: list[tuple[str, list[str]]] = []
    refused = []
    for source in sources:
        letter = _letter(len(sheets))
        try:
            with opened(source) as folder:
                study = folder.study()
                name, plan = f"{letter} {study['name']}", [entry["fingerprint"] for entry in study["plan"]]
                twins = [twin for twin in shared([*plans, (name, plan)]) if twin[0] == name]
                if whole := [twin for twin in twins if twin[3]]:
                    raise StoreError(f"{source.path}: has the runs of {whole[0][1]}, which is here already")
                tell(f"reading {source.path}")
                flags = [f"{n} of its runs are those of {earlier}" for _, earlier, n, _ in twins]
                made = sheet(folder, letter, flags, _pages(source, page.parent), _names(source))
                sheets.append(replace(made, again=_again(source)))
                plans.append((name, plan))
                read[letter] = source
        except StoreError as error:
            why = str(error).removeprefix(f"{source.path}: ")
            tell(f"{source.path} is not in the atlas: {why}")
            refused.append((str(source.path), why))
    flag = "its comparisons are some of those of {}, on fewer seeds: shown, and not counted a second time"
    taken = taken_from(sheets)
    told = [replace(s, flags=[*s.flags, flag.format(taken[s.letter])]) if s.letter in taken else s for s in sheets]
    return among(told, read, tell), refused


def _told_apart(sheets: list[Sheet]) -> list[Sheet]:
    """Where several folders hold runs of one study, each with the name of its text or page behind the study's."""
    n = Counter(s.name for s in sheets)
    return [replace(s, name=f"{s.name}, {where}") if n[s.name] > 1 and (where := _where(s)) else s for s in sheets]


def _where(s: Sheet) -> str:
    """The folder that a study's pages are of; empty where it has none or is called as the study."""
    pages = [
        Path(at).parent.name if word == "page" else Path(at).stem
        for word, at in s.pages.items()
        if word in ("page", "text")
    ]
    return next((name for name in pages if name and name != s.name), "")


def _letter(i: int) -> str:
    """A to Z, then AA, AB, …"""
    return (chr(64 + i // 26) if i >= 26 else "") + chr(65 + i % 26)


def _pages(source: Source, beside: Path) -> dict[str, str]:
    """The study's own page and each of its sections, and a text about it, as links from where the atlas lies."""
    home = Path(os.path.abspath(source.home))  # `.` has no name
    there = {"page": home / "report.html"} | ({"text": home.with_suffix(".md")} if home.name else {})
    found = {
        word: quote(Path(os.path.relpath(path.resolve(), beside.resolve())).as_posix())
        for word, path in there.items()
        if path.is_file()
    }
    if "page" in found:
        named = _SECTION.findall(there["page"].read_text(encoding="utf-8", errors="replace"))
        found |= {f"#{name}": f"{found['page']}#{name}" for name in named}
    return found


def _names(source: Source) -> dict[str, str]:
    """{a file of text: what it is in words} by what lies beside the study's folder, for studies whose runs do not say it.

    Raises:
        StoreError: a file that says something else.
    """
    path = source.home.absolute().parent / DATA
    said = read_json(path) if path.is_file() else {}
    if not isinstance(said, dict) or not all(isinstance(words, str) for words in said.values()):
        raise StoreError(
            f'{path}: expected the names of files with what they hold in words, as in {{"a.bin": "old prose"}}'
        )
    return said


def _claims(paths: Sequence[str | Path]) -> list[Entry] | None:
    """The ledger, of the lines whose page lies there, and of those that wait for their runs; None where no page does."""
    home = _home(paths)
    if home is None:
        return None
    return judged(home, [c for c in CLAIMS if c.test is None or c.planned or (home / c.page).is_dir()])


def _home(paths: Sequence[str | Path]) -> Path | None:
    """The folder that has pages of the ledger's, as docs/results."""
    pages = {c.page for c in CLAIMS}
    return next((Path(p) for p in paths if any((Path(p) / name).is_dir() for name in pages)), None)


def _again(source: Source) -> str:
    """The command that takes up what of a study has not ended."""
    run = shlex.join(["gatelab", "run", str(source.path)])
    if source.path.suffix == SUFFIX:
        return f"{shlex.join(['gatelab', 'unpack', str(source.path), '--out', 'DIR'])}; gatelab run DIR"
    return f"gatelab run DIR (DIR: what {source.path.name} holds, unpacked)" if source.is_archive else run
