// The page: its input and output. The work is done in worker.js.

import { MAX_PIXELS, MAX_SIDE } from "./worker/pixels.js";

const find = (selector, root = document) => root.querySelector(selector);
const [status, progress, form, results] = ["#status", "#progress", "#style", "#results"].map((s) => find(s));
const cards = new Map(); // by number
let ready, added = 0, wanted = 0;

// Requests to the worker.

const pending = new Map();
let worker, asked = 0;

function ask(kind, content = {}, tell = () => {}) {
  return new Promise((resolve, reject) => {
    pending.set(++asked, { resolve, reject, tell });
    worker.postMessage({ id: asked, kind, ...content });
  });
}

function startWorker() {
  worker = new Worker(`worker/worker.js${location.search}`, { type: "module" });
  worker.onmessage = ({ data: { id, done, result, error } }) => {
    const request = pending.get(id);
    if (!request) return; // already failed in another way
    if (done !== undefined) return request.tell(done);
    pending.delete(id);
    if (error === undefined) request.resolve(result);
    else request.reject(new Error(error));
  };
  worker.onerror = (event) => {
    for (const { reject } of pending.values()) {
      reject(new Error(event.message || "the page's files could not be loaded"));
    }
    pending.clear();
  };
}

let wishes = Promise.resolve(); // the user's requests for images that are ready

/** Let `work` go before waiting images. */
function hurry(work) {
  wishes = Promise.allSettled([wishes, work]);
}

async function untilFree() {
  for (let seen; seen !== wishes; ) await (seen = wishes);
}

// Loading.

/** Let the service worker take over: it adds the headers for threads if the host lacks them. */
async function register() {
  const { serviceWorker } = navigator;
  if (!serviceWorker) return;
  const registration = await serviceWorker.register("sw.js");
  if (!serviceWorker.controller && !registration.active) {
    await new Promise((resolve) => {
      serviceWorker.addEventListener("controllerchange", resolve, { once: true });
      const { installing } = registration;
      installing?.addEventListener("statechange", () => installing.state === "redundant" && resolve()); // it failed
      setTimeout(resolve, 60_000);
    });
  }
  if (!serviceWorker.controller || crossOriginIsolated || cards.size || sessionStorage.reloaded) return;
  sessionStorage.reloaded = true; // only once: in some browsers it does not help
  location.reload();
  await new Promise(() => {});
}

async function load() {
  try {
    await register().catch(() => {}); // private window or no HTTPS: works without
    startWorker(); // only now, so that the service worker adds the policy to its scripts
    const { place, files } = await ask("load", {}, (done) => {
      progress.value = done;
      find("#share").textContent = `${Math.floor(100 * done)}%`; // too frequent to be read out
    });
    const slow = crossOriginIsolated
      ? ""
      : " Multithreading needs headers that this host does not send.";
    status.textContent = `Ready. Running on ${place}.${place.startsWith("one") ? slow : ""}`;
    tellKept(files);
  } catch (error) {
    status.textContent = `The model could not be loaded: ${error.message}`;
    find("#retry").hidden = false;
    throw error;
  } finally {
    progress.hidden = find("#share").hidden = true;
  }
}

/** Say whether the page works offline: the browser may have had no room for its files. */
function tellKept(files) {
  const channel = new MessageChannel();
  channel.port1.onmessage = ({ data: kept }) => {
    status.textContent += kept
      ? " This page now works offline."
      : " This page will not work offline: this browser has no room to store it.";
  };
  navigator.serviceWorker?.controller?.postMessage(files, [channel.port2]);
}

const start = () => {
  ready = load();
  ready.catch(() => {});
};
find("#retry").addEventListener("click", () => location.reload());

// Images.

let turn = Promise.resolve(); // one image at a time

function add(file) {
  const image = ++added;
  const card = find("#card").content.firstElementChild.cloneNode(true);
  const name = file.name || "pasted image";
  find("h2", card).textContent = name;
  find("canvas", card).setAttribute("aria-label", `Result for ${name}`);
  find(".remove", card).setAttribute("aria-label", `Remove ${name}`);
  find(".save", card).setAttribute("aria-label", `Download PNG of ${name}`);
  find(".remove", card).addEventListener("click", () => remove(image));
  find(".save", card).addEventListener("click", () => hurry(save(image)));
  results.append(card);
  cards.set(image, { card, name, open: false, about: "" });
  turn = turn.then(() => compute(image, file));
}

async function compute(image, file) {
  try {
    await ready;
    await untilFree();
    const entry = cards.get(image);
    if (!entry) return; // removed while waiting
    tell(entry, "Processing…");
    await checkSize(file);
    const { width, height, moving, milliseconds } = await ask("open", { image, file });
    const frame = moving ? ", first frame only" : "";
    entry.about = `${width} × ${height}${frame}, ${milliseconds} ms`;
    entry.open = true;
    if (cards.has(image)) await preview(image);
    else ask("forget", { image });
  } catch (error) {
    const entry = cards.get(image);
    entry?.card.classList.add("failed");
    tell(entry, `${entry?.name}: ${error.message}`);
  }
  update();
}

function remove(image) {
  const { card, open } = cards.get(image);
  const near = card.nextElementSibling ?? card.previousElementSibling;
  card.remove();
  cards.delete(image);
  if (open) ask("forget", { image });
  update();
  find(near ? ".remove" : "#files", near ?? document).focus(); // else the focus is lost
}

function tell(entry, text) {
  if (entry) find("p", entry.card).textContent = text; // may have been removed
}

/** Refuse images that would use up all memory, before decoding them. */
async function checkSize(file) {
  const probe = new Image();
  probe.src = URL.createObjectURL(file);
  const known = await new Promise((resolve) => {
    probe.onload = () => resolve(true);
    probe.onerror = () => resolve(false); // the worker explains why
  });
  const { naturalWidth: width, naturalHeight: height } = probe;
  URL.revokeObjectURL(probe.src);
  probe.src = "";
  if (known && width * height > MAX_PIXELS) {
    throw new Error(`${width} × ${height} exceeds ${MAX_PIXELS / 1e6} megapixels; shrink it`);
  }
  if (known && Math.max(width, height) > MAX_SIDE) {
    throw new Error(
      `${width} × ${height}: a side exceeds ${MAX_SIDE / 1e3} thousand pixels; shrink or crop it`,
    );
  }
}

function readStyle() {
  const { mode, behind, colour, refine } = form.elements;
  const levels = [1, 3, 5].map((i) => parseInt(colour.value.slice(i, i + 2), 16));
  return { mode: mode.value, refine: refine.checked, background: behind.value === "blur" ? "blur" : levels };
}

async function preview(image) {
  const { card, about } = cards.get(image);
  const pixels = await ask("preview", { image, style: readStyle() });
  const canvas = find("canvas", card);
  [canvas.width, canvas.height] = [pixels.width, pixels.height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  tell({ card }, about);
  find(".save", card).disabled = false;
}

/** Redraw all results; a newer choice cancels this. */
async function redraw() {
  const turn = ++wanted;
  const { mode, behind, colour } = form.elements;
  find("#behind").hidden = mode.value !== "background";
  colour.hidden = behind.value !== "colour";
  for (const [image, { open }] of [...cards]) {
    if (turn !== wanted) return;
    if (open && cards.has(image)) await preview(image).catch((error) => tell(cards.get(image), error.message));
  }
}

async function save(image) {
  const { card, name, about } = cards.get(image);
  const [button, bar] = [find(".save", card), find("progress", card)];
  const style = readStyle();
  if (button.hasAttribute("aria-disabled")) return; // already being saved
  button.setAttribute("aria-disabled", true); // disabled, it would lose keyboard focus
  bar.hidden = false;
  bar.value = 0;
  tell({ card }, "Saving…");
  try {
    const file = await ask("save", { image, style }, (done) => (bar.value = done));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `${name.replace(/\.[^.]*$/, "")}-${style.mode}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    tell({ card }, about);
  } catch (error) {
    tell({ card }, `${name}: ${error.message}`);
  }
  bar.hidden = true;
  button.removeAttribute("aria-disabled");
}

function update() {
  const open = [...cards.values()].filter((entry) => entry.open).length;
  find("#all").hidden = open < 2;
}

async function saveAll() {
  for (const [image, { open }] of [...cards]) if (open && cards.has(image)) await save(image);
}

find("#all").addEventListener("click", () => hurry(saveAll()));
form.addEventListener("input", () => hurry(redraw()));
form.addEventListener("submit", (event) => event.preventDefault());

function addAll(files) {
  [...files].forEach(add);
  find("#notice").textContent = files.length
    ? ""
    : "No image file found. Save the image first, then drop or choose the file.";
}

find("#files").addEventListener("change", ({ target }) => {
  addAll(target.files);
  target.value = ""; // so that the same file can be chosen again
});
addEventListener("paste", ({ clipboardData }) => addAll(clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  addAll(event.dataTransfer.files);
});

start();
redraw();
