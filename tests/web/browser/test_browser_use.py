"""The page that computes in the browser, in use: its words, order, keyboard, hosts."""

import re

from browsing import compute, download, open_page, wait_until_ready
from helpers.data import make_scene, save_image, truncate_file
from helpers.servers.browser import serving_plainly
from PIL import Image


def test_files_that_are_no_use(page, tmp_path):
    """Each is named, with what is wrong; the sound one among them has its result."""
    sound = save_image(tmp_path / "sound.png", make_scene(0, 200, 150)[0])
    torn = truncate_file(save_image(tmp_path / "torn.jpg", make_scene(1, 200, 200)[0]))
    huge = save_image(tmp_path / "huge.png", Image.new("1", (20_000, 20_000)))
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    others = [tmp_path / name for name in ("text.jpg", "empty.png", "phone.heic")]
    told = "\n".join(compute(page, [torn, huge, *others, sound]))
    assert "torn.jpg: cannot be read: damaged, incomplete" in told
    assert "huge.png: 20000 × 20000 exceeds 100 megapixels; shrink it" in told
    assert "text.jpg: not an image" in told and "empty.png: the file is empty" in told
    assert "phone.heic: HEIC" in told and "200 × 150, " in told
    assert download(page, "sound.png", tmp_path).size == (200, 150)
    drop = "const data = new DataTransfer(); data.setData('text/uri-list', 'https://example.com');"
    page.evaluate(drop + "dispatchEvent(new DragEvent('drop', { dataTransfer: data }))")
    assert "No image file found" in page.locator("#notice").text_content()


def focused(page):
    return page.evaluate("document.activeElement.ariaLabel")


def test_moving_images_and_the_keyboard(page, tmp_path):
    """That the first image is taken is said; the focus stays where the keyboard was."""
    scenes = [Image.fromarray(make_scene(seed, 60, 40)[0]) for seed in range(2)]
    for name in ("moving.gif", "moving.png", "moving.webp"):
        save_image(tmp_path / name, scenes[0], save_all=True, append_images=scenes[1:])
    save_image(tmp_path / "still.gif", scenes[0])
    *moving, still = compute(page, sorted(tmp_path.iterdir()))
    assert all("60 × 40, first frame only, " in text for text in moving)
    assert "60 × 40, " in still and "first" not in still
    save = page.get_by_role("button", name="Download PNG of moving.gif")
    save.focus()
    with page.expect_download():
        save.press("Enter")
    page.locator(".card > .about > p", has_text=re.compile(r"\d ms$")).nth(3).wait_for()
    assert focused(page) == "Download PNG of moving.gif"
    for name, then in (("moving.gif", "Remove moving.png"), ("still.gif", "Remove moving.webp")):
        page.get_by_role("button", name=f"Remove {name}").press("Enter")
        assert focused(page) == then


RECORD = """
asked = [];
const { postMessage } = Worker.prototype;
Worker.prototype.postMessage = function (message) {
  postMessage.apply(this, arguments);
  const { kind, image } = message;
  asked.push(image ? `${kind} ${image}` : kind);
  if (kind !== "open" || image !== 2) return;
  said = [...document.querySelectorAll(".card p")].map((p) => p.textContent);
  document.querySelector(".save").click();
  document.querySelector("[name=mode][value=mask]").click();
};
"""


def test_what_is_ready_comes_before_what_waits(browser, address, tmp_path):
    """A result is shown when it is there; then it is saved, and drawn anew, while others wait."""
    paths = [save_image(tmp_path / f"{seed}.png", make_scene(seed, 60, 40)[0]) for seed in range(3)]
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(RECORD)
    open_page(page, address)
    compute(page, paths)
    asked = page.evaluate("asked")
    before = asked[: asked.index("open 3")]
    assert before[:5] == ["load", "open 1", "preview 1", "open 2", "save 1"]
    assert before.count("preview 1") == 2 and "preview 2" in before
    first, *others = page.evaluate("said")
    assert first.endswith(" ms") and others == ["Processing…", "Waiting…"]
    context.close()


def test_no_room_to_keep_it(browser, address):
    """Where the browser gives it little, the page does not promise to work without a network."""
    context = browser.new_context()
    page = context.new_page()
    quota = {"origin": address.rstrip("/"), "quotaSize": 3_000_000}
    context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", quota)
    open_page(page, address)
    page.locator("#status", has_text="this browser has no room to store it").wait_for()
    context.close()


def test_a_plain_host_and_no_network(built, browser, tmp_path):
    """The service worker adds the headers for threads, and later the page works without the host;
    on a telephone's screen nothing is wider than that."""
    sound = save_image(tmp_path / "sound.png", make_scene(0, 200, 150)[0])
    context = browser.new_context(viewport={"width": 360, "height": 740})
    with serving_plainly(built[0]) as (address, stop):
        page = context.new_page()
        open_page(page, address)
        page.locator("#status", has_text="This page now works offline").wait_for()
        assert page.evaluate("crossOriginIsolated")
        ask = "fetch('data:,x').then(() => 'asked', () => 'refused')"
        assert page.workers[0].evaluate(ask) == "refused"  # the policy holds where images are
        stop()
    context.set_offline(True)
    page.reload()
    wait_until_ready(page)
    compute(page, [sound])
    assert download(page, "sound.png", tmp_path).size == (200, 150)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_no_service_worker(built, browser):
    """It runs in one thread, and says so."""
    context = browser.new_context(service_workers="block")
    errors = []
    context.on("weberror", lambda error: errors.append(error.error.message))
    with serving_plainly(built[0]) as (address, _):
        said = open_page(context.new_page(), address)
        page = context.new_page()
        page.route("**/model.onnx", lambda route: route.fulfill(status=404))
        page.goto(address)
        page.get_by_text("could not be loaded: model.onnx: the server returned 404").wait_for()
    context.close()
    assert not errors
    assert "one CPU thread" in said and "headers that this host does not send" in said
    assert "offline" not in said


def test_as_it_is_served(built, address, browser):
    """The headers and types; what is not there, and paths that lead elsewhere, are not found."""
    context = browser.new_context()
    ask = context.request
    answer = ask.get(address)
    assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    policy = ask.get(f"{address}worker/worker.js").headers["content-security-policy"]
    assert f'content="{policy}"' in answer.text() and "connect-src 'self'" in policy
    wasm = ask.head(f"{address}runtime/ort-wasm-simd-threaded.wasm")
    assert wasm.headers["content-type"] == "application/wasm"
    module = ask.get(f"{address}runtime/ort.wasm.min.mjs")
    assert module.headers["content-type"].startswith("text/javascript")
    for path in ("nothing", "..%2f..%2fetc%2fpasswd", "a%00b", "a%ff", "x" * 300):
        answer = ask.get(address + path)
        assert answer.status == 404 and answer.json() == {"error": "not found"}
    answer = ask.post(address)
    assert answer.status == 405 and answer.headers["allow"] == "GET, HEAD"
    assert answer.json() == {"error": "POST is not allowed here; use GET, HEAD"}
    context.close()
