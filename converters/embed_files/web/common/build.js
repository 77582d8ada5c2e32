// What `npm run build` does after tsc: puts a page, the engine, the model and the golden vectors beside the modules in
// site/, which any static server can serve. No bundler: an import map says where the engine is.

import { createHash } from "node:crypto";
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";

const { imports, files } = JSON.parse(readFileSync("package.json", "utf8")).site;
const sha256 = (data) => `sha256-${createHash("sha256").update(data).digest("base64")}`;

for (const file of [...Object.values(imports), ...files]) {
  if (!existsSync(`node_modules/${file}`)) {
    console.error(`node_modules/${file}: expected a file of the engine, found none; run npm install`);
    process.exit(2);
  }
  cpSync(`node_modules/${file}`, `site/vendor/${file}`);
}
for (const folder of ["public", "model", "golden"]) {
  cpSync(folder, folder === "public" ? "site" : `site/${folder}`, { recursive: true });
}

// The page allows scripts of its own site only; the import map, which must be inline, is allowed by its hash.
const paths = Object.entries(imports).map(([name, file]) => [name, `./vendor/${file}`]);
const map = JSON.stringify({ imports: Object.fromEntries(paths) });
const page = readFileSync("public/index.html", "utf8").replace("IMPORT_MAP", map).replace("IMPORT_HASH", sha256(map));
writeFileSync("site/index.html", page);

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
