"""What was planned and has no rows, with the command that makes them."""

from typing import TYPE_CHECKING

from .markup import Html, tag

if TYPE_CHECKING:
    from ..analysis.planned import Open


def not_run(planned: "list[Open]") -> Html | None:
    """A line a study; None where nothing waits."""
    if not planned:
        return None
    rows = [
        tag(
            "li", tag("b", o.study), f": {o.n_open:,} of {o.n_runs:,} runs{f' ({o.note})' if o.note else ''}. {o.question} ",
            tag("code", o.command),
        )
        for o in planned
    ]  # fmt: skip
    n = sum(o.n_open for o in planned)
    lead = (
        f"{n:,} runs of {len(planned)} stud{'ies' if len(planned) != 1 else 'y'} that are written down have no rows here. A study"
        " of text reads train.bin and val.bin, unless data.paths= and data.val_paths= name other files."
    )
    return tag("div", tag("h3", "Planned, not run"), tag("p", lead, class_="about"), tag("ul", rows), id="planned")
