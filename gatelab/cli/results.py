"""gatelab find, report and diff: what a study found, its anomalies, their confirmation and causes, and where two runs differ."""

import gc
import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .base import Flag, Json, Words, print_json, tell

if TYPE_CHECKING:
    from ..store import StudyFolder


_MOST_SENTENCES = 12  # of effects that name no difference; more are counted


def find(
    folder: Path,
    *,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    explain: str | None = None,
    edit: Flag = False,
    register: Flag = False,
    rule: Words = None,
    cell: Words = None,
    arm: Words = None,
    seeds: str | None = None,
    confirm: Flag = False,
    claims: Flag = False,
    json_: Json = False,
) -> int:
    """State a study's effects and anomalies, with intervals and q-values; register what was found, confirm or explain it.

    Parameters
    ----------
    folder:
        The study's folder, or a pack of one (.parquet) to be read.
    all_:
        The exploratory metrics, every effect in a sentence and every test for anomalies too; with --explain every test of every
        card.
    explain:
        A cell: a verdict card for every registered explanation, and the commands that make the rows it lacks, each once; with
        what studies beside FOLDER say that were made for its causes.
    edit:
        With --explain: first make the rows of edits that are missing, of the cell's finished runs that lie here. What is there
        is not made again, and a machine without DuckDB makes them too.
    register:
        Write down what the screen found, to be confirmed on fresh seeds, before they are run; what they could see comes first.
    rule:
        Of --register: the rules whose claims are registered, `effect` for effects; all unless stated.
    cell:
        Of --register: the cells, in which `*` stands for anything; all unless stated.
    arm:
        Of --register, --explain and --edit: the arms; all unless stated. Edits are of the baseline too.
    seeds:
        The fresh seeds of --register, as in 5..9, the five after the last unless stated; of --edit the runs to edit, all of
        the screen unless stated.
    confirm:
        The registered claims on their fresh seeds, by Holm.
    claims:
        FOLDER is one of result pages, as docs/results: what has been claimed of gates, and what these say to it, as Markdown.
    json_:
        One JSON record an effect, and an anomaly; a claim, a verdict or a test with the options above.
    """
    from .. import lab
    from ..analysis import say, say_causes
    from ..config import ConfigError, Run, parse_assignments, validate

    asked = [
        name
        for name, is_on in (
            ("--explain", explain is not None),
            ("--register", register),
            ("--confirm", confirm),
            ("--claims", claims),
        )
        if is_on
    ]
    if len(asked) > 1:
        raise ConfigError([f"{' and '.join(asked)}: each is a question of its own; give one"])
    if edit and explain is None:
        raise ConfigError(["--edit is for --explain, which is not given; name the cell, as in --explain CELL --edit"])
    if seeds is not None and not (register or edit):
        raise ConfigError([f"--seeds {seeds} is for --register and --edit, neither of which is given; leave it out"])
    choose = {"rules": rule or [], "cells": cell or [], "arms": arm or []}
    for name, words in choose.items():
        if words and not (register or (name == "arms" and explain is not None)):
            of = "--register and --explain, neither of which is" if name == "arms" else "--register, which is not"
            raise ConfigError([f"--{name[:-1]} {words[0]} is for {of} given; leave it out"])
    if claims:
        from ..analysis.ledger_of_claims import judged, page

        return _tell(judged(folder), page, is_json=json_)
    listed = seeds if seeds is None or ".." in seeds else f"[{seeds.strip('[]')}]"
    try:
        words = [] if listed is None else parse_assignments([f"seed={listed}"])["seed"]
        numbers = [validate(Run, {"seed": word}).seed for word in words] or None
    except ConfigError as error:
        raise ConfigError(
            [f"--seeds {seeds}: {problem.partition(': ')[2]}" for problem in error.problems[:1]]
        ) from None
    with lab.reading(folder) as there:
        if register:
            return _register(there, numbers, choose, is_json=json_)
        if confirm:
            for note in lab.confirmation_notes(there):
                tell(f"note: {note}")
            return _tell(lab.confirm(there), say.confirmed, is_json=json_)
        if edit:
            n = lab.edit(there, explain, numbers, arms=choose["arms"], tell=tell)
            tell(f"{n} runs were edited; the rows are in {there.path / lab.FILE}")
            if find_spec("duckdb") is None:
                tell(
                    "the cards need DuckDB, which this machine does not have: take that file to where the study is read"
                )
                return 0
        if explain is not None:
            cards = lab.explain(there, explain, choose["arms"], tell=tell)
            return _tell(cards, lambda found: say_causes.explained(found, all_=all_), is_json=json_)
        return _find(there, all_=all_, is_json=json_)


def _find(there: "StudyFolder", *, all_: bool, is_json: bool) -> int:
    from dataclasses import asdict

    from .. import lab
    from ..analysis import say
    from ..store import StoreError
    from ..terminal import print_findings

    analysis = lab.analyse(there)
    findings = analysis.findings
    try:
        hunt = lab.hunt(there, lab.screened(there, analysis.outcomes))
    except StoreError as error:
        # The effects stand without them.
        hunt, refused = None, str(error)
    if hunt is None:
        tell(f"no anomalies were looked for: {refused}")
    if is_json:
        print_json([asdict(f) for f in findings if f.primary or all_])
        if hunt is not None:
            print_json([asdict(a) for a in (hunt.screened.alarms if all_ else hunt.screened.anomalies)])
            print_json([asdict(x) for x in (*hunt.pooled, *hunt.dependences, *hunt.spreads)] if all_ else [])
    else:
        if hunt is not None:
            print("\n".join(say.hunted(hunt)), flush=True)
        print_findings(findings, all_metrics=all_, most=None if all_ else _MOST_SENTENCES)
        if hunt is not None:
            print("\n".join(say.rest(hunt, all_=all_)))
    if hunt is None or is_json:
        for note in analysis.refusals.notes if hunt is None else hunt.notes:
            tell(f"note: {note}")
    return 0


def _register(there: "StudyFolder", seeds: list[int] | None, choose: dict[str, list[str]], *, is_json: bool) -> int:
    from dataclasses import asdict

    from .. import lab
    from ..analysis import say

    gathered = lab.screened(there)
    registration = lab.register(there, seeds, choose=choose, gathered=gathered)
    plan, notes = lab.foresight(there, n_claims=len(registration.claims), gathered=gathered)
    if is_json:
        for note in (*notes, *say.equal_tests(registration)):
            tell(f"note: {note}")
        print_json([*map(asdict, plan), *map(asdict, registration.claims)])
        return 0
    n_runs = len(lab.confirmation(there, registration)) * len(registration.seeds)
    unreachable = lab.out_of_reach(there, registration, gathered)
    said = say.registered(registration, lab.confirming(there), n_runs, unreachable)
    print("\n".join([*say.foreseen(plan, notes), "", *said]))
    return 0


def _tell(records: list[Any], words: Callable[[list[Any]], Iterable[str]], *, is_json: bool) -> int:
    from dataclasses import asdict

    if is_json:
        print_json([asdict(r) for r in records])
    else:
        print("\n".join(words(records)))
    return 0


def report(folder: Path, *more: Path, out: Path | None = None) -> int:
    """Write the study's page (report.html) and its CSV files anew; of several studies their atlas, one page of all.

    Parameters
    ----------
    folder:
        The study's folder; for an atlas a pack or an archive of one too (.parquet, .tar.xz, .tar.gz), or a folder of studies,
        packs and archives, as docs/results.
    more:
        Further ones of the atlas.
    out:
        The atlas, atlas.html in the one FOLDER unless stated, and in the current one where there are several; with --out one
        study has an atlas too, but for its own report.html, which is its page.
    """
    # What modules and a thousand runs hold is in no cycle, and looking for cycles in it took an eighth of the time.
    gc.disable()
    try:
        from .. import lab
        from ..store import StudyFolder

        own = folder / "report.html" if (folder / "study.json").exists() and not more else None
        if out is not None and own is not None and out.resolve() == own.resolve():
            out = None
        if not (more or out is not None or (folder.exists() and not (folder / "study.json").exists())):
            there = StudyFolder.open(folder)
            print(lab.report(there, lab.analyse(there), tell=tell))
            return 0
    finally:
        gc.enable()
    print(lab.atlas([folder, *more], out, tell=tell))
    return 0


def diff(left: Path, right: Path, *, json_: Json = False) -> int:
    """Show where two runs' configurations differ.

    Parameters
    ----------
    left:
        A run's folder.
    right:
        Another run's folder.
    json_:
        One JSON record a key.
    """
    from .. import lab
    from ..terminal import print_records

    a, b = (lab.flat(lab.find_run(p).config()) for p in (left, right))
    records = [{"key": k, "left": a.get(k), "right": b.get(k)} for k in sorted(a | b) if a.get(k) != b.get(k)]
    if json_:
        print_json(records)
    elif records:
        shown = [{k: json.dumps(v, ensure_ascii=False) if k != "key" else v for k, v in r.items()} for r in records]
        print_records(shown, f"left: {left}\nright: {right}")
    else:
        print("the two configurations are equal")
    return 0
