// What `npm run build` does after tsc: puts a page, the engine, the model and the golden vectors beside the modules in
// site/, which any static server can serve. No bundler: modules stay files.

import { createHash } from "node:crypto";
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, posix } from "node:path";

const { imports, files } = JSON.parse(readFileSync("package.json", "utf8")).site;
const { runtime } = JSON.parse(readFileSync("model/manifest.json", "utf8"));
const sha256 = (data) => `sha256-${createHash("sha256").update(data).digest("base64")}`;

for (const file of [...Object.values(imports), ...files]) {
  if (!existsSync(`node_modules/${file}`)) {
    console.error(`node_modules/${file}: expected a file of the engine, found none; run npm install`);
    process.exit(2);
  }
  cpSync(`node_modules/${file}`, `site/vendor/${file}`);
}
cpSync("public", "site", { recursive: true });
cpSync("model", "site/model", { recursive: true });
// What the artifact gave on the host is for tests of the modules; the page compares with FP32.
cpSync("golden", "site/golden", { recursive: true, filter: (path) => basename(path) !== runtime });

// Modules name the engine as packages do; browsers need to be told where that is. An import map in the page would tell
// the page alone, and not its workers.
const unlocated = new Set(Object.keys(imports));
for (const script of readdirSync("site", { recursive: true }).filter((path) => /\.m?js$/.test(path))) {
  const text = readFileSync(`site/${script}`, "utf8");
  const located = Object.entries(imports).reduce((found, [name, file]) => {
    const path = posix.relative(posix.dirname(script.replaceAll("\\", "/")), `vendor/${file}`);
    if (found.includes(`from "${name}"`)) unlocated.delete(name);
    return found.replaceAll(`from "${name}"`, `from "${path.startsWith(".") ? path : `./${path}`}"`);
  }, text);
  if (located !== text) writeFileSync(`site/${script}`, located);
}
if (unlocated.size > 0) {
  console.error(`site: expected modules that import ${[...unlocated].join(" and ")} by that name, found none`);
  process.exit(2);
}

const kept = {};
for (const entry of readdirSync("site", { recursive: true, withFileTypes: true })) {
  const path = `${entry.parentPath}/${entry.name}`.slice("site/".length).replaceAll("\\", "/");
  if (entry.isFile() && path !== "sw.js") {
    kept[path === "index.html" ? "./" : path] = sha256(readFileSync(`site/${path}`));
  }
}
const list = JSON.stringify(kept, null, 1);
const worker = readFileSync("site/sw.js", "utf8");
writeFileSync("site/sw.js", `const BUILD = "${sha256(list + worker)}";\nconst FILES = ${list};\n${worker}`);
console.log(`site: ${Object.keys(kept).length} files`);
