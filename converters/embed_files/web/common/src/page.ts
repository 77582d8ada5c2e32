// The page: pick or drop an image, see what the encoder makes of it, and test the encoder against the golden vectors.
//
// ?threads=N asks for a number of threads.

import { BackgroundEncoder } from "./background.js";
import { contract } from "./contract.js";
import { decodeImage, type Decoded } from "./decode.js";
import { fetchBytes, fetchLines } from "./files.js";
import { normalize } from "./preprocess.js";
import { loadGolden, testDecoding, testInference, testPreprocessing, type Golden, type Step } from "./selftest.js";
import type { Outputs } from "./tensor.js";
import { drawFeatures, drawImage, drawSimilarity, element, GRID, showClasses, tokenOf } from "./view.js";

interface Shown {
  name: string;
  image: Decoded;
  outputs: Outputs;
  patch: number;
}

const MODEL = new URL("model/", document.baseURI);
const GOLDEN = new URL("golden/", document.baseURI);
const at = <Type extends HTMLElement>(id: string) => document.getElementById(id) as Type;
const overlay = document.querySelector<HTMLInputElement>("#map input")!;
let shown: Shown | undefined;
let work = Promise.resolve();

/** Does one thing after another, says what it does, and shows why it failed. */
function perform(doing: string, action: () => Promise<void>): void {
  work = work.then(async () => {
    at("status").textContent = doing;
    at("error").hidden = true;
    document.body.dataset["busy"] = "true";
    try {
      await action();
      at("status").textContent = "Ready";
    } catch (error) {
      console.error(error);
      at("status").textContent = `${doing}: failed`;
      at("error").textContent = error instanceof Error ? error.message : String(error);
      at("error").hidden = false;
    }
    document.body.dataset["busy"] = "false";
  });
}

async function load(): Promise<void> {
  const asked = new URLSearchParams(location.search).get("threads");
  const encoder = await BackgroundEncoder.load(MODEL, asked === null ? {} : { threads: Number(asked) });
  const labels = contract.classes > 0 ? await fetchLines(new URL("labels.txt", MODEL)) : [];
  const golden = await loadGolden(GOLDEN);
  const { engine, threads, checked } = encoder.loaded;
  at("about").textContent = [
    `${contract.precision.toUpperCase()} on ${engine}`,
    `${contract.tokens} tokens of ${contract.hidden}`,
    threads === 1 ? "1 thread" : `${threads} threads`,
    checked ? "model checked" : "model not checked: that needs https or localhost",
  ].join(" · ");
  await encoder.run(normalize(new Uint8Array(contract.height * contract.width * 3))); // the first run takes longer
  connect(encoder, labels, golden);
}

function connect(encoder: BackgroundEncoder, labels: readonly string[], golden: Golden): void {
  const show = (name: string, read: () => Promise<Blob>) =>
    perform(`Encoding ${name}`, async () => encode(encoder, labels, await read(), name));
  for (const input of [at<HTMLInputElement>("file"), at<HTMLInputElement>("camera")]) {
    input.disabled = false;
    input.addEventListener("change", () => {
      for (const file of input.files ?? []) show(file.name, async () => file);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (file) show(file.name, async () => file);
    else perform("Dropping", () => Promise.reject(new Error("expected an image file, found something else")));
  });
  at("samples").replaceChildren(
    ...golden.images.map(({ png }, index) => {
      const [button, image] = [element("button"), element("img")];
      Object.assign(image, { src: png.href, loading: "lazy", alt: `Golden image ${index}` });
      button.append(image);
      button.addEventListener("click", () => show(image.alt, async () => new Blob([await fetchBytes(png)])));
      return button;
    }),
  );
  const button = at<HTMLButtonElement>("selftest");
  button.disabled = false;
  button.addEventListener("click", () => perform("Testing", () => selftest(encoder, golden)));
}

async function encode(encoder: BackgroundEncoder, labels: readonly string[], file: Blob, name: string): Promise<void> {
  const start = performance.now();
  const image = await decodeImage(file, name);
  const decoded = performance.now();
  const input = await encoder.preprocess(image);
  const preprocessed = performance.now();
  const outputs = await encoder.run(input);
  const end = performance.now();
  const middle = GRID ? Math.floor(GRID.rows / 2) * GRID.columns + Math.floor(GRID.columns / 2) : 0;
  shown = { name, image, outputs, patch: middle };

  const times = { Inference: end - preprocessed, Preprocessing: preprocessed - decoded, Decoding: decoded - start };
  at("times").replaceChildren(
    ...Object.entries(times).map(([what, ms]) => {
      const item = element("div");
      item.append(element("dt", what), element("dd", `${ms.toFixed(ms < 10 ? 1 : 0)} ms`));
      return item;
    }),
  );
  const token = tokenOf(outputs["last_hidden_state"]!, 0);
  const logits = outputs["logits"];
  at("classes").hidden = logits === undefined || labels.length === 0;
  if (logits && labels.length > 0) showClasses(at("classes"), logits, labels);
  drawFeatures(at("features"), token);
  at("facts").textContent =
    `The ${contract.hidden} features of the class token; norm ${Math.hypot(...token).toFixed(3)}.` +
    (image.transparent > 0 ? " The image has transparent pixels: their colors are not exactly those of the file." : "");
  at("result").hidden = false;
  at("hint").hidden = true;
  at("image").hidden = false;
  at("map").hidden = GRID === undefined;
  draw();
}

function draw(): void {
  if (!shown) return;
  const mapped = GRID !== undefined && overlay.checked;
  at("map-note").hidden = !mapped;
  drawImage(at("image"), shown.image);
  if (mapped) drawSimilarity(at("image"), shown.outputs["last_hidden_state"]!, shown.patch);
}

function choosePatch(event: MouseEvent): void {
  if (!shown || !GRID) return;
  const box = at("image").getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * GRID.columns);
  const row = Math.floor(((event.clientY - box.top) / box.height) * GRID.rows);
  shown.patch = Math.min(row, GRID.rows - 1) * GRID.columns + Math.min(column, GRID.columns - 1);
  draw();
}

function save(): void {
  if (!shown) return;
  const entries = Object.entries(shown.outputs).map(([name, { shape, values }]) => [
    name,
    { shape, values: [...values] },
  ]);
  const link = element("a");
  link.href = URL.createObjectURL(
    new Blob([JSON.stringify(Object.fromEntries(entries))], { type: "application/json" }),
  );
  link.download = `${shown.name.replace(/\.[^.]*$/, "")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function selftest(encoder: BackgroundEncoder, golden: Golden): Promise<void> {
  at("steps").replaceChildren();
  at("latency").textContent = "";
  const report = (name: string, { passed, found }: Step) => {
    const item = element("li");
    item.dataset["passed"] = String(passed);
    item.append(element("b", `${name} ${passed ? "passed" : "failed"}`), element("span", found));
    at("steps").append(item);
  };
  report("Decoding", await testDecoding(golden));
  report("Preprocessing", await testPreprocessing(golden));
  const inference = await testInference(encoder, golden);
  report("Inference", inference);
  at("latency").textContent =
    `${golden.images.length} images, median inference ${inference.medianMs.toFixed(1)} ms on` +
    (encoder.loaded.threads === 1 ? " 1 thread." : ` ${encoder.loaded.threads} threads.`);
}

/** Says whether the page works without a network from now on. */
async function keepOffline(): Promise<void> {
  if (!("serviceWorker" in navigator)) {
    at("offline").textContent = "To work offline, this page needs https or localhost.";
    return;
  }
  const registration = await navigator.serviceWorker.register("sw.js");
  const worker = registration.active ?? registration.installing ?? registration.waiting;
  const tell = () => {
    if (worker?.state === "activated") at("offline").textContent = "This page works offline.";
    if (worker?.state === "redundant") {
      at("offline").textContent = "This page does not work offline: a file is missing, or not the one that was built.";
    }
  };
  worker?.addEventListener("statechange", tell);
  tell();
}

at("image").addEventListener("click", choosePatch);
at("save").addEventListener("click", save);
overlay.addEventListener("change", draw);
perform("Loading the model", async () => {
  await load();
  perform("Preparing to work offline", keepOffline);
});
