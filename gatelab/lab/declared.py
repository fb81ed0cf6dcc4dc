"""What a study's folder declares before its results are seen: its screen, and the confirmation of what that found."""

from ..analysis.registration import Registration
from ..store import StoreError, StudyFolder, read_json

FDR = 0.10
SCREEN, CONFIRMATION = "screen.json", "confirmation.json"


def registration_of(folder: StudyFolder) -> Registration | None:
    """The confirmation that was registered; None where there is none.

    Raises:
        StoreError: one that was edited.
    """
    path = folder.path / CONFIRMATION
    if not path.exists():
        return None
    stored = read_json(path)
    try:
        return Registration.read(stored)
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from None
