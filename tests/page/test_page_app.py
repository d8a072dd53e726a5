# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a client may ask of the page that no browser would: files, addresses, other routes, other sites."""

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request

import pytest


SECRET = "nobody's business"


def ask(page, path, body=None, **headers):
    """Status, text and headers of a reply."""
    url = urllib.parse.urljoin(page.url, urllib.parse.quote(path, safe="/=:?%.&"))
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode("utf-8", "replace"), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace"), error.headers


def upload(page, name: str, content: bytes, language="en"):
    """What the page's own upload answers."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body, kind = head + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
    return ask(page, f"/{language}/gradio_api/upload", body, Content_Type=kind)


def join(page, number: int, data, route="queue/join"):
    """Send an event as the page's own scripts do."""
    body = json.dumps({"data": data, "fn_index": number, "session_hash": "attack", "trigger_id": None}).encode()
    return ask(page, f"/en/gradio_api/{route}", body, Content_Type="application/json")


def medium(path: str, **more) -> dict:
    """A file in an event."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def stored(page) -> dict[str, bytes]:
    """What lies in the folder of uploads."""
    return {str(path): path.read_bytes() for path in page.folder.rglob("*") if path.is_file()}


def test_browsers_find_an_icon(served):
    status, _, headers = ask(served, "/favicon.ico")
    assert (status, headers["content-type"].startswith("image/")) == (200, True)


def test_the_page_is_in_the_browsers_language(served):
    for accepted, language in [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.1", "en"),
        ("fr,de", "en"),
        ("", "en"),
    ]:
        request = urllib.request.Request(served.url, headers={"Accept-Language": accepted})
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert reply.url == f"{served.url}/{language}/"


@pytest.mark.parametrize("form", ["{}", "%2e%2e/..{}", "file://{}", "{}/../{}"])
def test_no_file_of_the_server_is_opened(served, tmp_path, form):
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    for place in (str(secret), "/etc/passwd"):
        status, text, _ = ask(served, f"/en/gradio_api/file={form.format(place, place)}")
        assert status in (403, 404)
        assert SECRET not in text
        assert "root:" not in text


def test_no_address_is_fetched(served):
    for address in (f"{served.url}/en/", "http://127.0.0.1:1/", "http://example.org/x.png"):
        assert ask(served, f"/en/gradio_api/file={address}")[0] == 404


def test_events_name_uploads_alone(served, tmp_path):
    secret, before = tmp_path / "secret.wav", stored(served)
    secret.write_text(SECRET)
    (served.folder / "link.wav").symlink_to(secret)
    places = [str(secret), "/etc/passwd", "http://example.org/x.wav", f"{served.folder}/../x", "\0", 7, [str(secret)]]
    for place in (*places, str(served.folder / "link.wav")):
        for number in range(8):  # whatever part of the page takes it
            said = {"text": "What?", "files": [medium(place)]}
            for route in ("queue/join", "run/predict"):
                assert join(served, number, [said, None, None, 0, 1, 8, None], route)[0] == 403, place
    (served.folder / "link.wav").unlink()
    assert stored(served) == before
    assert join(served, 0, [{"x": "y" * (2 << 20)}])[0] == 413
    assert ask(served, "/en/gradio_api/queue/join", b"{", Content_Type="application/json")[0] == 400


def test_uploads_stay_in_their_folder_and_have_a_limit(served, tmp_path):
    status, text, _ = upload(served, "../../../escaped.txt", b"a")
    assert status == 200
    [place] = json.loads(text)
    assert place.startswith(f"{served.folder}/")
    status, text, headers = ask(served, f"/en/gradio_api/file={place}")
    assert (status, text) == (200, "a")
    before = stored(served)
    connection = http.client.HTTPConnection(served.url.partition("://")[2], timeout=60)
    headers = {"Content-Length": str(5 << 20), "Content-Type": "multipart/form-data; boundary=x"}
    connection.request("POST", "/en/gradio_api/upload", headers=headers)  # refused before any of it is sent
    assert connection.getresponse().status == 413
    connection.close()
    assert stored(served) == before


def test_what_is_uploaded_does_not_run_in_the_page(served):
    for name in ("evil.html", "evil.svg"):
        [place] = json.loads(upload(served, name, b"<script>alert(1)</script>")[1])
        status, _, headers = ask(served, f"/en/gradio_api/file={place}")
        assert status == 200
        assert headers["content-disposition"].startswith("attachment")
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/docs", "/openapi.json", "/en/monitoring", "/en/gradio_api/vibe-edit", "/en/gradio_api/proxy=http://example.org/",
        "/en/gradio_api/process_recording", "/en/gradio_api/component_server", "/en/gradio_api/run/answer",
        "/en/gradio_api/call/answer", "/en/gradio_api/openapi.json", "/en/gradio_api/app_id", "/en/login",
    ],
)  # fmt: skip
def test_other_routes_of_gradio_are_shut(served, path):
    assert ask(served, path)[0] == 404
    assert ask(served, path, b"{}", Content_Type="application/json")[0] == 404


def test_other_sites_and_names_are_refused(served):
    assert ask(served, "/en/", Host="evil.example")[0] == 403
    assert ask(served, "/en/", Origin="https://evil.example")[0] == 403
    assert ask(served, "/en/", Origin=served.url)[0] == 200


def test_the_policy_of_the_page_lets_nothing_else_in(served):
    _, text, headers = ask(served, "/en/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "googleapis" not in text


def test_a_password_is_asked_for_everything(tmp_path):
    import gradio
    from page_fixtures import serving_page

    def build(language):
        with gradio.Blocks(analytics_enabled=False) as blocks:
            gradio.Markdown(language)
        return blocks

    def basic(password: str) -> str:
        return f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"

    with serving_page(build, tmp_path, password="öffne dich") as page:
        status, _, headers = ask(page, "/en/")
        assert status == 401
        assert headers["www-authenticate"].startswith("Basic")
        for wrong in (basic("offne dich"), "Basic !", "Bearer öffne dich".encode().decode("latin-1"), "Basic"):
            for path in ("/en/", "/en/config", "/en/theme.css", "/en/gradio_api/upload"):
                assert ask(page, path, Authorization=wrong)[0] == 401
        assert ask(page, "/en/", Authorization=basic("öffne dich"))[0] == 200
