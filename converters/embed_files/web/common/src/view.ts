// What the page draws: classes, the class token, and how similar patches are to one of them.

import { contract } from "./contract.js";
import type { Image } from "./preprocess.js";
import { cosineOf } from "./selftest.js";
import type { Tensor } from "./tensor.js";

const COLORS = [
  [13, 8, 135],
  [126, 3, 168],
  [204, 71, 120],
  [248, 149, 64],
  [240, 249, 33],
]; // plasma, darkest first
const TOP_CLASSES = 5;
const DRAWN_SIDE = 1024;

/** Rows and columns of square patches, or undefined if tokens are not one for each patch and the class token. */
export const GRID = (() => {
  for (let rows = 1; rows < contract.tokens; rows++) {
    const columns = (contract.tokens - 1) / rows;
    if (contract.height % rows === 0 && contract.height / rows === contract.width / columns) return { rows, columns };
  }
  return undefined;
})();

/** A token of last_hidden_state; 0 is the class token. */
export function tokenOf(state: Tensor, token: number): Float32Array {
  return state.values.subarray(token * contract.hidden, (token + 1) * contract.hidden);
}

/** The most probable classes, with a bar for each. */
export function showClasses(list: HTMLElement, logits: Tensor, labels: readonly string[]): void {
  const most = logits.values.reduce((one, other) => Math.max(one, other));
  const weights = logits.values.map((value) => Math.exp(value - most));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const ranked = [...weights.keys()].sort((one, other) => weights[other]! - weights[one]!).slice(0, TOP_CLASSES);
  list.replaceChildren(
    ...ranked.map((index) => {
      const [probability, bar, item] = [weights[index]! / total, element("meter"), element("li")];
      bar.value = probability;
      item.append(element("span", labels[index]), element("span", `${(probability * 100).toFixed(1)} %`), bar);
      return item;
    }),
  );
}

/** Values as a strip of colors, from the smallest to the largest. */
export function drawFeatures(canvas: HTMLCanvasElement, values: Float32Array): void {
  canvas.width = values.length;
  const context = contextOf(canvas);
  colorsOf(values).forEach((color, x) => {
    context.fillStyle = `rgb(${color.join()})`;
    context.fillRect(x, 0, 1, canvas.height);
  });
}

/** The image as it was decoded; of large ones every second pixel, or third: enough to look at, and browsers limit the
 * area of a canvas. */
export function drawImage(canvas: HTMLCanvasElement, { data, height, width }: Image): void {
  const step = Math.ceil(Math.max(height, width) / DRAWN_SIDE);
  const pixels = new ImageData(Math.ceil(width / step), Math.ceil(height / step));
  let drawn = 0;
  for (let row = 0; row < height; row += step) {
    for (let column = 0; column < width; column += step) {
      const from = (row * width + column) * 3;
      pixels.data[drawn++] = data[from]!;
      pixels.data[drawn++] = data[from + 1]!;
      pixels.data[drawn++] = data[from + 2]!;
      pixels.data[drawn++] = 255;
    }
  }
  [canvas.width, canvas.height] = [pixels.width, pixels.height];
  contextOf(canvas).putImageData(pixels, 0, 0);
}

/** Lays the similarity of every patch to one of them over the image, and marks that one. */
export function drawSimilarity(canvas: HTMLCanvasElement, state: Tensor, patch: number): void {
  if (GRID === undefined) return;
  const { rows, columns } = GRID;
  const chosen = tokenOf(state, patch + 1);
  const cosines = Float32Array.from({ length: rows * columns }, (_, index) =>
    cosineOf(tokenOf(state, index + 1), chosen),
  );
  const small = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  colorsOf(cosines).forEach((color, index) => pixels.data.set([...color, 255], index * 4));
  small.getContext("2d")!.putImageData(pixels, 0, 0);

  const context = contextOf(canvas);
  const [height, width] = [canvas.height / rows, canvas.width / columns];
  context.globalAlpha = 0.6;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  context.strokeStyle = "#fff";
  context.lineWidth = Math.max(1, canvas.width / 250);
  context.strokeRect((patch % columns) * width, Math.floor(patch / columns) * height, width, height);
}

/** A new element with a text. */
export function element<Name extends keyof HTMLElementTagNameMap>(name: Name, text = ""): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function colorsOf(values: Float32Array): number[][] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return Array.from(values, (value) => {
    const at = ((value - low) / (high - low || 1)) * (COLORS.length - 1);
    const index = Math.min(Math.floor(at), COLORS.length - 2);
    return COLORS[index]!.map((one, channel) => Math.round(one + (at - index) * (COLORS[index + 1]![channel]! - one)));
  });
}

function contextOf(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const context = canvas.getContext("2d");
  if (context === null) throw new Error(`this browser has no canvas of ${canvas.width}×${canvas.height} pixels`);
  return context;
}
