// The service worker: keeps every file of the site, so that the page works offline once it was loaded.
//
// The build writes the two constants in front. A file that is not the one that was built is not kept: then this worker
// does not install, and the page says so. A new build is another cache; it takes over when the old page is closed.

declare const BUILD: string;
declare const FILES: Readonly<Record<string, string>>; // URL relative to the site to integrity, as of `fetch`

const worker = self as unknown as ServiceWorkerGlobalScope;
const OURS = `vitedge ${worker.registration.scope} `; // other sites of the same origin have caches too
const CACHE = OURS + BUILD;

worker.addEventListener("install", (event) => {
  const requests = Object.entries(FILES).map(([url, integrity]) => new Request(url, { integrity, cache: "no-cache" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)));
});

worker.addEventListener("activate", (event) => {
  const discard = async () => {
    const others = (await caches.keys()).filter((name) => name.startsWith(OURS) && name !== CACHE);
    await Promise.all(others.map((name) => caches.delete(name)));
  };
  event.waitUntil(discard());
});

worker.addEventListener("fetch", (event) => {
  const answer = async () => {
    const cache = await caches.open(CACHE);
    const kept = await cache.match(event.request.mode === "navigate" ? "./" : event.request, { ignoreSearch: true });
    return kept ?? fetch(event.request);
  };
  event.respondWith(answer());
});
