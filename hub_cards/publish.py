# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pushing a stage: one commit with weights, code, processor and card, and a tag on that commit.

    publish("runs/a", "user/repo", stage=2)      ->  from_pretrained("user/repo", revision="stage2")

Everything is in one commit, so a push that is interrupted leaves the repository as it was; large files that have
arrived are not sent again. Parts whose source is a local folder are stored in the repository.
"""

import contextlib
import glob
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, errors
from safetensors import SafetensorError

from xllm.hub_cards.cards import model_card, read_results
from xllm.hub_cards.contents import check_weights, gather, stale_files
from xllm.hub_cards.remote_code import export_code
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import read_json


logger = logging.getLogger(__name__)


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
        stage: the one to push; by default what the checkpoint says it is.
        repo_id, revision: "user/repo" and the branch that gets the commit; made if they do not exist.
        tag, replace: default "stage<N>"; whether to move a tag that exists.
        private: the repository is made private, and must be.
        license, results: licence of what is stored, and a file of results (`results.json`), for the card.
        token: default the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        the commit, whose `oid` the tag pins.

    Raises:
        PublishError: the checkpoint is incomplete, damaged or of another stage, the tag exists, the repository is
            public, the Hub cannot be reached or refuses the token.
    """
    folder, number = find_stage(Path(model), stage)
    tag = tag or (None if number is None else f"stage{number}")
    check_files(folder)
    read_results(results or folder / "results.json")
    api = HfApi(token=token, library_name="xllm-transformers")
    with hub_errors(repo_id), _workplace(folder) as prepared:
        refs = _open_repository(api, repo_id, revision, tag, private, replace)
        if left_out := _prepare(folder, prepared):
            logger.warning("%s: left out, not part of a checkpoint: %s", folder, ", ".join(left_out))
        licenses = _tower_licenses(api, prepared)
        card = model_card(prepared, repo_id, tag or revision, license, licenses, results)
        card.save(prepared / "README.md")
        ours = {path.relative_to(prepared).as_posix() for path in prepared.rglob("*")}
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=prepared,
            revision=revision,
            commit_message=f"Push {tag or 'checkpoint'}",
            delete_patterns=[glob.escape(name) for name in stale_files(api, repo_id, revision, ours)],
        )
        if tag is not None:
            _set_tag(api, repo_id, tag, commit.oid, revision, tag in refs)
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
    """A `PublishError` that names the file if one of the checkpoint is missing or damaged."""
    if not (folder / "processor_config.json").is_file():
        raise PublishError(f"{folder}: has no processor_config.json; save the processor beside the model")
    try:
        check_weights(folder)
    except SafetensorError as error:
        raise PublishError(f"{folder}: a weight file is damaged: {error}; save the checkpoint again") from error
    except (OSError, ValueError) as error:
        raise PublishError(str(error)) from error


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder for what is pushed, mostly links.

    Weights that are put together lie beside the checkpoint; where the process is killed, the next push removes them.
    """
    beside, name = folder.resolve().parent, f".{folder.resolve().name}.push-"
    for old in beside.glob(f"{name}*"):
        try:
            os.kill(int(old.name.removeprefix(name).split("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(old, ignore_errors=True)
    where = {"dir": beside, "prefix": f"{name}{os.getpid()}-"} if _local_towers(folder) else {}
    with tempfile.TemporaryDirectory(**where) as prepared:
        yield Path(prepared)


ADVICE = (
    (errors.GatedRepoError, "access is restricted: ask for it on the repository's page"),
    (errors.RevisionNotFoundError, "has no such branch, tag or commit"),
    (errors.RepositoryNotFoundError, "no such repository, or a private one that this token may not see"),
    (errors.OfflineModeIsEnabled, "offline mode is on: unset HF_HUB_OFFLINE to push"),
    (errors.HFValidationError, "no name of a repository: expected user/name"),
)


@contextlib.contextmanager
def hub_errors(repo_id: str):
    """The Hub's errors as `PublishError`s of one sentence; every push can be repeated."""
    try:
        yield
    except PublishError:
        raise
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        advice = next((text for kind, text in ADVICE if isinstance(error, kind)), None)
        if advice is None and isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            advice = f"the Hub answered {status}: {error.server_message or error}"
            if status in (401, 403):
                how = "log in with `hf auth login`, or give a token with write access"
                advice = f"not allowed to write ({status}): {how}"
        # errors.HTTPError is the HTTP library's own; the client wraps what goes wrong while a large file is sent.
        if advice is None and errors.HTTPError in (*type(error).__mro__, *type(error.__cause__).__mro__):
            advice = f"the Hub cannot be reached ({error}); the push can be repeated"
        if advice is None:
            raise
        raise PublishError(f"{repo_id}: {advice}") from error


def _open_repository(
    api: HfApi, repo_id: str, revision: str, tag: str | None, private: bool, replace: bool
) -> set[str]:
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


def _prepare(folder: Path, prepared: Path) -> list[str]:
    """What will be in the repository, less the card; returns the names of what is left out."""
    left_out = gather(folder, prepared)
    local = _local_towers(folder)
    if local:
        model = XLLMForConditionalGeneration.from_pretrained(folder)
        model.config.towers = {part: tower for part, tower in model.config.towers.items() if part not in local} or None
        for path in prepared.glob("model*.safetensors*"):
            path.unlink()
        model.save_pretrained(prepared)
    export_code(prepared)
    return left_out


def _local_towers(folder: Path) -> list[str]:
    """Parts whose source is a folder of this machine."""

    def is_local(source: str) -> bool:
        return source.startswith((".", "/", "~")) or Path(folder, source).is_dir() or Path(source).is_dir()

    towers = read_json(folder / "config.json").get("towers") or {}
    return [part for part, tower in towers.items() if is_local(tower["name_or_path"])]


def _tower_licenses(api: HfApi, prepared: Path) -> dict[str, str]:
    """Licences that the towers' own cards state, by Hub id."""
    found = {}
    towers = read_json(prepared / "config.json").get("towers") or {}
    for source in {tower["name_or_path"] for tower in towers.values()}:
        with contextlib.suppress(errors.HfHubHTTPError):  # gated or elsewhere: the card says to look there
            card = api.model_info(source).card_data
            if card is not None and card.license:
                found[source] = card.license
    return found


def _set_tag(api: HfApi, repo_id: str, tag: str, oid: str, revision: str, exists: bool) -> None:
    try:
        if exists:
            api.delete_tag(repo_id, tag=tag)
        api.create_tag(repo_id, tag=tag, revision=oid)
    except (errors.HfHubHTTPError, errors.HTTPError) as error:
        raise PublishError(
            f"{repo_id}: all files are there ({revision} is at {oid[:8]}), but the tag {tag} is not set ({error}); "
            "the push can be repeated: it will only set the tag"
        ) from error
