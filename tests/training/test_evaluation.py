# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm evaluate`: killed and gone on with, on two processes, rows that cannot be used, what its folder holds."""

import json
import os
import random
import re
import shutil
import signal

import jiwer
import numpy as np
import pytest
from killed_runs import in_child
from process_runs import TORCHRUN, run

from xllm.cli import main
from xllm.training.evaluation.answer_log import AnswerLog
from xllm.training.evaluation.intervals import bootstrap_interval, interval


TEXTS = ["one", "two words", "a red dog", "b", "low", "high", "three", "what is this", "yes", "no", "left", "right"]


@pytest.fixture
def data(media, tmp_path):
    """A folder with the media of its own."""
    return shutil.copytree(media, tmp_path / "data")


@pytest.fixture
def command(data, tiny_checkpoint):
    """An evaluation of twelve rows: clips, pictures and a film, in messages."""
    shutil.copy(data / "clip.mp4", data / "other.mp4")
    files = [("audio", "low.wav"), ("image", "red.png"), ("audio", "high.wav"), ("image", "blue.png")]
    files += [("video", "clip.mp4"), ("video", "other.mp4")]
    lines = []
    for number, text in enumerate(TEXTS):
        kind, file = files[number % len(files)]
        content = [{"type": kind, "path": file}, {"type": "text", "text": "what " * (number % 3) + "is this"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": text}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (data / "rows.jsonl").write_text("".join(lines))
    options = ["--data", str(data / "rows.jsonl"), "--batch-size", "2", "--max-new-tokens", "4"]
    return ["evaluate", str(tiny_checkpoint), "--task", "asr", *options]


def without_time(folder):
    return (folder / "samples_asr.jsonl").read_text()


def test_an_evaluation_that_was_killed_goes_on(command, tmp_path, capfd):
    """SIGKILL at ten moments, in the middle of a line too; nothing is asked twice, and the file is the same."""
    assert in_child(lambda: main([*command, "--output", str(tmp_path / "whole")])) == 0
    whole, rng = without_time(tmp_path / "whole"), random.Random(0)
    for moment in range(10):
        folder, after, torn = tmp_path / str(moment), rng.randint(1, 5), rng.random() < 0.5

        def killed(folder=folder, after=after, torn=torn):
            add, count = AnswerLog.add, [0]

            def add_and_die(self, lines):
                add(self, lines)
                count[0] += 1
                if count[0] == after:
                    if torn:
                        self._own.write('{"n": 99, "whe')
                        self._own.flush()
                    os.kill(os.getpid(), signal.SIGKILL)

            AnswerLog.add = add_and_die
            main([*command, "--output", str(folder)])

        assert in_child(killed) == -signal.SIGKILL
        assert not (folder / "samples_asr.jsonl").exists()
        capfd.readouterr()
        assert in_child(lambda folder=folder: main([*command, "--output", str(folder), "--json"])) == 0
        assert json.loads(capfd.readouterr().out)["found"] == 2 * after
        assert without_time(folder) == whole
        assert {path.name for path in folder.iterdir()} == {
            "samples_asr.jsonl", "results.json", "report.html", "cer.txt", ".answers_asr.json",
        }  # fmt: skip


def test_a_finished_evaluation_is_scored_anew_without_the_model(command, tmp_path, capsys, monkeypatch):
    folder = ["--output", str(tmp_path / "out"), "--json"]
    assert main([*command, *folder]) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("xllm.training.evaluation.answers.generated", None)
    assert main([*command, *folder, "--normalizer", "basic"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["found"] == len(TEXTS)
    assert again["reference"] <= first["reference"]
    sample = json.loads((tmp_path / "out/samples_asr.jsonl").read_text().splitlines()[0])
    assert sample["normalized_reference"] == "one"
    longer = ["5" if argument == "4" else argument for argument in command]
    for changed in (longer, [*command, "--limit", "3"]):
        assert main([*changed, *folder]) == 1
        err = capsys.readouterr().err
        assert re.search(r"answers of another evaluation called asr, with other (max_new_tokens|data_sha256);", err)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(command, tmp_path, capsys):
    assert main([*command, "--output", str(tmp_path / "one"), "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    done = run(*TORCHRUN, "-m", "xllm", *command, "--output", str(tmp_path / "two"), "--json")
    two = json.loads(done.stdout)  # the first process alone prints
    speed = {"seconds": 0, "times_real_time": 0}
    assert {**two, **speed} == {**one, **speed}
    assert without_time(tmp_path / "two") == without_time(tmp_path / "one")


def test_what_the_folder_holds(command, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main([*command, "--output", str(folder), "--json", "--examples", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    samples = [json.loads(line) for line in without_time(folder).splitlines()]
    assert [sample["reference"] for sample in samples] == TEXTS
    assert [sample["n"] for sample in samples] == list(range(len(TEXTS)))
    assert samples[4]["media"][0].endswith("clip.mp4")
    references, answers = ([sample[key] for sample in samples] for key in ("reference", "answer"))
    assert found["value"] == pytest.approx(jiwer.cer(references, answers))
    errors = sum(found[key] for key in ("substitutions", "deletions", "insertions"))
    assert sum(sample["cer"][0] for sample in samples) == errors
    assert sum(sample["cer"][1] for sample in samples) == found["reference"]
    low, high = found["interval"]
    assert low <= found["value"] <= high

    results = json.loads((folder / "results.json").read_text())
    assert {"results", "configs", "versions", "n-samples", "config", "date"} == results.keys()
    assert results["results"]["asr"]["cer,none"] == found["value"]
    assert results["n-samples"]["asr"] == {"original": len(TEXTS), "effective": len(TEXTS)}
    aligned = (folder / "cer.txt").read_text(encoding="utf-8")
    assert f"N={sum(len(text.split()) for text in TEXTS)} " in aligned.splitlines()[-3]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"asr: cer {found['value']:.2%}" in page
    assert page.count("<h3>") == 5
    assert "<audio" in page or "<img" in page
    # a second task beside the first
    assert main([*command[:3], "qa", *command[4:], "--output", str(folder)]) == 0
    assert json.loads((folder / "results.json").read_text())["results"].keys() == {"asr", "qa"}


def test_rows_that_cannot_be_used(command, data, tmp_path, capsys):
    """A clip that is none, found when it is decoded; later, a file that is not there, found before."""
    lines = (data / "rows.jsonl").read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace("high.wav", "broken.wav")
    (data / "rows.jsonl").write_text("".join(lines))
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    assert re.search(r"rows\.jsonl:3: .*broken\.wav", capsys.readouterr().err)
    assert main([*command, "--output", str(tmp_path / "out"), "--on-error", "skip"]) == 0
    assert "n = 11, 1 skipped" in capsys.readouterr().out
    sample = json.loads(without_time(tmp_path / "out").splitlines()[2])
    assert sample.keys() == {"n", "where", "skipped"}
    assert "broken.wav" in sample["skipped"]
    assert "broken.wav" in (tmp_path / "out/report.html").read_text()
    shutil.copy(data / "high.wav", data / "broken.wav")  # what was skipped is tried again
    assert main([*command, "--output", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["found"], found["skipped"]) == (12, 11, 0)

    (data / "clip.mp4").unlink()
    assert main([*command, "--output", str(tmp_path / "other")]) == 1
    assert re.search(r"rows\.jsonl:5: no such file: .*clip\.mp4", capsys.readouterr().err)
    assert main([*command, "--output", str(tmp_path / "other"), "--on-error", "skip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["skipped"]) == (10, 2)
    last = json.loads(without_time(tmp_path / "other").splitlines()[-1])
    assert last["where"].endswith("rows.jsonl:11")
    assert "clip.mp4" in last["skipped"]


def test_empty_references_are_counted_and_listed(command, data, tmp_path, capsys):
    lines = (data / "rows.jsonl").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"two words"', '" "')
    (data / "rows.jsonl").write_text("".join(lines[:3]))
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [where.rpartition(":")[2] for where in found["empty_references"]] == ["2"]
    assert found["n"] == 3
    assert main(command) == 0
    assert "n = 3, 1 with an empty reference" in capsys.readouterr().out
    (data / "rows.jsonl").write_text(lines[1].replace('" "', '""'))
    assert main(command) == 1
    assert "references hold no character: there is no error rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["--where", "task"], "--where takes COLUMN=VALUE, got 'task'"),
        (["--where", "=a"], "--where takes COLUMN=VALUE, got '=a'"),
        (["--where", "speaker=a"], r"rows.jsonl:1: no column 'speaker' to choose by; the columns are messages, group"),
        (["--where", "group=c"], r"no row is left \(where \{'group': \['c'\]\}, exclude none\)"),
        (["--where", "group=a", "--exclude", "group=a"], r"no row is left"),
        (["--where", "group=a"], 6), (["--where", "group=a,b"], 12), (["--exclude", "group=a,"], 6),
        (["--exclude", "nothing=a"], 12), (["--where", "group=a,place=0"], 2),
    ],
)  # fmt: skip
def test_choosing_rows(command, data, capsys, monkeypatch, where, message):
    monkeypatch.setattr(
        "xllm.training.evaluation.answers.generated",
        lambda model, processor, rows, max_new_tokens: [{"text": "x"} for _ in rows],
    )
    lines = [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()]
    marked = [{**line, "group": "ab"[n % 2], "place": str(n % 6)} for n, line in enumerate(lines)]
    (data / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in marked))
    if isinstance(message, int):
        assert main([*command, *where, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["n"] == message
    else:
        assert main([*command, *where]) == 1
        assert re.search(message, capsys.readouterr().err)


def test_options_that_would_change_nothing_are_refused(command, capsys):
    for task, option in (
        ("retrieval", ["--media", "blank"]), ("retrieval", ["--metric", "cer"]), ("text", ["--output", "x"]),
        ("text", ["--on-error", "skip"]),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main([*command[:3], task, *command[4:6], *option])
        assert f"--task {task} does not take {option[0]}" in capsys.readouterr().err


def test_a_medium_that_has_changed_is_asked_about_again(command, data, tmp_path, capsys, caplog):
    """Other bytes under the same name: of the rows with that picture alone; another date is no change."""
    folder = tmp_path / "out"
    run = [*command, "--output", str(folder), "--json"]
    assert main(run) == 0
    first = [json.loads(line) for line in without_time(folder).splitlines()]
    (data / "low.wav").touch()
    shutil.copy(data / "blue.png", data / "red.png")
    capsys.readouterr()
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out)["found"] == 10
    assert "2 rows are asked about again, for their media have changed" in caplog.text
    again = [json.loads(line) for line in without_time(folder).splitlines()]
    changed = [one["n"] for one, other in zip(first, again) if one["media_sha256"] != other["media_sha256"]]
    assert changed == [number for number, sample in enumerate(first) if sample["media"][0].endswith("red.png")]
    assert len(again) == len(TEXTS)
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out)["found"] == 12


def test_an_old_answer_in_a_part_is_forgotten_too(tmp_path):
    """A killed run's part holds the answer about the medium as it was; what another process finds since stays."""
    old = AnswerLog(tmp_path, "asr", {"model": "m"})
    old.add([{"n": 0, "answer": "old", "media_sha256": "a"}, {"n": 1, "answer": "kept", "media_sha256": "b"}])
    part = next(tmp_path.glob(".answers_asr.*.jsonl"))
    part.rename(tmp_path / ".answers_asr.zzz.jsonl")  # is read after that of this process
    log = AnswerLog(tmp_path, "asr", {"model": "m"})
    log.forget([0])
    log.add([{"n": 0, "answer": "new", "media_sha256": "c"}])
    assert [line["answer"] for line in log.join()] == ["new", "kept"]


def test_a_checkpoint_is_no_folder_of_results(command, tiny_checkpoint, capsys):
    assert main([*command, "--output", str(tiny_checkpoint)]) == 1
    assert "a checkpoint lies there; choose another folder" in capsys.readouterr().err


def test_the_interval_of_a_proportion():
    """Of 100 draws with p = 0.3, by the normal approximation 0.3 +- 1.96 * sqrt(0.3 * 0.7 / 100)."""
    low, high = bootstrap_interval([(1, 1)] * 30 + [(0, 1)] * 70)
    assert (low, high) == pytest.approx((0.21, 0.39), abs=0.02)
    assert bootstrap_interval([(0, 5)] * 4) == (0.0, 0.0)


def test_a_share_of_right_answers_is_never_certain():
    """Wilson's interval of 0 of 10 ends at z^2 / (10 + z^2); where rows are no right or wrong, they are drawn anew."""
    assert interval([(0, 1)] * 10) == pytest.approx([0, 3.8415 / 13.8415], abs=1e-4)
    assert interval([(1, 1)] * 10) == pytest.approx([10 / 13.8415, 1], abs=1e-4)
    assert interval([(True, 1)] * 30 + [(False, 1)] * 70) == pytest.approx([0.2189, 0.3958], abs=1e-4)
    for rows in ([(0.3, 1), (1, 1)] * 5, [(1, 4), (0, 2)] * 5):
        assert interval(rows) == list(bootstrap_interval(rows))


def test_questions_with_other_media_than_their_own(command, tmp_path, capsys, monkeypatch):
    """What the model is given is looked at: it answers with the media that it got."""
    given = []

    def answer(model, processor, rows, max_new_tokens):
        media = [[part for turn in row for part in turn["content"] if part["type"] != "text"] for row in rows]
        given.extend(media)
        return [{"text": "one" if parts else "x"} for parts in media]

    monkeypatch.setattr("xllm.training.evaluation.answers.generated", answer)
    run = [*command, "--output", str(tmp_path / "out"), "--json"]
    assert main(run) == 0
    capsys.readouterr()
    samples = {}
    for choice in ("shuffled", "blank", "absent"):
        given.clear()
        assert main([*run, "--media", choice]) == 0
        found = json.loads(capsys.readouterr().out)
        lines = (tmp_path / f"out/samples_asr-{choice}.jsonl").read_text().splitlines()
        samples[choice] = [json.loads(line) for line in lines]
        assert found["difference"]["n"] == len(TEXTS) == len(samples[choice])
        if choice == "blank":
            values = [np.asarray(medium_of(part)) for parts in given for part in parts]
            assert len(values) == len(TEXTS)
            assert all((value == (128 if value.dtype == np.uint8 else 0)).all() for value in values)
    real = [json.loads(line) for line in without_time(tmp_path / "out").splitlines()]
    for own, other in zip(real, samples["shuffled"]):
        assert own["question"] == other["question"]
        assert own["media"] != other["media"]
        assert own["media"][0][-3:] == other["media"][0][-3:]  # of the same kind
    assert all(sample["media"] == [] and sample["answer"] == "x" for sample in samples["absent"])
    assert found["difference"]["value"] == pytest.approx(found["value"] - jiwer.cer(TEXTS, ["one"] * len(TEXTS)))
    assert (tmp_path / "out/report_asr-absent.html").is_file()
    assert "asr-absent: cer" in (tmp_path / "out/report_asr-absent.html").read_text()
    assert "asr: cer" in (tmp_path / "out/report.html").read_text()


def test_the_same_clip_about_another_picture(data, tiny_checkpoint, tmp_path, capsys, monkeypatch):
    """Speech recognition with the right, a wrong and no picture: the clip stays."""
    given = []

    def answer(model, processor, rows, max_new_tokens):
        given.extend(
            {part["type"]: medium_of(part) for part in row[0]["content"] if part["type"] != "text"} for row in rows
        )
        return [{"text": "low"} for _ in rows]

    monkeypatch.setattr("xllm.training.evaluation.answers.generated", answer)
    pairs = [("red.png", "low.wav"), ("blue.png", "high.wav"), ("red.png", "high.wav")]
    rows = [
        {
            "task": f"image-text-speech/{task}", "images": [picture], "audios": [clip],
            "messages": [{"role": "user", "content": "<image><audio>?"}, {"role": "assistant", "content": "low"}],
        }
        for task in ("transcribe", "answer") for picture, clip in pairs
    ]  # fmt: skip
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["evaluate", str(tiny_checkpoint), "--task", "asr", "--data", str(data / "test.jsonl"), "--json"]
    run += ["--where", "task=image-text-speech/transcribe", "--output", str(tmp_path / "out"), "--batch-size", "1"]
    assert main(run) == 0
    own, found = list(given), {}
    for choice in ("shuffled", "blank", "absent"):
        given.clear()
        assert main([*run, "--media", choice, "--media-of", "image"]) == 0
        found[choice] = list(given)
        assert (tmp_path / f"out/samples_asr-{choice}-image.jsonl").is_file()
    assert len(own) == 3
    for choice, media in found.items():
        for mine, others in zip(own, media):
            assert (mine["audio"] == others["audio"]).all(), choice
    red = [(np.asarray(one["image"])[0, 0] == (255, 0, 0)).all() for one in own]
    assert [(np.asarray(one["image"])[0, 0] == (255, 0, 0)).all() for one in found["shuffled"]] == [not a for a in red]
    assert all((np.asarray(one["image"]) == 128).all() for one in found["blank"])
    assert all("image" not in one for one in found["absent"])
    capsys.readouterr()
    for more, message in (
        (["--media-of", "image"], "media_of says which media are others than a row's own: choose media with it"),
        (["--media", "blank", "--media-of", "video"], "no row has media of the kinds video, which were to be others"),
        (["--media", "blank", "--media-of", "smell"], "no row of the model reads 'smell'"),
    ):
        assert main([*run, *more]) == 1
        assert message in capsys.readouterr().err


def medium_of(part):
    medium = part[part["type"]]
    return getattr(medium, "samples", getattr(medium, "frames", medium))


def test_media_that_cannot_be_shuffled(command, data, capsys):
    lines = [line for line in (data / "rows.jsonl").read_text().splitlines(keepends=True) if "red.png" in line]
    (data / "rows.jsonl").write_text("".join(lines))
    assert main([*command, "--media", "shuffled"]) == 1
    assert "rows.jsonl:1: no other row has other media of its kinds (image) to shuffle with" in capsys.readouterr().err
    assert main([*command, "--media", "none"]) == 1
    assert "media is 'none'; choose one of real, shuffled, blank, absent" in capsys.readouterr().err


def test_the_interval_of_a_difference_is_paired():
    """Rows that go up and down together differ by little, however much they vary."""
    rows = [(number % 10, 10) for number in range(100)]
    low, high = bootstrap_interval([(a + 1, b) for a, b in rows], rows)
    assert (low, high) == pytest.approx((0.1, 0.1))
