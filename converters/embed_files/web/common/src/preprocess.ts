// From decoded pixels to the encoder's input, as the encoder was trained: Pillow's Image.resize to the bit, then
// normalization. The browser's own scaling is another filter, and gives other features.

import { contract, type Resample } from "./contract.js";

/** 8-bit RGB, row by row, without padding. */
export interface Image {
  data: Uint8Array;
  height: number;
  width: number;
}

/** What the encoder takes, in the order of `contract.inputLayout`. */
export type Input = Float32Array<ArrayBuffer> | Uint8Array<ArrayBuffer>;

/** The input pixels that one output pixel reads, and their fixed point weights. */
interface Taps {
  begin: number;
  weights: Int32Array;
}

const PRECISION_BITS = 32 - 8 - 2; // of Pillow's fixed point coefficients
const HALF = 1 << (PRECISION_BITS - 1);

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function hamming(x: number): number {
  // Pillow writes 0.54f and 0.46f: single precision
  return Math.abs(x) < 1 ? sinc(x) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(Math.PI * x)) : 0;
}

function bicubic(x: number): number {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** Filters and their support in source pixels at scale 1, as in Pillow's Resample.c. */
const FILTERS: Record<Exclude<Resample, "nearest">, [filter: (x: number) => number, support: number]> = {
  box: [(x) => (x > -0.5 && x <= 0.5 ? 1 : 0), 0.5],
  bilinear: [(x) => Math.max(0, 1 - Math.abs(x)), 1],
  hamming: [hamming, 1],
  bicubic: [bicubic, 2],
  lanczos: [(x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0), 3],
};

/**
 * Resizes as Pillow's `Image.resize((width, height), resample)` does, to the bit.
 *
 * @throws RangeError for an image without pixels, or with more or fewer values than its size says.
 */
export function resize(image: Image, height: number, width: number, resample: Resample): Image {
  const values = image.height * image.width * 3;
  if (values <= 0 || image.data.length !== values) {
    throw new RangeError(
      `image: expected RGB of ${image.width}×${image.height} pixels, found ${image.data.length} values`,
    );
  }
  if (resample === "nearest") return resizeNearest(image, height, width);
  // Pillow (13) runs the vertical pass first where that makes the horizontal one cheaper; the order shows in rounding.
  if (image.height > height && image.height - height > 2 * (image.width - width)) {
    return resizeColumns(resizeRows(image, height, resample), width, resample);
  }
  return resizeRows(resizeColumns(image, width, resample), height, resample);
}

/** One image of any size to the encoder's input. Throws as `resize` does. */
export function preprocess(image: Image): Input {
  return normalize(resize(image, contract.height, contract.width, contract.resample).data);
}

/** Resized pixels to the encoder's input: normalized and in its order, or, where it takes uint8, as they are. */
export function normalize(pixels: Uint8Array): Input {
  if (contract.inputDtype === "uint8") return new Uint8Array(pixels);
  const area = pixels.length / 3;
  const result = new Float32Array(pixels.length);
  for (let channel = 0; channel < 3; channel++) {
    const table = normalizationTable(channel);
    const [first, step] = contract.inputLayout === "NCHW" ? [channel * area, 1] : [channel, 3];
    for (let pixel = 0; pixel < area; pixel++) result[first + pixel * step] = table[pixels[pixel * 3 + channel]!]!;
  }
  return result;
}

/** Normalized value of every 8-bit value, rounded to single precision at every step as in Python. */
function normalizationTable(channel: number): Float32Array {
  const [factor, mean, std] = [contract.rescaleFactor, contract.mean[channel]!, contract.std[channel]!].map(
    Math.fround,
  );
  return Float32Array.from({ length: 256 }, (_, value) => {
    return Math.fround(Math.fround(value * factor!) - mean!) / std!;
  });
}

function tapsOf(size: number, newSize: number, resample: Exclude<Resample, "nearest">): Taps[] {
  const [filter, support] = FILTERS[resample];
  const scale = size / newSize;
  const filterScale = Math.max(scale, 1); // a filter widens when it shrinks
  const reach = support * filterScale;
  return Array.from({ length: newSize }, (_, output) => {
    const center = (output + 0.5) * scale;
    const begin = Math.max(Math.trunc(center - reach + 0.5), 0);
    const end = Math.min(Math.trunc(center + reach + 0.5), size);
    const weights = Array.from({ length: end - begin }, (_, tap) =>
      filter((begin + tap - center + 0.5) * (1 / filterScale)),
    );
    const total = weights.reduce((sum, weight) => sum + weight, 0) || 1;
    const fixed = weights.map((weight) => (weight / total) * (1 << PRECISION_BITS));
    return { begin, weights: Int32Array.from(fixed, (value) => Math.trunc(value + (value < 0 ? -0.5 : 0.5))) };
  });
}

// Sums stay within 32 bits: weights sum to 2^22, their magnitudes to at most 1.5 times that. A Uint8ClampedArray does
// the clamping, because filters overshoot.

function resizeColumns(image: Image, newWidth: number, resample: Exclude<Resample, "nearest">): Image {
  const { data, height, width } = image;
  if (width === newWidth) return image;
  const columns = tapsOf(width, newWidth, resample);
  const result = new Uint8ClampedArray(height * newWidth * 3);
  let out = 0;
  for (let row = 0; row < height; row++) {
    for (const { begin, weights } of columns) {
      let pixel = (row * width + begin) * 3;
      let red = HALF,
        green = HALF,
        blue = HALF;
      for (let tap = 0; tap < weights.length; tap++, pixel += 3) {
        const weight = weights[tap]!;
        red = (red + Math.imul(weight, data[pixel]!)) | 0;
        green = (green + Math.imul(weight, data[pixel + 1]!)) | 0;
        blue = (blue + Math.imul(weight, data[pixel + 2]!)) | 0;
      }
      result[out++] = red >> PRECISION_BITS;
      result[out++] = green >> PRECISION_BITS;
      result[out++] = blue >> PRECISION_BITS;
    }
  }
  return { data: new Uint8Array(result.buffer), height, width: newWidth };
}

function resizeRows(image: Image, newHeight: number, resample: Exclude<Resample, "nearest">): Image {
  const { data, height, width } = image;
  if (height === newHeight) return image;
  const values = width * 3;
  const result = new Uint8ClampedArray(values * newHeight);
  const sums = new Int32Array(values);
  tapsOf(height, newHeight, resample).forEach(({ begin, weights }, row) => {
    sums.fill(HALF);
    for (let tap = 0; tap < weights.length; tap++) {
      const weight = weights[tap]!;
      const line = (begin + tap) * values;
      for (let index = 0; index < values; index++) sums[index]! += Math.imul(weight, data[line + index]!);
    }
    for (let index = 0; index < values; index++) result[row * values + index] = sums[index]! >> PRECISION_BITS;
  });
  return { data: new Uint8Array(result.buffer), height: newHeight, width };
}

/** Source index of each output index, as Pillow's affine transform: pixel centers, stepped one by one. */
function nearest(size: number, newSize: number): number[] {
  const step = size / newSize;
  const result: number[] = [];
  for (let center = step * 0.5; result.length < newSize; center += step) {
    result.push(Math.min(Math.trunc(center), size - 1));
  }
  return result;
}

function resizeNearest(image: Image, height: number, width: number): Image {
  const data = new Uint8Array(height * width * 3);
  const columns = nearest(image.width, width);
  let out = 0;
  for (const row of nearest(image.height, height)) {
    for (const column of columns) {
      const pixel = (row * image.width + column) * 3;
      data.set(image.data.subarray(pixel, pixel + 3), out);
      out += 3;
    }
  }
  return { data, height, width };
}
