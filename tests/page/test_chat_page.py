# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The page by clicks, uploads and a microphone, in headless Chromium."""

import asyncio
import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_fixtures import NAME

from xllm.serving.requests import ChatBody
from xllm.serving.rows import Rows
from xllm.serving.sampling import Delta


pytestmark = pytest.mark.slow
WAIT = 60_000  # ms
ABORTED = "signal is aborted without reason"  # what fetch says of a stream of events that Gradio itself has closed


class Tab:
    """A page of its own, and what it asked the network for."""

    def __init__(self, chromium, url: str, **options):
        self.context = chromium.new_context(**{"locale": "en-GB", **options})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("response", lambda reply: self.faults.append(reply.url) if reply.status >= 400 else None)
        self.page.on("pageerror", lambda error: str(error) == ABORTED or self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.goto(url)
        self.page.wait_for_selector("#box textarea", timeout=WAIT)

    def add(self, *files):
        """Choose files, which are uploaded."""
        before = self.page.locator("#box .thumbnail-item").count()
        self.page.set_input_files("#box input[type=file]", [str(file) for file in files])
        self.page.wait_for_function(
            f"document.querySelectorAll('#box .thumbnail-item').length == {before + len(files)}", timeout=WAIT
        )

    def send(self, text: str):
        """Write and send."""
        self.page.fill("#box textarea", text)
        self.page.click("#box .submit-button")

    def ask(self, text: str) -> str:
        """Write and send; the answer, when it is complete."""
        count = self.answers.count()
        self.send(text)
        self.page.wait_for_function(
            f"document.querySelectorAll('#chat [data-testid=bot]').length > {count}", timeout=WAIT
        )
        self.done()
        return self.answers.last.inner_text().strip()

    def done(self):
        """No answer is being written any more."""
        self.page.wait_for_selector("#box .submit-button", timeout=WAIT)

    @property
    def answers(self):
        """Messages of the model."""
        return self.page.locator("#chat [data-testid=bot]")

    def look(self):
        """What the model heard and saw."""
        self.page.wait_for_selector("#panel .look", timeout=WAIT)
        return self.page.locator("#panel .look")


@contextlib.contextmanager
def tab(chromium, url: str, **options):
    """A tab that is closed in the end."""
    found = Tab(chromium, url, **options)
    try:
        yield found
        assert found.faults == []
    finally:
        found.context.close()


async def own_answer(service, content: list[dict], **options) -> str:
    """What the service says to one question."""
    body = ChatBody(model=NAME, messages=[{"role": "user", "content": content}], temperature=0, **options)
    return "".join([delta.text async for _, delta in await service.ask(body)]).strip()


def until(condition, seconds: float = 20.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_files_are_asked_about_and_looked_at(served, chromium, media):
    names = ("red.png", "clip.mp4")
    uploads = [served.folder / name for name in names]
    for upload in uploads:
        upload.write_bytes((media / upload.name).read_bytes())
    content = [{"type": kind, "path": str(path)} for kind, path in zip(("image", "video"), uploads)]
    content.append({"type": "text", "text": "What *is* <b>this</b>?"})
    with ThreadPoolExecutor(1) as other:  # Playwright has a loop in this one
        expected = other.submit(asyncio.run, own_answer(served.service, content, max_tokens=8)).result()
    with tab(chromium, served.url) as one:
        one.page.click("#settings button")
        one.page.fill("#most input[type=number]", "8")
        one.page.keyboard.press("Tab")
        one.add(*(media / name for name in names))
        answer = one.ask("What *is* <b>this</b>?")
        assert expected[:5] in answer
        assert "What *is* <b>this</b>?" in one.page.inner_text("#chat")
        shown = one.look()
        assert shown.count() == 2
        picture, film = shown.all()
        queries = served.service.model.config.modalities["image"].num_query_tokens
        assert picture.locator(".chip").count() == queries
        assert picture.locator("details img").count() == queries
        frames = served.service.processor.video_processor.num_frames
        assert film.locator(".stills").first.locator("img").count() == frames
        assert all(url.startswith((f"{served.url}/", "data:", "blob:")) for url in one.requests)
        one.ask("And now?")
        one.page.wait_for_selector("#panel .soft:has-text('Nothing yet')", timeout=WAIT)
        one.page.locator("#chat [data-testid=user]").first.click()  # its media are shown again
        assert one.look().count() == 2
        one.page.click("#undo button, button#undo")
        one.page.wait_for_function("document.querySelector('#box textarea').value == 'And now?'", timeout=WAIT)
        one.page.click("#undo button, button#undo")
        one.page.wait_for_function(
            "document.querySelectorAll('#chat [data-testid=bot], #chat [data-testid=user]').length == 0", timeout=WAIT
        )
        assert one.page.input_value("#box textarea") == "What *is* <b>this</b>?"
        assert one.page.locator("#box .thumbnail-item").count() == 2


def test_the_microphone_is_heard(served, chromium):
    with tab(chromium, served.url, permissions=["microphone"]) as one:
        one.page.click("#box .microphone-button")
        # Where the microphones are not known yet, Gradio draws its recorder again, and what was begun is gone.
        one.page.wait_for_selector(".minimal-audio-recorder option", state="attached", timeout=WAIT)
        one.page.click(".minimal-audio-recorder .record-button")
        one.page.wait_for_selector(".minimal-audio-recorder .timestamp:text('0:01')", timeout=WAIT)
        one.page.click(".minimal-audio-recorder .stop-button")
        one.page.click("#box .confirm-button")
        one.page.wait_for_selector("#box .thumbnail-item", timeout=WAIT)
        one.ask("What is said?")
        told = one.look().inner_text()
        assert 0.5 < float(re.search(r"([\d.]+) s heard", told).group(1)) < 5
        heights = one.page.evaluate(
            "[...document.querySelectorAll('#panel .wave rect')].map(bar => +bar.getAttribute('height'))"
        )
        assert max(heights) > 50  # what the microphone was given is a tone
        assert one.page.locator("#panel .weight rect").count() > 5


COUNT_RECORDED = """() => {
    const start = MediaRecorder.prototype.start;
    window.recorded = 0;  // bytes
    MediaRecorder.prototype.start = function (...given) {
        this.addEventListener('dataavailable', event => { window.recorded += event.data.size; });
        start.apply(this, given);
    };
}"""


@pytest.mark.parametrize(
    ("label", "shutter"), [("Record a video", "start recording"), ("Take a picture", "capture photo")]
)
def test_what_a_camera_takes_is_asked_about(served, chromium, label, shutter):
    """What Chromium's camera shows: green, with a disc and a clock."""
    with tab(chromium, served.url, permissions=["camera", "microphone"]) as one:
        one.page.click("#camera button.label-wrap")
        camera = one.page.locator("#camera .block", has_text=label).last
        camera.locator("button:has-text('Click to Access Webcam')").click()
        one.page.wait_for_function(
            "[...document.querySelectorAll('#camera video')].some(video => video.videoWidth)", timeout=WAIT
        )
        one.page.evaluate(COUNT_RECORDED)
        camera.locator(f"button[aria-label='{shutter}']").click(timeout=WAIT)
        if shutter == "start recording":
            one.page.wait_for_function("recorded > 20_000", timeout=WAIT)  # a busy machine is slow to film
            camera.locator(f"button[aria-label='{shutter}']").click()
        one.page.wait_for_selector("#box .thumbnail-item", timeout=WAIT)
        one.ask("What is this?")
        seen = ".chip" if shutter == "capture photo" else ".stills img"
        assert one.look().locator(seen).count() > 0


def test_two_tabs_and_what_a_closed_or_stopped_one_leaves(served, chromium, monkeypatch):
    step = Rows.step

    def slowly(self, *args):
        time.sleep(0.05)
        return step(self, *args)

    monkeypatch.setattr(Rows, "step", slowly)
    engine = served.service.engine
    with tab(chromium, served.url) as one, tab(chromium, served.url) as other:
        one.send("first")
        other.send("second")
        assert until(lambda: engine.running == 2)
        one.page.wait_for_selector("#chat [data-testid=bot]", timeout=WAIT)
        one.page.click("#box button[aria-label=Stop]")
        assert until(lambda: engine.running == 1, 5)
        one.done()
        assert "stopped" in one.answers.last.inner_text()
        other.page.wait_for_selector("#chat [data-testid=bot]", timeout=WAIT)
        assert "first" not in other.page.inner_text("#chat")
        assert "second" not in one.page.inner_text("#chat")
        other.page.close()
        assert until(lambda: engine.running == 0, 5)
        monkeypatch.setattr(Rows, "step", step)
        one.ask("third")  # what was stopped does not stand in the way
        one.page.click("#clear button, button#clear")
        one.page.wait_for_function(
            "document.querySelectorAll('#chat [data-testid=bot], #chat [data-testid=user]').length == 0", timeout=WAIT
        )


def test_what_is_wrong_is_said_in_a_line(served, chromium, media, tmp_path):
    with tab(chromium, served.url) as one:
        one.page.click("#box .submit-button")
        one.page.wait_for_selector("#notice p", timeout=WAIT)
        assert one.page.inner_text("#notice") == "Write something, or add a file."
        one.add(media / "broken.wav")
        one.send("What is said?")
        one.page.wait_for_selector("#notice p:has-text('broken.wav')", timeout=WAIT)
        assert str(served.folder) not in one.page.inner_text("#notice")
        assert one.page.input_value("#box textarea") == "What is said?"
        assert one.page.locator("#chat [data-testid=bot], #chat [data-testid=user]").count() == 0
        assert one.page.locator(".toast-body").count() == 0
        one.done()
        one.ask("And now?")
        assert one.page.locator("#notice p").count() == 0
        cut = tmp_path / "cut_off.png"
        cut.write_bytes((media / "red.png").read_bytes()[:-12])
        one.add(cut)
        assert one.ask("What is this?").endswith("Beware: cut_off.png: cut off: the end of the file is missing")
        assert "Beware" not in one.ask("And now?")


def test_settings_that_are_none(served, chromium):
    with tab(chromium, served.url) as one:
        one.page.click("#settings button")
        seed = one.page.locator("#seed textarea, #seed input")
        assert seed.input_value() == ""
        for wrong in ("1.7", "99999999999999999999", "x"):
            seed.fill(wrong)
            one.send("What?")
            one.page.wait_for_selector("#notice p:has-text('A seed is a whole number')", timeout=WAIT)
            one.page.click("button#clear")
            one.page.wait_for_selector("#notice p", state="detached", timeout=WAIT)
        one.page.fill("#temperature input[type=number]", "2")
        one.page.fill("#most input[type=number]", "8")
        answers = []
        for number in ("7", "7", "", ""):
            seed.fill(number)
            answers.append(one.ask("What?"))
            one.page.click("button#clear")
            one.answers.first.wait_for(state="detached", timeout=WAIT)
        assert answers[0] == answers[1] != answers[2] != answers[3]


DROP = """name => {
    const data = new DataTransfer(), box = document.querySelector('#box textarea');
    data.items.add(new File(['x'], name));
    box.dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: data}));
}"""


def test_what_gradio_says_is_chinese_too(served, chromium, tmp_path):
    large = tmp_path / "大.png"
    large.write_bytes(bytes(5 << 20))
    with tab(chromium, served.url, locale="zh-CN") as one:
        one.page.click("#camera button.label-wrap")
        one.page.locator("#camera button", has_text="点击打开摄像头").first.wait_for(timeout=WAIT)
        one.page.evaluate(DROP, "Error '引号'.heic")
        one.page.locator(".toast-body", has_text="1 个文件无法读取。可用格式：.aac, ").wait_for(timeout=WAIT)
        one.page.set_input_files("#box input[type=file]", {"name": "x.heic", "mimeType": "", "buffer": b"x"})
        one.page.locator(".toast-body", has_text="无法读取：x.heic。可用格式：.aac, ").wait_for(timeout=WAIT)
        one.page.set_input_files("#box input[type=file]", str(large))
        one.page.locator(".toast-body", has_text='文件超过 4.0 Mb 的上限："大.png"').wait_for(timeout=WAIT)
        said = one.page.locator(".toast-body").inner_text()
        assert not re.search(r"Error|Warning|file|allowed", said), said
        one.page.close()


def test_a_server_that_fails_or_is_gone_is_told(served, chromium, monkeypatch):
    """What there is of the answer stays to be seen."""

    class Failing:
        doubts = ()

        async def __aiter__(self):
            yield 0, Delta("Half an")
            time.sleep(0.1)
            yield 0, Delta(" answer")
            raise RuntimeError

        def cancel(self):
            pass

    async def ask(body, **options):
        return Failing()

    with tab(chromium, served.url) as one:
        with monkeypatch.context() as patch:
            patch.setattr(served.service, "ask", ask)
            one.send("What?")
            one.page.wait_for_selector("#notice p:has-text('the server has failed')", timeout=WAIT)
        assert one.answers.last.inner_text().strip() == "Half an answer"
        assert not one.page.locator("[data-testid=status-tracker]:visible", has_text="Error").count()
        one.done()
        one.ask("And now?")
        one.page.route("**/queue/data*", lambda route: route.abort())
        one.send("And then?")
        one.page.locator(".toast-body", has_text="Load the page anew when it is back").wait_for(timeout=WAIT)
        assert "Half an answer" in one.page.inner_text("#chat")
        one.page.close()
        one.faults.clear()  # Gradio asks for a route that is shut


def test_a_long_conversation_is_answered_in_what_is_left_of_the_context(served, chromium, media):
    service = served.service

    def length(text: str) -> int:
        return service.encode([{"role": "user", "content": [{"type": "text", "text": text}]}])["input_ids"].shape[1]

    words = next("word " * count for count in range(1024, 0, -1) if length("word " * count) <= service.context - 20)
    left = service.context - length(words.strip())
    with tab(chromium, served.url) as one:
        assert f"cut at {left} tokens" in one.ask(words) or len(one.answers.last.inner_text()) < left
        one.add(media / "red.png")
        one.send("What is this?")
        one.page.wait_for_selector("#notice p:has-text('too long for the model')", timeout=WAIT)
        one.done()
        assert one.page.input_value("#box textarea") == "What is this?"
        assert one.page.locator("#box .thumbnail-item").count() == 1
        one.page.click("#clear button, button#clear")
        one.page.wait_for_function("document.querySelectorAll('#chat [data-testid=user]').length == 0", timeout=WAIT)
        one.page.click("#box .submit-button")
        assert one.look().count() == 1


MARKUP = (
    "<img src=x onerror=alert(1)> <script>alert(2)</script> [a](javascript:alert(3)) ![b](http://example.org/b.png)"
)


def test_nothing_that_is_written_runs(served, chromium, monkeypatch):
    class Written:
        doubts = ()

        async def __aiter__(self):
            yield 0, Delta(f"{MARKUP} **bold** `<i>`", finish_reason="stop")

        def cancel(self):
            pass

    async def ask(body, **options):
        return Written()

    monkeypatch.setattr(served.service, "ask", ask)
    with tab(chromium, served.url) as one:
        one.ask(MARKUP)
        time.sleep(0.5)
        said = one.page.inner_text("#chat")
        assert said.count("<script>alert(2)</script>") == 2
        assert MARKUP in said
        assert one.page.locator("#chat strong").inner_text() == "bold"
        assert one.page.evaluate("[...document.querySelectorAll('#chat a')].every(a => !/^javascript/i.test(a.href))")
        assert not [url for url in one.requests if "example.org" in url and not _is_blocked(one, url)]


def _is_blocked(one: Tab, url: str) -> bool:
    return one.page.evaluate("url => performance.getEntriesByName(url).every(entry => !entry.transferSize)", url)


def test_a_phone_in_chinese(served, chromium, media):
    with tab(chromium, served.url, viewport={"width": 390, "height": 844}, locale="zh-CN", has_touch=True) as one:
        assert one.page.url.endswith("/zh/")
        assert "模型听到和看到了什么" in one.page.inner_text("body")
        assert one.page.evaluate("document.documentElement.scrollWidth") <= 390
        box = one.page.locator("#box").bounding_box()
        assert box["y"] + box["height"] <= 844  # what one writes into is seen at once
        one.add(media / "red.png")
        one.ask("这是什么？")
        notes = one.look().locator("p.soft").all_inner_texts()
        assert any("的注意力落在类别或寄存器词元上" in note for note in notes), notes
        assert one.page.evaluate("document.documentElement.scrollWidth") <= 390
        one.page.click("#head a")
        one.page.wait_for_url(f"{served.url}/en/")
        one.page.wait_for_selector("text=What the model heard and saw", timeout=WAIT)
