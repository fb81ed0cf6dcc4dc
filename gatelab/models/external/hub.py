"""A model of the Hugging Face hub by its id, `org/name` or `org/name@revision`: from the local cache, then by download.

Notable: what the cache has is not asked for again, so a branch may have moved since; the commit is in the notes. All files
are of one commit.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from .folder import check_family, stored_dtype
from .loading import Loading
from .source import Source, first_line

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_PATIENCE_S = 10


def is_hub_id(source: str | Path) -> bool:
    """Whether it reads as a hub id and is no path: nothing is there, nor is a folder of its first part."""
    text = str(source)
    is_file = text.endswith((".gguf", ".safetensors", ".bin", ".json"))
    return (
        bool(_ID.fullmatch(text))
        and not is_file
        and not os.path.exists(text)
        and not os.path.exists(text.partition("/")[0])
    )


def hub(source: str, loading: Loading) -> Source:
    """The checkpoint with an id; its configuration is fetched here.

    Raises:
        ValueError: it is not to be had, in one sentence.
    """
    from huggingface_hub import try_to_load_from_cache
    from transformers import PreTrainedConfig

    name, _, revision = source.partition("@")
    given = {"trust_remote_code": loading.trust_remote_code, "revision": revision or "main"}

    def explain(error: Exception) -> str | None:
        return _why(error, name, f"hf download {name}" + (f" --revision {revision}" if revision else ""))

    asked = Source(source, source, name, given, lambda: "float32", (True, False), _reach, explain=explain)
    config, _ = asked.read("its configuration", lambda given: PreTrainedConfig.get_config_dict(name, **given))
    check_family(source, config.get("model_type"), has_own_code="auto_map" in config, loading=loading)
    found = try_to_load_from_cache(name, "config.json", revision=given["revision"])
    if not isinstance(found, str):
        return asked
    snapshot = Path(found).parent
    return Source(
        source, source, name, given | {"revision": snapshot.name}, lambda: stored_dtype(snapshot), (True, False), _reach,
        explain=explain, notes=(f"it is commit {snapshot.name[:12]} of the hub's {name}",),
    )  # fmt: skip


def _reach() -> None:
    """Fail at once where the hub is out of reach: each file would be asked for six times in half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)


def _why(error: Exception, name: str, command: str) -> str | None:
    """What a user can do about an error of the hub; None for one of another kind."""
    from huggingface_hub import constants, errors

    causes = list(_causes(error))
    if any(isinstance(e, errors.GatedRepoError) for e in causes):
        return f"its owners ask for an agreement; give it on huggingface.co/{name} and log in with `hf auth login`"
    if any(isinstance(e, errors.RevisionNotFoundError) for e in causes):
        return f"{name} has no such revision; huggingface.co/{name} lists its branches and tags"
    if any(isinstance(e, errors.RepositoryNotFoundError) for e in causes):
        return (
            "is no folder or file here and no public model of the hub; name a local folder, or log in if it is private"
        )
    if "does not appear to have a file named model.safetensors" in str(error):
        return "no safetensors weights of it were found, and pickled ones are opened only with --allow-pickle"
    known = (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, ConnectionError, TimeoutError)
    if any(isinstance(e, known) or type(e).__module__.partition(".")[0].startswith("httpx") for e in causes):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else first_line(causes[-1])
        return (
            f"is no folder or file here, is not wholly in the cache ({constants.HF_HUB_CACHE}), and the hub was not reached "
            f"({why}); name a local folder, or run `{command}` where there is a network"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came from, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
