"""The main job: plan, run, analyse, report. What the command line does is a plain call here.

from gatelab import lab
folder, _ = lab.run("quickstart", "runs/quickstart")
page = lab.report(folder, lab.analyse(folder))
"""

from ..analysis.cause_tests import FILE
from ..study.study import load_study
from .analysing import Analysis, analyse, outcomes
from .atlas import atlas
from .checkpoints import export, import_checkpoint, is_checkpoint, relayout, retrofit, run_seed, stored_model, task_run
from .companions import explain
from .declared import CONFIRMATION, FDR, SCREEN
from .explaining import edit
from .finding import confirm, confirmation, confirmation_notes, confirming, hunt, out_of_reach, register, screened
from .foreseeing import foresight, pilot
from .looking import final_rows, find_run, flat, intervene, look_at_run, probe, probe_checkpoint, write_look
from .packing import LOOKS, pack, unpack
from .planning import STEP_TOKENS, baseline_warning, plan, save_plan, single, size_job, step_jobs
from .recommending import recommend
from .reporting import look_for_anomalies, report
from .room import check_room, check_room_left
from .running import (
    EXECUTORS,
    check_executor,
    check_seen,
    execution_in,
    go_on,
    is_folder,
    not_planned,
    open_executor,
    refuse_address,
    run,
    submit,
    submit_folder,
)
from .sources import reading

__all__ = [
    "CONFIRMATION",
    "EXECUTORS",
    "FDR",
    "FILE",
    "LOOKS",
    "SCREEN",
    "STEP_TOKENS",
    "Analysis",
    "analyse",
    "atlas",
    "baseline_warning",
    "check_executor",
    "check_room",
    "check_room_left",
    "check_seen",
    "confirm",
    "confirmation",
    "confirmation_notes",
    "confirming",
    "edit",
    "execution_in",
    "explain",
    "export",
    "final_rows",
    "find_run",
    "flat",
    "foresight",
    "go_on",
    "hunt",
    "import_checkpoint",
    "intervene",
    "is_checkpoint",
    "is_folder",
    "load_study",
    "look_at_run",
    "look_for_anomalies",
    "not_planned",
    "open_executor",
    "out_of_reach",
    "outcomes",
    "pack",
    "pilot",
    "plan",
    "probe",
    "probe_checkpoint",
    "reading",
    "recommend",
    "refuse_address",
    "register",
    "relayout",
    "report",
    "retrofit",
    "run",
    "run_seed",
    "save_plan",
    "screened",
    "single",
    "size_job",
    "step_jobs",
    "stored_model",
    "submit",
    "submit_folder",
    "task_run",
    "unpack",
    "write_look",
]
