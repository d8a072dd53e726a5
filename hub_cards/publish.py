# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pushing a stage: one commit with weights, code, processor and card, and a tag on that commit.

    publish("runs/a", "user/repo", stage=2)      ->  from_pretrained("user/repo", revision="stage2")

Everything is in one commit, so a push that is interrupted leaves the repository as it was; large files that have arrived are
not sent again. Parts whose source is a local folder are stored in the repository: nobody else has that folder.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the HTTP library's own, whichever that is: no connection, a connection cut
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from xllm.hub_cards.cards import model_card, read_results
from xllm.hub_cards.remote_code import export_code
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration


# What a run leaves beside its checkpoint and what stays here: logs and samples name local files, optimisers are big.
LEFT_OUT = ("README.md", "log.jsonl", "samples-*.jsonl", "*.pt", "*.pth", "*.bin", "trainer_state.json", ".*")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class PublishError(ValueError):
    """A checkpoint cannot be pushed, or the Hub refused it."""


def publish(
    model: str | Path,
    repo_id: str,
    stage: int | None = None,
    revision: str = "main",
    tag: str | None = None,
    replace: bool = False,
    private: bool = False,
    license: str | None = None,
    results: str | Path | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push a checkpoint folder, or the stage of a run that is asked for, as one commit with a tag.

    Args:
        model: folder of a checkpoint, or of a run with several (`stage2-speech/`, ...).
        repo_id (`str`): "user/repo"; made if it does not exist.
        stage (`int`, *optional*): the stage to push; by default what the checkpoint says it is.
        revision (`str`): branch that gets the commit; made from "main" if it does not exist.
        tag (`str`, *optional*): default "stage<N>". replace (`bool`): move a tag that exists.
        private (`bool`): the repository is made private, and must be.
        license (`str`, *optional*): of what is stored, for the card.
        results (*optional*): a file of measured results; default the folder's `results.json`.
        token (`str`, *optional*): default the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        `CommitInfo`: `oid` is the commit that the tag pins.

    Raises:
        PublishError: the checkpoint is incomplete or of another stage, the tag exists, the repository is public, the Hub
            cannot be reached or refuses the token.
    """
    folder, number = find_stage(Path(model), stage)
    tag = tag or (None if number is None else f"stage{number}")
    check_files(folder)
    read_results(results or folder / "results.json")
    api = HfApi(token=token, library_name="xllm-transformers")
    with hub_errors(repo_id), tempfile.TemporaryDirectory() as prepared:
        refs = _open_repository(api, repo_id, revision, tag, private, replace)
        _prepare(folder, Path(prepared))
        licenses = _tower_licenses(api, Path(prepared))
        card = model_card(prepared, repo_id, tag or revision, license, licenses, results)
        card.save(Path(prepared, "README.md"))
        commit = _commit(api, repo_id, Path(prepared), revision, f"Push {tag or 'checkpoint'}")
        if tag is not None:
            if tag in refs:
                api.delete_tag(repo_id, tag=tag)
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


def find_stage(folder: Path, stage: int | None) -> tuple[Path, int | None]:
    """The checkpoint of a stage in `folder` or one level below, and its stage (`None`: it was never trained).

    Raises:
        PublishError: there is none, or more than one; the message names what is there.
    """
    configs = [folder / "config.json"] if (folder / "config.json").is_file() else sorted(folder.glob("*/config.json"))
    found = {}
    for path in configs:
        try:
            found[path.parent] = (json.loads(path.read_text(encoding="utf-8")).get("stage") or {}).get("stage")
        except (json.JSONDecodeError, AttributeError) as error:
            raise PublishError(f"{path}: not a config: {error}") from error
    wanted = {path: number for path, number in found.items() if stage is None or number == stage}
    if len(wanted) == 1:
        return next(iter(wanted.items()))
    there = ", ".join(f"{path.name} (stage {number})" for path, number in found.items()) or "no checkpoint"
    asked = "one checkpoint" if stage is None else f"one checkpoint of stage {stage}"
    raise PublishError(f"{folder}: expected {asked}, found {there}")


def check_files(folder: Path) -> None:
    """Fail if a file of the checkpoint is missing or damaged.

    Raises:
        PublishError: the message names the file.
    """
    if not (folder / "processor_config.json").is_file():
        raise PublishError(f"{folder}: has no processor_config.json; save the processor beside the model")
    shards = [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    for name in shards:
        if not (folder / name).is_file():
            raise PublishError(f"{folder}: has no {name}; save the checkpoint again")
        try:
            safe_open(folder / name, framework="pt").__exit__(None, None, None)
        except SafetensorError as error:
            raise PublishError(f"{folder / name}: damaged: {error}; save the checkpoint again") from error


@contextlib.contextmanager
def hub_errors(repo_id: str):
    """The Hub's errors as `PublishError`s of one sentence; every push can be repeated."""
    try:
        yield
    except GatedRepoError as error:
        raise PublishError(f"{repo_id}: access is restricted: ask for it on the repository's page") from error
    except RevisionNotFoundError as error:
        raise PublishError(f"{repo_id}: has no such branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise PublishError(f"{repo_id}: no such repository, or a private one that this token may not see") from error
    except OfflineModeIsEnabled as error:
        raise PublishError(f"{repo_id}: offline mode is on: unset HF_HUB_OFFLINE to push") from error
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} is no repository name: expected user/name") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            advice = "log in with `hf auth login`, or give a token with write access to it"
            raise PublishError(f"{repo_id}: not allowed to write ({status}): {advice}") from error
        raise PublishError(f"{repo_id}: the Hub answered {status}: {error.server_message or error}") from error
    except (HTTPError, RuntimeError) as error:
        if not isinstance(error, HTTPError) and not isinstance(error.__cause__, HTTPError):
            raise  # not of the client, which wraps what goes wrong while a large file is sent
        raise PublishError(f"{repo_id}: the Hub cannot be reached ({error}); the push can be repeated") from error


def _open_repository(api, repo_id, revision, tag, private, replace) -> set[str]:
    """Make repository and branch if need be; returns the tags that exist."""
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise PublishError(f"{repo_id}: --private was asked for, but the repository exists and is public")
    refs = api.list_repo_refs(repo_id)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if tag in tags and not replace:
        raise PublishError(f"{repo_id}: has a tag {tag} (at {tags[tag][:8]}); choose another --tag, or --replace it")
    if revision not in {ref.name for ref in refs.branches}:
        api.create_branch(repo_id, branch=revision)
    return set(tags)


def _prepare(folder: Path, prepared: Path) -> None:
    """What will be in the repository, less the card: files as links where nothing changes in them."""
    files = [path for path in folder.iterdir() if path.is_file() and not any(map(path.match, LEFT_OUT))]
    for path in files:
        if path.suffix in (".json", ".jinja"):
            shutil.copyfile(path, prepared / path.name)
        else:
            (prepared / path.name).symlink_to(path.resolve())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    towers = config.get("towers") or {}
    if any(_is_local(tower["name_or_path"], folder) for tower in towers.values()):
        model = XLLMForConditionalGeneration.from_pretrained(folder)
        kept = {part: tower for part, tower in towers.items() if not _is_local(tower["name_or_path"], folder)}
        model.config.towers = kept or None
        for path in prepared.glob("model*.safetensors*"):
            path.unlink()
        model.save_pretrained(prepared)
    export_code(prepared)


def _is_local(source: str, folder: Path) -> bool:
    return source.startswith((".", "/", "~")) or Path(folder, source).is_dir() or Path(source).is_dir()


def _tower_licenses(api: HfApi, prepared: Path) -> dict[str, str]:
    """Licences that the towers' own cards state, by Hub id."""
    config = json.loads((prepared / "config.json").read_text(encoding="utf-8"))
    found = {}
    for source in {tower["name_or_path"] for tower in (config.get("towers") or {}).values()}:
        with contextlib.suppress(HfHubHTTPError):  # a tower that is gated or elsewhere: the card says to look there
            card = api.model_info(source).card_data
            if card is not None and card.license:
                found[source] = card.license
    return found


def _commit(api: HfApi, repo_id: str, prepared: Path, revision: str, message: str) -> CommitInfo:
    """One commit: our files, without the weights of an earlier push that are not among them."""
    names = {path.name for path in prepared.iterdir()}
    there = api.list_repo_files(repo_id, revision=revision)
    stale = [name for name in there if name.startswith("model") and ".safetensors" in name and name not in names]
    operations = [CommitOperationAdd(name, str((prepared / name).resolve())) for name in sorted(names)]
    operations += [CommitOperationDelete(name) for name in stale]
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision)


__all__ = ["PublishError", "check_files", "find_stage", "hub_errors", "publish"]
