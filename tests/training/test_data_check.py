# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm check`: every fault is put into a file for real, found, named with its row, and ends nothing."""

import contextlib
import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image
from worker_faults import fail_to_start, make_doubler

from xllm.assembly.processors import save
from xllm.cli import main
from xllm.training.batches.collator import chat_settings
from xllm.training.data.plan import plan_data
from xllm.training.inspection.data_check import LoadersAlone, SampleChecker, read_group
from xllm.training.inspection.data_summary import check_data
from xllm.training.inspection.worker_processes import TaskFailed, WorkerDied, map_tasks
from xllm.training.progress import ProgressLine


def ask(text, answer="grey", **media):
    """A row of messages: a question about files by part type, and its answer."""
    parts = [{"type": kind, "path": path} for kind, path in media.items()]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}, say(answer)]}


def say(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def files(tmp_path):
    """Sound files, and the same with a fault each."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.jpg")
    Image.fromarray(noise).save(tmp_path / "copy.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    write_wav(tmp_path / "good.wav", [sine(2.0)])
    (tmp_path / "empty.wav").write_bytes(b"")
    write_video(tmp_path / "good.mp4", grey_frames(30), options={"movflags": "faststart"})
    film = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(film[: len(film) // 2])
    return tmp_path


def write(folder, rows, name="data.jsonl"):
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(folder / name)


WRONG_KEY = {"type": "image", "file": "good.jpg"}
FAULTS = {  # line of the file -> row, reason, part of the message
    2: (ask("?", image="half.jpg"), "medium", "half.jpg: damaged image"),
    3: (ask("?", video="half.mp4"), "medium", "half.mp4: "),
    4: (ask("?", audio="empty.wav"), "medium", "empty.wav: empty: 0 bytes"),
    5: (ask("?", image="gone.jpg"), "missing", "no such file"),
    6: ({"message": []}, "row", "cannot tell the format"),
    7: ("{broken", "row", "not JSON"),
    8: ({"messages": [{"role": "user", "content": [WRONG_KEY]}, say("a")]}, "row", "image"),
    9: (ask("?", "  ", image="good.jpg"), "answer", "the answer is empty"),
    10: (ask("?", image="copy.jpg"), "duplicate", "the same media and text as"),
    13: (ask("?", image="gone.jpg"), "missing", "no such file"),  # no duplicate: what it shows is not known
    12: ({"messages": [{"role": "user", "content": "?"}]}, "row", "the last message must be the assistant's"),
}  # fmt: skip
LINES = {1: ask("?", image="good.jpg"), 11: ask("And?", image="good.jpg")}


def bad_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("with_model", [False, True])
def test_every_fault_is_found_and_ends_nothing(files, tiny_checkpoint, capsys, with_model):
    rows = {**LINES, **{line: row for line, (row, _, _) in FAULTS.items()}}
    data, output = write(files, [rows[line] for line in sorted(rows)]), files / "bad.jsonl"
    model = ["--model", str(tiny_checkpoint)] if with_model else []
    assert main(["check", data, *model, "--workers", "0", "--output", str(output)]) == 1
    out, err = capsys.readouterr()
    found = {int(row["where"].rpartition(":")[2]): row for row in bad_rows(output)}
    assert {line: row["reason"] for line, row in found.items()} == {line: fault[1] for line, fault in FAULTS.items()}
    for line, (_, _, message) in FAULTS.items():
        assert message in found[line]["message"]
    assert found[2]["field"] == "messages[0].content[0]"
    assert "2 rows: same media, other text" in out
    assert "bad           11 (row 4, medium 3, missing 2, answer 1, duplicate 1)" in out
    assert "check: row " in err
    assert f"11 bad rows; all of them are in {output}" in err


def test_good_data_is_counted(files, tiny_checkpoint, tiny_processor, capsys):
    rows = [ask("?", image="good.jpg"), ask("?", video="good.mp4"), ask("?", audio="good.wav"), ask("1 2")]
    command = ["check", write(files, rows), "--model", str(tiny_checkpoint), "--workers", "0", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    (group,) = report["groups"]
    assert (report["bad"], group["rows"], group["media"]) == (0, 4, {"image": 1, "video": 1, "audio": 1})
    assert group["seconds"]["audio"] == {"all": 2.0, "min": 2.0, "median": 2.0, "p95": 2.0, "max": 2.0}
    assert group["seconds"]["video"]["all"] == 3.0
    # 4 per picture, 5 frames of 4, and one placeholder per 8 of the clip's 200 frames
    assert group["row_tokens"] == {"image": 4, "video": 20, "speech": 25}
    text = tiny_processor.encode_conversations([[rows[3]["messages"][0]]])["input_ids"].shape[1]
    learnt = len(tiny_processor.tokenizer("grey", add_special_tokens=False)["input_ids"]) + 2  # <sop>, <eop>
    assert group["tokens"]["min"] == text + learnt - 1
    assert group["learnt"] == 4 * learnt


def test_text_that_is_too_long(files, tiny_checkpoint, capsys):
    long = "what is this " * 40
    turns = [{"role": "user", "content": "1"}, say("2"), {"role": "user", "content": "3"}, say("4")]
    data = write(files, [ask(long, image="good.jpg"), {"messages": turns}, ask("<ImageHere>")])
    command = ["check", data, "--model", str(tiny_checkpoint), "--workers", "0", "--json"]
    output = files / "bad.jsonl"
    assert main([*command, "data.max_length=20", "--output", str(output)]) == 1
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert (group["reasons"], group["cut"]) == ({"length": 1, "row": 1}, 1)
    placeholder, long_one = (row["message"] for row in bad_rows(output))
    assert "holds <ImageHere>" in placeholder
    assert "max_length is 20" in long_one
    data = write(files, [ask(long * 10)])  # over the 1,024 positions of the tiny model, without a limit set
    assert main([*command[:1], data, *command[2:]]) == 1
    assert json.loads(capsys.readouterr().out)["groups"][0]["reasons"] == {"length": 1}


def test_a_recipe_is_checked_stage_by_stage(files, tiny_checkpoint, capsys):
    table = files / "speech.csv"
    table.write_text(f"file,said\ngood.wav,1\ngood.wav,{'1 ' * 60}\n")
    write(files, [ask("?", image="good.jpg")])
    source = f"{{path: {table}, text_column: said}}"
    recipe = files / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_checkpoint}\noutput_dir: {files / 'out'}\nstages:\n"
        f"- {{stage: 1, modalities: [speech], data: {{train: [{source}]}}}}\n"
        f"- {{stage: 2, modalities: [speech], data: {{train: [{files / 'data.jsonl'}], eval: [{source}]}}}}\n"
    )
    assert main(["check", str(recipe), "--workers", "0", "--json"]) == 1
    first, second, third = json.loads(capsys.readouterr().out)["groups"]
    assert (first["title"], first["rows"], first["reasons"]) == ("stage 1 (speech), training data", 2, {"length": 1})
    assert second["reasons"] == {"modality": 1}
    assert (third["rows"], third["reasons"], third["row_tokens"]) == (2, {}, {"speech": 50})
    # what is evaluated on must not be trained on
    assert main(["check", str(recipe), "--workers", "0", "--json", f"stages.1.data.train={table}"]) == 1
    recipe.write_text(
        f"model: {tiny_checkpoint}\noutput_dir: out\nstage: 2\nmodalities: [speech]\n"
        f"data: {{train: [{source}], eval: [{source}]}}\n"
    )
    capsys.readouterr()
    assert main(["check", str(recipe), "--workers", "0"]) == 1
    assert "the stage is trained on it: " in capsys.readouterr().err


def test_the_batch_is_that_of_training(files, tiny):
    model, processor = tiny
    model.generation_config.eos_token_id = [5, 7]
    save(model, processor, files / "model")
    plan = plan_data([write(files, [ask("?", image="good.jpg")])], model=str(files / "model"))
    assert plan.groups[0].collate == {
        "max_length": None,
        "loss_on": "last",
        **chat_settings(model.config, model.generation_config),
    }
    assert plan.groups[0].collate["stop_ids"] == [5, 7]
    assert plan.groups[0].collate["causal"] is False  # ChatGLM


def test_the_time_left_counts_from_the_first_result():
    seconds, stream = iter([0.0, 20.0, 30.0, 40.0]), io.StringIO()
    line = ProgressLine("check", "row", 100, stream, clock=lambda: next(seconds))
    for done in (1, 11):  # processes took 20 s to start, ten rows take 10 s
        line.update(done)
    line.update(100, "2 bad", is_last=True)
    assert stream.getvalue().splitlines() == [
        "check: row 1/100, 00:20 elapsed, ETA ?",
        "check: row 11/100, 00:30 elapsed, ETA 01:29",
        "check: row 100/100, 2 bad, 00:40 elapsed, ETA 00:00",
    ]


def test_a_stream_is_checked_without_being_read_whole(files, tiny_checkpoint, capsys, monkeypatch):
    rows = [ask(str(number)) for number in range(30)]
    recipe = files / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_checkpoint}\noutput_dir: out\nstage: 2\ntrainer: {{max_steps: 5}}\n"
        f"data: {{streaming: true, train: {write(files, [*rows, rows[3]])}}}\n"
    )
    ahead, order = 0, []
    real = SampleChecker.__call__

    def watch(self, task):
        order.append(("check", task[1].where))
        return real(self, task)

    def read(*args):
        for sample in read_group(*args):
            order.append(("read", sample.where))
            yield sample

    monkeypatch.setattr(SampleChecker, "__call__", watch)
    monkeypatch.setattr("xllm.training.inspection.data_summary.read_group", read)
    assert main(["check", str(recipe), "--workers", "0", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["groups"][0]["reasons"] == {"duplicate": 1}
    assert "check: row 31, 1 bad, " in err
    for what, _ in order:
        ahead += 1 if what == "read" else -1
        assert ahead <= 1
    assert len(order) == 62


def test_keys_that_nothing_reads_are_listed(files, capsys):
    row = ask("?", image="good.jpg")
    row["messages"][1]["wieght"] = 2
    row["messages"][0]["content"][0]["resize"] = 7
    assert main(["check", write(files, [row]), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "messages.wieght (1)" in out
    assert "messages.content.resize (1)" in out


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_process_costs_one_task_and_is_reported(tmp_path):
    deaths = []
    tasks = [0, 1, "once", 3, "raise", "kill", *range(6, 12)]
    pairs = list(map_tasks(make_doubler, (str(tmp_path),), tasks, 2, deaths.append))
    assert [task for task, _ in pairs] == tasks
    answers = [answer for _, answer in pairs]
    assert isinstance(answers[4], TaskFailed)
    assert answers[4].error == "RuntimeError: a task that fails"
    assert answers[5] == WorkerDied("killed by SIGKILL")
    assert answers[:4] == [0, 2, "onceonce", 6]
    assert answers[6:] == [2 * number for number in range(6, 12)]
    assert deaths == ["killed by SIGKILL"] * 3


def test_processes_that_never_begin_end_the_work():
    with pytest.raises(ChildProcessError, match="die before they have begun: ended with status 3"):
        list(map_tasks(fail_to_start, (), [1], 1))


@pytest.mark.slow  # a process of its own, with processes
def test_a_killed_process_is_replaced_and_said_so(files):
    psutil = pytest.importorskip("psutil")
    asked, goes_on = threading.Event(), threading.Event()

    class Slow(BaseHTTPRequestHandler):
        """Keeps the first to ask waiting: that is when a process is sure to be at a row."""

        def do_GET(self):
            asked.set()
            goes_on.wait(120)
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the first one is dead
                self.wfile.write((files / "good.jpg").read_bytes())

        def log_message(self, *arguments):
            """Nothing of this on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rows = [ask(str(number), image="good.jpg") for number in range(30)]
        rows[20] = ask("20", image=f"http://127.0.0.1:{server.server_port}/slow.jpg")
        command = [sys.executable, "-m", "xllm", "check", write(files, rows), "--workers", "1", "--json"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert asked.wait(120)
        (forkserver,) = [one for one in psutil.Process(child.pid).children() if "forkserver" in str(one.cmdline())]
        (worker,) = forkserver.children()
        worker.kill()
        goes_on.set()
        out, err = child.communicate(timeout=300)
        server.shutdown()
    report = json.loads(out)
    assert report["workers_died"] == ["killed by SIGKILL"]
    assert (report["bad"], report["groups"][0]["rows"], child.returncode) == (0, 30, 0)
    assert "a process was killed by SIGKILL; its rows were checked again" in err


@pytest.mark.slow  # a process imports torch and transformers
def test_in_processes_it_finds_the_same(files, tiny_checkpoint):
    rows = {**LINES, **{line: row for line, (row, _, _) in FAULTS.items()}}
    data = write(files, [rows[line] for line in sorted(rows)])
    plan = plan_data([data], model=str(tiny_checkpoint))
    alone, apart = (check_data(plan, workers) for workers in (0, 2))
    assert [summary.to_dict() for summary in apart[0]] == [summary.to_dict() for summary in alone[0]]
    assert apart[1:] == alone[1:]


@pytest.mark.parametrize(("bit_rate", "films"), [(None, 1), (1_024_000, 20)])  # the decoder gives up; it goes on
def test_damage_between_the_frames_that_a_model_samples(files, capsys, bit_rate, films):
    """Several threads gave some frames before they were marked: of 60 readings, 11 passed."""
    rng = np.random.default_rng(0)
    film = files / "film.mp4"
    write_video(film, rng.integers(0, 255, (40, 64, 64, 3), dtype=np.uint8), bit_rate=bit_rate)
    content = bytearray(film.read_bytes())
    for place in range(len(content) * 8 // 10, len(content) * 8 // 10 + 2_000):
        content[place] ^= 0x55
    for number in range(films):
        film = files / f"{number}.mp4"
        film.write_bytes(content)
    assert LoadersAlone().load("video", str(film)).frames.shape == (1, 64, 64, 3)  # the one in the middle is whole
    rows = [ask("?", video=f"{number}.mp4") for number in range(films)]
    assert main(["check", write(files, rows), "--workers", "0"]) == 1
    err = capsys.readouterr().err
    assert "messages[0].content[0] medium: " in err
    assert f", {films} bad, " in err
