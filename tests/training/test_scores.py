# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Figures from files: transcripts against independent counts, reviews against the paper's table."""

import json
import random
from pathlib import Path

import jiwer
import pytest

from xllm.cli import main
from xllm.training.data.media_rows import DataError
from xllm.training.evaluation.reviews import parse_scores, read_reviews, score_reviews
from xllm.training.evaluation.transcripts import (
    HYPOTHESES,
    align,
    count_errors,
    mixed_units,
    read_transcripts,
    score_transcripts,
)


PUBLISHED = Path(__file__).resolve().parents[3] / "shared/data/public/xllm_qa90"


# ---- transcripts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("今天天气 hello world", "今 天 天 气 HELLO WORLD"),
        ("你好，世界！ok？", "你 好 世 界 OK"),
        ("a,b c", "A,B C"),  # WeNet drops punctuation between words, not within one
        ("<unk> good<noise>", "GOOD"),
        ("3点it's", "3 点 IT'S"),
        ("한글 é b", "한 글 É B"),
        ("a\u3000b <cut", "A B"),
    ],
)
def test_units_of_wenet(text, units):
    assert mixed_units(text) == units.split()


def fewest_errors(reference, hypothesis):
    """(substitutions, deletions, insertions) cell by cell; of equal ones a deletion is taken before an insertion."""
    cells = {}
    for row in range(len(reference) + 1):
        for column in range(len(hypothesis) + 1):
            ways = []
            if row:
                ways.append((1, (0, 1, 0), cells[row - 1, column]))
            if column:
                ways.append((1, (0, 0, 1), cells[row, column - 1]))
            if row and column:
                wrong = int(reference[row - 1] != hypothesis[column - 1])
                ways.append((wrong, (wrong, 0, 0), cells[row - 1, column - 1]))
            best = min(ways, key=lambda way: way[0] + way[2][0], default=(0, (0, 0, 0), (0, (0, 0, 0))))
            cells[row, column] = (best[0] + best[2][0], tuple(map(sum, zip(best[1], best[2][1]))))
    return cells[len(reference), len(hypothesis)][1]


def test_alignments_have_the_fewest_errors():
    rng = random.Random(0)
    for _ in range(300):
        reference, hypothesis = (rng.choices("abc", k=rng.randint(0, 9)) for _ in range(2))
        pairs = align(reference, hypothesis)
        assert [a for a, _ in pairs if a] == reference
        assert [b for _, b in pairs if b] == hypothesis
        rate = count_errors(pairs)
        assert (rate.substitutions, rate.deletions, rate.insertions) == fewest_errors(reference, hypothesis)


def test_rates_are_those_of_jiwer():
    rng = random.Random(1)
    words = ["the", "cat", "sat", "on", "a", "mat", "two", "dogs"]
    references = {f"u{n}": " ".join(rng.choices(words, k=rng.randint(1, 9))) for n in range(50)}
    hypotheses = {
        key: " ".join(word for word in text.split() if rng.random() > 0.2) for key, text in references.items()
    }
    scored = score_transcripts(references, hypotheses)
    both = list(references.values()), list(hypotheses.values())
    assert scored.rates["cer"].value == pytest.approx(jiwer.cer(*both), abs=1e-12)
    assert scored.rates["wer"].value == pytest.approx(jiwer.wer(*both), abs=1e-12)
    assert scored.rates["mixed"].value == pytest.approx(jiwer.wer(*both), abs=1e-12)  # words of ASCII: the same


@pytest.fixture
def files(tmp_path):
    (tmp_path / "ref").write_text("u1 今天 天气 hello world\nu2 你好。\nu3 <unk> good\nu4 abc\nu5\n")
    (tmp_path / "hyp").write_text("u2 你 好 吗\nu1 今天天汽 HELLO word\nu3 good\nu9 x\nu5 oh\n")
    return [str(tmp_path / "ref"), str(tmp_path / "hyp")]


def test_score_asr(files, tmp_path, capsys):
    assert main(["score", "asr", *files, "--output", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["missing"], found["surplus"], found["empty"]) == (5, ["u4"], ["u9"], ["u5"])
    rate = found["mixed"]
    assert [rate[name] for name in ("substitutions", "deletions", "insertions", "reference")] == [2, 1, 2, 10]
    lines = (tmp_path / "out/cer.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:5] == [
        "utt: u1",
        "WER: 33.33 % N=6 C=4 S=2 D=0 I=0",
        "lab: 今 天 天 气 HELLO WORLD ",
        "rec: 今 天 天 汽 HELLO WORD  ",
    ]
    assert "Overall -> 50.00 % N=10 C=7 S=2 D=1 I=2" in lines
    assert main(["score", "asr", *files, "--missing", "skip", "--normalizer", "basic"]) == 0
    out = capsys.readouterr().out
    assert "n = 4 utterances, normaliser: basic" in out
    assert "1 without a hypothesis (left out): u4" in out


def test_tables_are_transcripts_too(tmp_path):
    (tmp_path / "a.csv").write_text("file,text,answer\na.wav,one,won\nb.wav,two,two\n")
    (tmp_path / "b.jsonl").write_text('{"utt": "a.wav", "hyp": "one"}\n')
    assert read_transcripts(tmp_path / "a.csv") == {"a.wav": "one", "b.wav": "two"}
    assert read_transcripts(tmp_path / "a.csv", HYPOTHESES) == {"a.wav": "won", "b.wav": "two"}
    assert read_transcripts(tmp_path / "b.jsonl", HYPOTHESES) == {"a.wav": "one"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", "u1 a\nu1 b\n", "a:2: a second line of u1"),
        ("a.csv", "file,text\nx,a\nx,b\n", r"a\.csv:3: a second row of x"),
        ("a.csv", "file,words\nx,a\n", "no column of the text; name it one of reference"),
        ("a.jsonl", '{"utt": "x", "text": 3}\n', r"a\.jsonl:1: text is 3, expected a text"),
        ("a.jsonl", '{"utt": "x"\n', r"a\.jsonl:1: "),
    ],
)
def test_files_that_are_no_transcripts(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_transcripts(tmp_path / name)


def test_transcripts_that_do_not_pair():
    with pytest.raises(DataError, match="the references are called a, the hypotheses b"):
        score_transcripts({"a": "x"}, {"b": "x"})
    with pytest.raises(DataError, match="all 1 references are empty"):
        score_transcripts({"a": " "}, {"a": "x"})
    with pytest.raises(DataError, match="no references: their file holds no utterance"):
        score_transcripts({}, {"a": "x"})


# ---- reviews --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("7 9\n\nBoth were good.", (7, 9)),
        ("7.5, 9 \nBoth", (7.5, 9)),
        ("The scores for Assistant 1 and Assistant 2 are 3 and 8, respectively.", (3, 8)),
        ("The score for Assistant 1 is 3 and the score for Assistant 2 is 10.\n\nBad: 2 of 3.", (3, 10)),
        ("It is upside down.\n\nScores: 8 9\n\nA score of 5 would be rare.", (8, 9)),
        ("Well.\nScores:\nAssistant 1: 3\nAssistant 2: 8\n", (3, 8)),
        (
            "I would rate Assistant 1 as 2 out of 10. Assistant 2's answer is better: Assistant 2 - 9 out of 10.",
            (2, 9),
        ),
        ("Assistant 1 gets a score of 4. Assistant 2 gets 5. In all, Assistant 1: 6.", None),  # two scores of one
        ("Both assistants answered 12 questions.", None),
        ("15 20", None),  # not on the scale
        ("", None),
    ],
)
def test_scores_are_read_from_prose(text, scores):
    assert parse_scores(text) == scores


def write_reviews(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


def test_score_judge(tmp_path, capsys):
    rows = [
        {"category": "conv", "content": "8 10\nFine.", "tuple": [8, 10]},
        {"category": "conv", "content": "Scores: 2 8", "tuple": [-1, -1]},
        {"category": "detail", "content": "I cannot say.", "tuple": [-1, -1]},
        {"category": "detail", "content": "9 9", "tuple": [9, 9]},
    ]
    path = write_reviews(tmp_path / "reviews.json", rows)
    assert main(["score", "judge", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["unparsed"], found["rule"]) == (4, 2, "parsed")
    rules = found["rules"]
    assert rules["authors"]["all"] == pytest.approx(100 * (8 - 1 - 1 + 9) / (10 - 1 - 1 + 9))
    assert rules["authors_1_9"]["all"] == pytest.approx(100 * (8 + 1 + 1 + 9) / (10 + 9 + 9 + 9))
    assert rules["parsed"]["all"] == found["value"] == pytest.approx(100 * (8 + 2 + 9) / (10 + 8 + 9))
    assert (rules["parsed"]["n"], len(rules["parsed"]["left_out"])) == (3, 1)
    assert rules["dropped"]["conv"] == 80
    assert main(["score", "judge", path, "--rule", "dropped"]) == 0
    assert "relative score 89.5 % by the rule 'dropped', n = 2 of 4 reviews" in capsys.readouterr().out


def test_every_review_that_is_left_out_is_listed(tmp_path, capsys):
    """11 is no score from 1 to 10, and NaN is none by any rule, wherever it stands."""
    rows = [
        {"review": "8 10"}, {"review": "8 11"}, {"review": "nan 5"}, {"review": "", "tuple": [float("inf"), 3]}
    ]  # fmt: skip
    path = write_reviews(tmp_path / "r.json", rows)
    assert main(["score", "judge", path]) == 0
    out = capsys.readouterr().out
    assert "80.0 % by the rule 'parsed', n = 1 of 4 reviews" in out
    assert "2 do not begin with two scores (rows r.json[2], r.json[3])" in out
    assert "3 left out: the rule 'parsed' finds no scores there (rows r.json[1], r.json[2], r.json[3])" in out
    assert main(["score", "judge", path, "--rule", "dropped"]) == 0
    assert "76.2 % by the rule 'dropped', n = 2 of 4" in capsys.readouterr().out  # (8 + 8) / (10 + 11)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no review"),
        ([{"category": "conv"}], "no review: a text in the column `review` or `content`"),
        ([{"review": "1 2", "tuple": [1]}], r"the stored scores are \[1\], expected two numbers"),
        (
            [{"review": "no idea"}],
            "no relative score by the rule 'parsed': of the 0 reviews that it counts (1 in all)",
        ),
    ],
)
def test_files_that_are_no_reviews(tmp_path, rows, message, capsys):
    assert main(["score", "judge", write_reviews(tmp_path / "r.json", rows)]) == 1
    assert message.replace("\\", "") in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["asr", "one"], ["judge", "one", "two"]])
def test_as_many_files_as_it_takes(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(["score", *arguments])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published reviews are not beside this checkout")
@pytest.mark.parametrize(
    ("file", "unparsed", "rows"),
    [
        (
            "reviews_xllm.jsonl",
            7,
            {
                "authors": [85.4, 83.5, 84.6, 84.5],  # the paper's row
                "authors_1_9": [70.7, 81.1, 84.6, 78.8],
                "parsed": [79.2, 82.2, 84.6, 82.0],
                "dropped": [85.8, 83.6, 84.6, 84.6],
            },
        ),
        ("reviews_xllm_second_run.jsonl", 8, {"authors": [84.9, 81.2, 85.5, 83.8]}),
    ],
)
def test_the_published_reviews(file, unparsed, rows):
    found = score_reviews(read_reviews(PUBLISHED / file))
    assert (found["n"], found["unparsed"]) == (90, unparsed)
    for rule, row in rows.items():
        shown = [round(found["rules"][rule][name], 1) for name in ("conv", "detail", "complex", "all")]
        assert shown == row
