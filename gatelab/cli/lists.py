"""gatelab probes, interventions, schema and doctor: lists of what there is, here and on this machine."""

import json

from .base import Json, print_json


def probes(*, json_: Json = False) -> int:
    """List the probes and what they measure.

    Parameters
    ----------
    json_:
        One JSON record a metric.
    """
    from .. import catalogue
    from ..terminal import print_records

    records = catalogue.probe_records()
    print_json(records) if json_ else print_records(records, "docs/metrics.md defines each metric")
    return 0


def interventions(*, json_: Json = False) -> int:
    """List the edits that `gatelab probe --intervene` makes: WORD[@key or site][=value][:l18h8,l19][~dose].

    Parameters
    ----------
    json_:
        One JSON record a kind.
    """
    from .. import catalogue
    from ..terminal import print_records

    records = catalogue.intervention_records()
    if json_:
        print_json(records)
    else:
        print_records(
            records, "WORD[@key or site][=value][:layers and heads][~dose], such as zero-value@first:l18h8~0.5"
        )
    return 0


def schema() -> int:
    """Print the JSON Schema of a run, for editors and checks."""
    from ..config import Run

    print(json.dumps(Run.model_json_schema(), indent=1))
    return 0


def doctor(*, json_: Json = False) -> int:
    """Say what this machine can do: versions, devices, cores, memory, disk.

    Parameters
    ----------
    json_:
        One JSON record a fact.
    """
    from .. import catalogue
    from ..terminal import print_records

    records = catalogue.machine_records()
    print_json(records) if json_ else print_records(records)
    return 0
