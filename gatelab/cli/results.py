"""gatelab find, report and diff: what a study found, on the terminal and as a page, and where two runs differ."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .base import Json, print_json


def find(
    folder: Path, *, all_: Annotated[bool, Parameter(name="--all", negative="")] = False, json_: Json = False
) -> int:
    """State a study's effects, with intervals and q-values.

    Parameters
    ----------
    folder:
        The study's folder.
    all_:
        The exploratory metrics too.
    json_:
        One JSON record an effect.
    """
    from dataclasses import asdict

    from .. import lab
    from ..store import StudyFolder
    from ..terminal import print_findings

    findings = lab.analyse(StudyFolder.open(folder)).findings
    if json_:
        print_json([asdict(f) for f in findings if f.primary or all_])
    else:
        print_findings(findings, all_metrics=all_)
    return 0


def report(folder: Path) -> int:
    """Write the study's page (report.html) and its CSV files anew.

    Parameters
    ----------
    folder:
        The study's folder.
    """
    from .. import lab
    from ..store import StudyFolder

    there = StudyFolder.open(folder)
    print(lab.report(there, lab.analyse(there)))
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
