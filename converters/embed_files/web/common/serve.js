// What `npm run serve` does: serves site/ on localhost, with the headers that let WebAssembly have threads.

import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, posix } from "node:path";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
  ".json": "application/json",
  ".txt": "text/plain; charset=utf-8",
  ".svg": "image/svg+xml",
  ".png": "image/png",
};
const port = Number(process.argv[2] ?? 8000); // 0: any that is free

function isFile(path) {
  try {
    return statSync(path).isFile();
  } catch {
    return false; // there is none, or what should be a folder is a file
  }
}

const server = createServer((request, response) => {
  const path = posix.normalize(`/${request.url.split("?")[0].replaceAll("\\", "/")}`); // absolute, so that no .. is left
  const file = join("site", path.endsWith("/") ? `${path}index.html` : path);
  const found = isFile(file);
  response.writeHead(found ? 200 : 404, {
    "Content-Type": found ? (TYPES[extname(file)] ?? "application/octet-stream") : "text/plain",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
  });
  if (found) createReadStream(file).pipe(response);
  else response.end(`${path}: no such file\n`);
});
server.listen(port, "localhost", () => console.log(`http://localhost:${server.address().port}/`));
