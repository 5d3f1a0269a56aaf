"""Upload of a result folder to the Hugging Face hub, through `huggingface_hub`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashdmd_cli.runs.errors import InputError


def upload(folder: Path, repo: str, paths: Sequence[str], message: str) -> str:
    """Create the model repository `repo` (`owner/name`) if it does not exist, and commit these files of `folder` to it.

    Returns its address. Files that are there already are not sent again. Raises `InputError` if the hub cannot be
    reached or does not accept the files.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub import errors as hub

    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(paths), commit_message=message)
    except hub.OfflineModeIsEnabled:
        raise InputError(f"--push {repo}: HF_HUB_OFFLINE forbids it", hint=AGAIN) from None
    except hub.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise InputError(
                f"--push {repo}: {constants.ENDPOINT} does not let you write there",
                hint="hf auth login, or HF_TOKEN=..., with a token that may write",
            ) from None
        raise InputError(f"--push {repo}: {constants.ENDPOINT} answers: {first_line(error)}", hint=AGAIN) from None
    except (hub.HTTPError, OSError, ValueError) as error:
        raise InputError(
            f"--push {repo}: {constants.ENDPOINT} cannot be reached: {first_line(error)}", hint=AGAIN
        ) from None
    return str(url)


AGAIN = "the export is finished; the same command again only uploads it"


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
