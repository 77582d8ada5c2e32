// Runs the calls that tests/browser.py sends, a JSON line each, on a page of headless Chromium; answers a line each.
//
//     node browser.mjs PLAYWRIGHT_CORE CHROMIUM
//
// {"on": "browser", "method": "open", "args": [options]} begins anew, with no cache, cookie or worker of before;
// "page" and "context" take any method of Playwright; "log" gives what happened on the page since then.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [, , package_, executablePath] = process.argv;
const { chromium } = createRequire(import.meta.url)(package_);
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
args.push("--disable-component-update", "--disable-sync");
args.push("--host-resolver-rules=MAP insecure.test 127.0.0.1"); // plain http counts as secure on localhost only
const chrome = await chromium.launch({ executablePath, args });
const on = {
  browser: {
    open: async (options) => {
      await on.context?.close();
      on.context = await chrome.newContext(options);
      on.context.setDefaultTimeout(120_000);
      on.page = await on.context.newPage();
      const log = { errors: [], requests: [], downloads: [] };
      on.log = { read: () => log };
      on.page.on("pageerror", (error) => log.errors.push(String(error)));
      on.page.on("console", (message) => message.type() === "error" && log.errors.push(message.text()));
      on.page.on("request", (request) => log.requests.push(request.url()));
      on.page.on("download", async (download) => log.downloads.push(await download.path()));
      on.threads = { count: () => on.page.workers().length };
    },
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const call = JSON.parse(line);
  let answer;
  try {
    const value = await on[call.on][call.method](...call.args);
    answer = { value: ["goto", "reload", "waitForSelector", "pdf"].includes(call.method) ? null : value };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await chrome.close();
