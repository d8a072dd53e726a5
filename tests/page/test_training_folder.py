# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The page of a folder of training in a browser, while a run writes to it."""

import json
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
from page_fixtures import serving_page
from PIL import Image

from xllm.commands import page as command
from xllm.modeling_xllm.weight_files import write_json
from xllm.page import run_view
from xllm.page.curves import drawn, number_text
from xllm.page.samples_view import PER_PAGE
from xllm.page.texts import all_texts
from xllm.page.training_folder import TrainingPage
from xllm.training.inspection.html_page import document, table
from xllm.training.saving.folders import begin, lock_name
from xllm.training.saving.lineage import over


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
EVIL = "<img src=x onerror='document.hacked=1'><script>document.hacked=1</script>"
TEXTS = all_texts("training_texts.yaml")


def log_line(step, **values):
    entry = {"step": step, "epoch": step / 5, "time": time.time(), "grad_norm": 1.0, "learning_rate": 0.1}
    return json.dumps({**entry, "loss": 4.0 / step, **values}) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A stage that is done, one that runs, one that waits; `running` is its process."""
    outside = tmp_path_factory.mktemp("outside")
    root = tmp_path_factory.mktemp("runs") / f"run {EVIL[:12]}"
    listed = [("stage1-image", 20), ("stage2-image", 20), ("stage3", 20)]
    stages = [{"folder": name, "title": name, "trainer.max_steps": steps} for name, steps in listed]
    first, second = root / "stage1-image", root / "stage2-image"
    hashes = {EVIL: "1", "b": "2"}
    record = {"recipe": {"stage": 1, "modalities.0": "image", "note": EVIL}, "start": {"frozen": over(hashes)}}
    record |= {"data": {"train": {"names": [EVIL], "samples": 4000, "sha256": "ab" * 32}}}
    record |= {"report": {"parameters": {"interfaces.image": [225_152, 225_152], "language_model": [0, 627_072]}}}
    begin(first, {**record, "result": {"trained": [EVIL]}})
    write_json(root / "stages.json", {"stages": stages})
    receipt = {"before": over(hashes), "after": over(hashes), "tensors": hashes}
    write_json(first / "frozen.json", receipt)
    lineage = {"stage": 1, "modalities": ["image"], "parent": "a", "weights": "b" * 64, "data": {"names": ["x"]}}
    write_json(first / "config.json", {"lineage": [lineage]})
    rows = table(["part", "trained parameters"], [["language_model", "1,234,567"], ["x" * 99, EVIL]])
    evil = f"<h1>before and after</h1>{EVIL}<script>parent.document.hacked=1</script>"
    (first / "report.html").write_text(document("", f'{evil}<p class="soft">/{"y" * 99}</p>{rows}'))
    (first / "log.jsonl").write_text("".join(log_line(step, skipped_samples=2) for step in range(1, 21)))
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    for place in (root, outside):
        Image.fromarray(pixels).save(place / "a.png")
    (root / "link.png").symlink_to(outside / "a.png")
    media = [["a.png"], [str(root / "a.png")], [str(outside / "a.png")], ["link.png"], ["../a.png"]]
    rows = [
        {"n": n, "where": f"{EVIL}:{n}", "question": EVIL, "media": media[n % 5], "reference": "red"}
        | {"answer": "red" if n % 2 else EVIL, "accuracy": [bool(n % 2), 1]}
        for n in range(2 * PER_PAGE + 1)
    ]
    (first / "samples_all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    begin(second, {"recipe": {"stage": 2, "modalities.0": "image", "trainer.max_steps": 20}})
    (second / "log.jsonl").write_text(log_line(1) + log_line(2))
    return root


@pytest.fixture(scope="module")
def page(folder):
    return TrainingPage(folder)


@pytest.fixture(scope="module")
def address(page, tmp_path_factory):
    with serving_page(page.build, tmp_path_factory.mktemp("uploads")) as serving:
        yield serving.url


@pytest.fixture
def visit(chromium):
    """`visit(address, **context)` opens a page; the test fails if it asks anything of another origin, or if a script
    of it does."""
    contexts, foreign, errors = [], [], []

    def opened(address, **options):
        origin = "/".join(address.split("/")[:3])
        contexts.append(context := chromium.new_context(**{"locale": "en-US", **options}))
        context.set_default_timeout(20_000)
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))

        def asked(request):
            if not request.url.startswith((f"{origin}/", "data:", "blob:", "about:")):
                foreign.append(request.url)

        context.on("request", asked)
        tab.goto(address)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert (foreign, errors) == ([], [])


def card(tab, name):
    return tab.locator("li.stage", has=tab.get_by_text(name, exact=True)).first


@pytest.mark.slow
def test_a_run_that_is_watched(folder, address, visit):
    """States, curves and the rest follow the files; nothing is reloaded, nothing comes from elsewhere."""
    stage = folder / "stage2-image"
    command = [sys.executable, "-c", HOLD, str(folder / lock_name(stage.name))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        tab = visit(f"{address}/en/")
        tab.wait_for_selector("li.stage.running")
        states = tab.locator("li.stage .state").all_inner_texts()
        assert states == ["done", "training", "waiting"]
        tab.wait_for_selector("#curves path")
        assert "2 / 20" in card(tab, "stage2-image").inner_text()
        before = tab.locator("#curves path").first.get_attribute("d")
        with (stage / "log.jsonl").open("a") as file:
            for step in (3, 4, 5):
                file.write(log_line(step, eval_loss=1.0))
            file.write('{"step": 6, "lo')
        tab.get_by_text("5 / 20").first.wait_for()
        tab.wait_for_function("old => document.querySelector('#curves path').getAttribute('d') !== old", arg=before)
        assert "eval_loss" in tab.locator("#curves .legend").first.inner_text()
        process.kill()
        tab.wait_for_selector("li.stage.interrupted")
    write_json(stage / "stopped.json", {"state": "failed", "error": f"ValueError: {EVIL}", "time": time.time() + 9})
    tab.wait_for_selector("li.stage.failed")
    assert EVIL in card(tab, "stage2-image").inner_text()
    tab.get_by_role("tab", name="Checks").click()
    away = folder.with_name("away")
    folder.rename(away)
    tab.get_by_text(TEXTS["en"]["folder gone"]).wait_for()
    away.rename(folder)
    tab.wait_for_selector("li.stage.failed")
    assert tab.evaluate("document.hacked") is None


def test_samples_receipts_and_warnings_on_a_phone(address, visit):
    words = TEXTS["zh"]
    tab = visit(f"{address}/zh/", viewport={"width": 390, "height": 844}, locale="zh-CN")
    tab.wait_for_selector("li.stage.done")
    tab.get_by_label(words["stage"]).click()
    tab.get_by_role("option", name="stage1-image").click()
    tab.get_by_role("tab", name=words["tab samples"]).click()
    report = tab.frame_locator("iframe.report")
    assert report.locator("h1").inner_text() == "before and after"
    assert report.locator("body").evaluate("body => body.scrollWidth <= body.ownerDocument.defaultView.innerWidth")
    assert report.locator("td").nth(1).bounding_box()["height"] < 30, "a number is in one line"
    tab.get_by_label(words["file"]).click()
    tab.get_by_role("option", name="all").click()
    tab.wait_for_selector("article.sample")
    assert tab.locator("article.sample").count() == PER_PAGE
    shown = tab.locator("article.sample").all()
    widths = [one.locator("figure img").evaluate_all("all => all.map(one => one.naturalWidth)") for one in shown]
    assert widths == [[24], [24], [], [], [], [24]], "by name and by path; not from elsewhere, by a link or by dots"
    assert words["medium elsewhere"] in shown[3].inner_text()
    assert EVIL in shown[0].inner_text()
    tab.get_by_role("button", name=words["on"], exact=True).click()
    tab.get_by_text(words["answers shown"].format(first=7, last=12, count=13)).wait_for()
    tab.get_by_label(words["only unlike"]).check()
    tab.get_by_text(words["answers shown"].format(first=1, last=6, count=7)).wait_for()
    assert tab.locator("article.sample.unlike").count() == 6
    tab.get_by_role("tab", name=words["tab receipts"]).click()
    assert tab.locator(".gradio-container").bounding_box()["width"] <= 390, "wide tables scroll by themselves"
    told = tab.locator("#receipts").inner_text()
    assert words["frozen proof"].format(count=2, file="frozen.json") in told
    assert "225,152" in told
    assert words["from others"] in told
    tab.get_by_role("tab", name=words["tab checks"]).click()
    assert words["warning skipped_samples"] in tab.locator("#checks").inner_text()
    assert tab.evaluate("document.hacked") is None


def test_a_browser_gets_no_file_that_is_none_of_samples(page, folder):
    page.look()
    nothing = page.samples("", 0, False, TEXTS["en"])
    for name in (
        "stage1-image/config.json",
        "stage1-image/../stages.json",
        "a.png",
        "/etc/passwd",
        "stage3/report.html/x",
    ):
        assert page.samples(name, 0, False, TEXTS["en"]) == nothing
    assert nothing != page.samples("stage1-image/samples_all.jsonl", 0, False, TEXTS["en"])


def test_languages_say_the_same():
    english, chinese = TEXTS["en"], TEXTS["zh"]
    assert list(english) == list(chinese)
    for name, text in english.items():
        fields = [{part.split("}")[0] for part in one.split("{")[1:]} for one in (text, chinese[name])]
        assert fields[0] == fields[1], name


def test_drawings():
    assert drawn("x", {"a": []}, 10, "step") == ""
    linear = drawn("x", {"a": [(0, 1.0), (5, 2.0), (10, 3.0)]}, 20, "step")
    assert 'd="M0.0 300.0L250.0 150.0L500.0 0.0"' in linear
    logarithmic = drawn("x", {"a": [(0, 100.0), (5, 1.0), (10, 0.01)]}, 10, "step")
    assert 'd="M0.0 0.0L500.0 150.0L1000.0 300.0"' in logarithmic
    assert "a: 1\n" not in logarithmic
    assert "<title>step 5\na: 1</title>" in logarithmic
    flat = drawn("x", {"a": [(1, 2.0)]}, 0, "step")
    assert 'd="M1000.0 150.0h.1"' in flat
    assert [number_text(value) for value in (0, 0.5, 1234.56, 1e-5, -2.5e7, 123456)] == [
        "0", "0.5", "1235", "1e-5", "-2.5e7", "1.23e5"
    ]  # fmt: skip


STRANGE = {
    "stage.json": {
        "recipe": {"stage": {}, "modalities.0": [], "trainer.max_steps": 1e308}, "result": {"trained": [1, {}]},
        "report": {"parameters": {"a": [1, 0], "b": ["x", 2], "c": [1, 2.5], "d": 3}}, "processes": [],
        "data": {"train": 3, "eval": {"names": 3, "samples": []}}, "start": {"frozen": 3},
    },
    "results.json": {"a": {"value": float("nan"), "interval": ["x", 1]}, "b": {"value": True}, "c": 3},
    "config.json": {"lineage": [{"modalities": 3, "data": [], "weights": {}, "parent": []}, 3], "stage": 3},
    "frozen.json": {"tensors": [], "before": 3, "merged": 3},
    "stopped.json": {"state": "failed", "time": "x", "error": []},
}  # fmt: skip
LOG = (
    '{"step": 1e999}\n{"step": -3, "loss": 1e308}\n{"step": 2, "time": "x", "epoch": "y", "loss": -1e308}\n'
    '{"step": 1, "loss": true, "skipped": {}, "cut_x": 1e999, "eval_a": 0, "\\ud800": 1, "big": 1' + "0" * 400 + "}\n"
)


def test_anything_can_be_shown(tmp_path):
    """Files of other programs, and of nobody's."""
    folder = tmp_path / "one"
    (folder / "checkpoint-2").mkdir(parents=True)
    for name, content in STRANGE.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "log.jsonl").write_text(LOG)
    (folder / "checkpoint-2/manifest.json").write_text('{"files": {"a": [1, 2], "b": 3, "../../x": [1, 2]}}')
    (folder / "checkpoint-2/trainer_state.json").write_text('{"max_steps": "x", "best_model_checkpoint": 3}')
    rows = [{"answer": {}, "media": [3, "\0", {}], "reference": []}, {"answer": 1, "media": 3, "x": [True, None]}]
    (folder / "samples_a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = TrainingPage(tmp_path)
    page.look()
    (stage,) = page.run.stages.values()
    for texts in TEXTS.values():
        shown = [run_view.overview(page.run, texts), page.samples("one/samples_a.jsonl", 0, False, texts)]
        shown += [view(stage, texts) for view in (run_view.curves, run_view.receipts, run_view.checks)]
        assert all(shown)


def test_the_command_knows_a_folder_of_training(folder):
    asked = Namespace(model=str(folder), example=[])
    build, close = command._training(asked)
    assert (build.__self__.run.files.root, close) == (folder, None)
    assert command._training(Namespace(model=str(folder / "stage1-image"), example=[])) is None
    assert command._training(Namespace(model="someone/model", example=[])) is None
    with pytest.raises(ValueError, match="is a folder of training; there is no model to ask"):
        command._training(Namespace(model=str(folder), example=["a.png"]))
