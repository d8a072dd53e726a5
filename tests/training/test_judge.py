# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm judge` against a server that misbehaves: retries, both orders, kills, replies that hold no scores."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from chat_server import ChatServer, serving
from killed_runs import in_child
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xllm.cli import main
from xllm.training.data.media_rows import DataError
from xllm.training.evaluation import endpoint
from xllm.training.evaluation.answer_log import AnswerLog
from xllm.training.evaluation.endpoint import Endpoint, EndpointClosedError, EndpointError
from xllm.training.evaluation.judging import read_comparisons


PUBLISHED = Path(__file__).resolve().parents[3] / "shared/data/public/xllm_qa90"
QUESTIONS = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "WAITS", (0.001, 0.01))
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")


def judged(messages):
    """4 for "poor", 8 for "rich", and 1 more for what stands first."""
    prompt = messages[-1]["content"]
    first, second = re.findall(r"\[Assistant \d\]\n(\w+)", prompt)
    worth = {"poor": 4, "rich": 8}
    return f"{worth[first] + 1} {worth[second]}\nAs asked."


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Six questions, poor answers to them and rich ones, and what the pictures show."""
    categories = ("conv", "detail", "complex")
    questions = [
        {"question_id": 10 + n, "category": categories[n % 3], "image": f"{n}.jpg", "text": f"question {n}?"}
        for n in range(QUESTIONS)
    ]
    context = [
        {
            "image": f"{n}.jpg",
            "captions": ["a dog", "the dog"],
            "instances": [{"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}],
        }
        for n in range(QUESTIONS)
    ]
    answers = [{"question_id": 10 + n, "text": "poor"} for n in range(QUESTIONS)]
    return {
        "questions": write(tmp_path / "questions.jsonl", questions),
        "answers": write(tmp_path / "answers.jsonl", answers),
        "reference": write(tmp_path / "rich.jsonl", [row | {"text": "rich"} for row in reversed(answers)]),
        "context": write(tmp_path / "context.jsonl", context),
    }


def command(files, folder, url, *more):
    told = [f"--{name}={files[name]}" for name in ("questions", "reference", "context")]
    where = ["--endpoint", url, "--judge-model", "judge-1", "--output", str(folder), "--timeout", "1"]
    return ["judge", files["answers"], *told, *where, *more]


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples_judge.jsonl").read_text().splitlines()]


def test_both_orders_by_a_server_that_misbehaves(files, tmp_path, capsys):
    """Every fault once or more; the figures are those of a server without any, and no pair is answered twice."""
    faults = {
        "question 0": [429, 500, "hang"],
        "question 1": ["malformed", "empty", "null"],
        "question 2": ["break", "drip", 503],
    }
    server = ChatServer(judged, faults)
    with serving(server) as url:
        assert main([*command(files, tmp_path / "out", url), "--json", "--concurrency", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["unparsed"], found["skipped"], found["questions"]) == (12, 0, 0, QUESTIONS)
    assert found["value"] == pytest.approx(100 * (5 + 4) / (8 + 9))
    assert found["orders"]["given"]["parsed"] == pytest.approx(100 * 5 / 8)
    assert found["orders"]["swapped"]["parsed"] == pytest.approx(100 * 4 / 9)
    assert found["position_bias"] == {"n": QUESTIONS, "first_is_higher_by": 1.0, "preference_changes": 0.0}
    assert found["rules"]["parsed"]["n_of"] == {"conv": 4, "detail": 4, "complex": 4, "all": 12}
    assert set(server.answered.values()) == {1}
    assert len(server.answered) == 12
    assert len(server.seen) >= 12 + 9
    asked = server.seen[0]
    assert (asked["path"], asked["key"], asked["model"]) == ("/v1/chat/completions", "Bearer a-key", "judge-1")
    assert (asked["temperature"], asked["max_tokens"]) == (0.2, 1024)
    # the samples are reviews that `xllm score judge` reads
    assert main(["score", "judge", str(tmp_path / "out/samples_judge.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == found["value"]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["results"]["judge"]["relative,none"] == found["value"]
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "judge: judge-1, relative score 52.9 %" in page
    assert page.count("<h3>") == QUESTIONS
    for text in ("answer 5, reference 8", "answer 4, reference 9", "question 4?", "As asked.", "dog: [0.1,"):
        assert text in page
    # a finished judge asks nothing more; with other answers it would be another one
    nobody = "http://127.0.0.1:9/v1"
    assert main(command(files, tmp_path / "out", nobody)) == 0
    assert capsys.readouterr().out.startswith("relative score 52.9 % by the rule 'parsed', n = 12 of 12 reviews")
    assert main(command({**files, "answers": files["reference"]}, tmp_path / "out", nobody)) == 1
    assert "with other prompts_sha256; choose another folder" in capsys.readouterr().err


def test_the_prompt_is_that_of_the_protocol(files):
    one = read_comparisons(files["answers"], files["questions"], files["reference"], files["context"])[0][0]
    prompt = one.prompt("swapped")
    expected = (
        "[Context]\na dog\nthe dog\n\ndog: [0.1, 0.2, 0.3, 0.4]\n\n[Question]\nquestion 0?\n\n"
        "[Assistant 1]\nrich\n\n[End of Assistant 1]\n\n[Assistant 2]\npoor\n\n[End of Assistant 2]\n\n[System]\n"
    )
    assert prompt.startswith(expected)
    rules = {"default": {"prompt": "Rate.", "role": "Writer"}}
    assert one.prompt("given", rules).endswith("[End of Writer 2]\n\n[System]\nRate.\n\n")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published questions are not beside this checkout")
def test_the_published_questions():
    names = [PUBLISHED / f"{name}.jsonl" for name in ("answers_xllm", "questions", "answers_gpt4")]
    rules = json.loads((PUBLISHED / "review_prompts.json").read_text())
    seen, left = read_comparisons(*names, PUBLISHED / "context_coco2014_val.jsonl")
    assert (len(seen), left) == (90, {})
    assert all(one.prompt("given") == one.prompt("given", rules) for one in seen)
    assert all(re.search(r"[a-z]{3}", one.answers[0]) for one in seen)  # in English
    chinese = read_comparisons(*names[:2], names[0], column="text_zh")[0]
    assert chinese[0].answers[0] == chinese[0].answers[1] != seen[0].answers[0]
    plain = read_comparisons(*names)[0][0]
    assert plain.prompt("given").endswith(f"[System]\n{rules['default']['prompt']}\n\n")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published questions are not beside this checkout")
def test_a_judge_that_writes_the_published_reviews_gives_the_paper_s_row(tmp_path, capsys):
    """All of the way: the 90 questions asked, and answered by what ChatGPT wrote then."""
    tables = {}
    for name in ("questions", "reviews_xllm"):
        lines = (PUBLISHED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        tables[name] = {row["question_id"]: row for row in map(json.loads, lines)}
    answers = (PUBLISHED / "answers_xllm.jsonl").read_text(encoding="utf-8").splitlines()
    said = {row["question_id"]: row["text_en"] for row in map(json.loads, answers)}
    written = {
        (row["text_en"], said[key]): tables["reviews_xllm"][key]["review"] for key, row in tables["questions"].items()
    }

    def replied(messages):
        prompt = messages[-1]["content"]
        question = prompt.split("[Question]\n")[1].split("\n\n[Assistant 1]\n")[0]
        return written[question, prompt.split("[Assistant 1]\n")[1].split("\n\n[End of Assistant 1]")[0]]

    with serving(ChatServer(replied)) as url:
        told = [("questions", "questions"), ("reference", "answers_gpt4"), ("context", "context_coco2014_val")]
        files = [f"--{option}={PUBLISHED / f'{name}.jsonl'}" for option, name in told]
        asked = ["judge", str(PUBLISHED / "answers_xllm.jsonl"), *files, "--endpoint", url, "--judge-model", "chatgpt"]
        asked += ["--output", str(tmp_path / "out"), "--orders", "given", "--rule", "authors", "--json"]
        assert main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    names = ("conv", "detail", "complex", "all")
    assert [round(found["rules"]["authors"][name], 1) for name in names] == [85.4, 83.5, 84.6, 84.5]
    assert [round(found["rules"]["parsed"][name], 1) for name in names] == [79.2, 82.2, 84.6, 82.0]
    assert (found["n"], found["unparsed"], found["rules"]["authors"]["n_of"]["conv"]) == (90, 7, 30)
    assert found["interval"][0] < found["value"] < found["interval"][1]


def test_a_judge_that_was_killed_goes_on(files, tmp_path, capsys):
    """SIGKILL after three answers that were kept, in the middle of a line; these are asked no second time."""
    server, whole = ChatServer(judged), ChatServer(judged)

    def killed(url):
        add, count = AnswerLog.add, [0]

        def add_and_die(self, lines):
            add(self, lines)
            count[0] += 1
            if count[0] == 3:
                self._own.write('{"n": 99, "whe')
                self._own.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        AnswerLog.add = add_and_die
        main([*command(files, tmp_path / "out", url), "--concurrency", "1"])

    with serving(server) as url, serving(whole) as other:
        assert in_child(lambda: killed(url)) == -signal.SIGKILL
        kept = dict(server.answered)
        assert not (tmp_path / "out/samples_judge.jsonl").exists()
        assert main([*command(files, tmp_path / "out", url), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["found"] == 3
        assert main(command(files, tmp_path / "whole", other)) == 0
    assert samples_of(tmp_path / "out") == samples_of(tmp_path / "whole")
    twice = [text for text, count in server.answered.items() if count > 1]
    assert len(server.answered) == 12
    assert len(twice) <= 1  # the one that was answered while the process died
    assert len(kept) - len(twice) == 3


def test_reviews_that_are_missing_are_asked_for_again(files, tmp_path, capsys):
    with serving(ChatServer(judged, {"question 4": [500, "..."]})) as url:
        asked = command(files, tmp_path / "out", url, "--retries", "1", "--json")
        assert main(asked) == 1
        found = capsys.readouterr()
        assert json.loads(found.out)["skipped"] == 2
        assert "2 of 12 reviews are missing, of the questions 14; the same command asks for them again" in found.err
        assert '500 {"error": "as told"} (2 times)' in found.err
        page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
        assert page.index("Reviews that are missing") < page.index("as told") < page.index("went worst")
        assert [sample["order"] for sample in samples_of(tmp_path / "out") if "skipped" in sample] == [
            "given", "swapped"
        ]  # fmt: skip
    server = ChatServer(judged)
    with serving(server) as url:
        assert main(command(files, tmp_path / "out", url, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["found"], found["n"], found["skipped"]) == (10, 12, 0)
    assert len(server.seen) == 2


def test_replies_without_scores_are_counted(files, tmp_path, capsys):
    def replied(messages):
        time.sleep(0.02)
        text = judged(messages)
        return "I cannot decide." if "question 3" in messages[-1]["content"] else text

    server = ChatServer(replied)
    with serving(server) as url:
        assert main(command(files, tmp_path / "out", url)) == 0
    assert 1 < server.most <= 4  # requests at a time
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert page.index("Questions without a score") < page.index("I cannot decide.")
    out = capsys.readouterr().out
    assert "n = 10 of 12 reviews" in out
    assert "2 do not begin with two scores (rows 7, 8)" in out
    assert re.search(r"whichever is first gets \+1\.00 points more .* in 0% of 5 pairs", out)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, r"/chat/completions: 401 .* 0 reviews are kept, the same command goes on"),
        (302, r"302"),  # the key is not sent elsewhere
        (400, r"no review was given|400"),
    ],
)
def test_endpoints_that_answer_nothing(files, tmp_path, fault, message, capsys):
    server = ChatServer(judged, {"question": [fault, "..."]})
    with serving(server) as url:
        assert main(command(files, tmp_path / "out", url)) == 1
    assert re.search(message, capsys.readouterr().err)
    assert {seen["path"] for seen in server.seen} == {"/v1/chat/completions"}
    assert len(server.seen) <= 13  # nothing is repeated


def test_what_is_repeated_and_what_is_not():
    message = [{"role": "user", "content": "hello"}]
    for faults, error in (
        ([503, 503], EndpointError), (["hang", "hang"], EndpointError), ([404], EndpointClosedError)
    ):  # fmt: skip
        server = ChatServer(lambda _: "well", {"hello": faults})
        with serving(server) as url:
            ask = Endpoint(url, "m", timeout=0.8, retries=1)
            with pytest.raises(error):
                ask(message)
            assert len(server.seen) == len(faults)
            assert ask(message).text == "well"
    with pytest.raises(EndpointError, match="refused"):
        Endpoint("http://127.0.0.1:9/v1", "m", retries=0)(message)
    with pytest.raises(EndpointError, match="expected the URL of a server"):
        Endpoint("file:///etc/passwd", "m")


def test_samples_of_an_evaluation_are_judged_against_their_references(tmp_path, capsys):
    rows = [
        {"n": n, "where": f"d.jsonl:{n}", "question": f"q {n}?", "reference": "rich", "answer": "poor"}
        for n in range(3)
    ]
    rows.append({"n": 3, "where": "d.jsonl:3", "skipped": "no such file"})
    samples = write(tmp_path / "samples_qa.jsonl", rows)
    with serving(ChatServer(judged)) as url:
        asked = ["--endpoint", url, "--judge-model", "j", "--output", str(tmp_path / "out"), "--orders", "given"]
        assert main(["judge", samples, *asked, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["n"], found["unanswered"], found["value"]) == (3, ["3"], pytest.approx(62.5))
    assert "1 unanswered: 3" in err
    assert "position_bias" not in found
    # samples pair with the rows of a file of questions by their place in it, if the questions are the same
    questions = [{"question_id": 70 + n, "text": f"q {n}?", "category": "conv"} for n in range(4)]
    seen, left = read_comparisons(samples, write(tmp_path / "q.jsonl", questions))
    assert ([one.category for one in seen], left) == (["conv"] * 3, {"unanswered": ["3"]})
    with pytest.raises(DataError, match="answers another question than"):
        read_comparisons(samples, write(tmp_path / "q.jsonl", questions[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], "10 has a row already"),
        (lambda rows: [{"question_id": 99, "text": "x"}], "no answer has both a question and a reference"),
        (lambda rows: [{"question_id": 10, "said": "x"}], "no answer: a text in the column text_en or text or answer"),
        (lambda rows: [], "holds no row"),
    ],
)
def test_answers_that_cannot_be_used(files, change, message):
    rows = [json.loads(line) for line in Path(files["answers"]).read_text("utf-8").splitlines()]
    write(Path(files["answers"]), change(rows))
    with pytest.raises(DataError, match=message):
        read_comparisons(files["answers"], files["questions"], files["reference"], files["context"])


def test_answers_that_do_not_pair_are_listed(files):
    rows = [json.loads(line) for line in Path(files["answers"]).read_text("utf-8").splitlines()]
    write(Path(files["answers"]), [*rows[1:], {"question_id": 77, "text": "poor"}])
    references = [{"question_id": 11 + n, "text": ("rich", "", "rich")[n]} for n in range(3)]
    references.append({"question_id": 88, "text": "rich"})
    seen, left = read_comparisons(files["answers"], files["questions"], write(Path(files["reference"]), references))
    assert [one.id for one in seen] == ["11", "13"]
    assert left == {
        "unanswered": ["10"], "without_reference": ["12", "14", "15"], "answers_of_no_question": ["77"],
        "references_of_no_question": ["88"],
    }  # fmt: skip


def test_a_judge_in_this_process(files, tmp_path, capsys):
    """One that says nothing of use: its replies are kept and counted as such."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "well": 1, "so": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="so")
    GPT2LMHeadModel(GPT2Config(vocab_size=3, n_positions=2048, n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path / "lm"
    )
    tokenizer.save_pretrained(tmp_path / "lm")
    asked = [
        "judge", files["answers"], f"--questions={files['questions']}", f"--reference={files['reference']}",
        "--judge-model", str(tmp_path / "lm"), "--output", str(tmp_path / "out"), "--orders", "given",
        "--request", '{"max_tokens": 3}',
    ]  # fmt: skip
    assert main(asked) == 1
    assert "its tokenizer has no chat template, so it cannot be asked" in capsys.readouterr().err
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "lm")
    assert main(asked) == 1
    assert "no relative score by the rule 'parsed': of the 0 reviews that it counts (6 in all)" in (
        capsys.readouterr().err
    )
    assert [sample["n"] for sample in samples_of(tmp_path / "out")] == list(range(0, 12, 2))
