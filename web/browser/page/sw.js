// Keeps the page for offline use, and adds the headers that threads need if the host does not send
// them, and the page's policy, which its worker would otherwise lack. The build prepends VERSION,
// SHELL (files to cache at once), LATER (files to cache once they have been used: runtime, network)
// and POLICY.

const NAME = `u2net-${VERSION}`;
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Content-Security-Policy": POLICY,
};
const pathOf = (url) => new URL(url).href.split(/[?#]/)[0].slice(self.registration.scope.length);

self.addEventListener("install", (event) => event.waitUntil(fill()));

async function fill() {
  const used = [];
  for (const name of await ownCaches()) {
    const keys = await (await caches.open(name)).keys();
    used.push(...keys.map(({ url }) => pathOf(url)).filter((path) => LATER.includes(path)));
  }
  const paths = new Set([...SHELL, ...used]);
  const cache = await caches.open(NAME);
  await cache.addAll([...paths].map((path) => new Request(path, { cache: "no-cache" })));
}

self.addEventListener("activate", (event) => {
  const clear = async () => {
    for (const name of await ownCaches()) if (name !== NAME) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(clear());
});

// All pages of an origin share its caches: those with files from our scope are this page's.
async function ownCaches() {
  const found = [];
  for (const name of await caches.keys()) {
    if (!name.startsWith("u2net-")) continue;
    const [first] = await (await caches.open(name)).keys();
    if (!first || first.url.startsWith(self.registration.scope)) found.push(name);
  }
  return found;
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && request.url.startsWith(self.registration.scope)) {
    event.respondWith(answer(request, event));
  }
});

async function answer(request, event) {
  const path = pathOf(request.url) || "index.html";
  const known = SHELL.includes(path) || LATER.includes(path);
  if (!known) return fetch(request);
  const cache = await caches.open(NAME);
  let response = await cache.match(path);
  if (!response) {
    response = await fetch(path, { cache: "no-cache" });
    if (response.ok) event.waitUntil(keep(cache, path, response.clone()));
  }
  const { body, status, statusText } = response;
  return new Response(body, { status, statusText, headers: withHeaders(response.headers) });
}

const writing = new Set();

function keep(cache, path, response) {
  const done = cache.put(path, response).catch(() => {}); // no room: the page asks, and says so
  writing.add(done);
  return done.finally(() => writing.delete(done));
}

self.addEventListener("message", (event) => {
  event.waitUntil(areKept(event.data).then((kept) => event.ports[0].postMessage(kept)));
});

/** Whether the whole page is cached, and these files of its runtime and network. */
async function areKept(paths) {
  await Promise.all(writing);
  const cache = await caches.open(NAME);
  const found = await Promise.all([...SHELL, ...paths].map((path) => cache.match(path)));
  return found.every(Boolean);
}

function withHeaders(headers) {
  const all = new Headers(headers);
  for (const [name, value] of Object.entries(HEADERS)) all.set(name, value);
  return all;
}
