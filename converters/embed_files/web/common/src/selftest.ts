// Does the artifact do here what it did on the host? Decoding, preprocessing and inference are judged apart, each on
// the golden vectors that the step before it should give.

import { contract } from "./contract.js";
import { convertsColors, decodeImage } from "./decode.js";
import { fetchBytes, fetchExactly, fetchFloats, fetchLines } from "./files.js";
import { normalize, resize, type Image, type Input } from "./preprocess.js";
import type { Outputs } from "./tensor.js";

export interface Step {
  passed: boolean;
  /** What was found, with the bounds. */
  found: string;
}

export interface Golden {
  folder: URL;
  images: readonly GoldenImage[];
}

export interface GoldenImage {
  png: URL;
  pixels: URL;
  height: number;
  width: number;
}

/**
 * Reads golden/index.txt: a line for each image with height, width, file of pixels, PNG.
 *
 * @param folder URL of the golden vectors, with a slash at its end.
 * @throws Error if it is missing or names no image.
 */
export async function loadGolden(folder: URL): Promise<Golden> {
  const index = new URL("index.txt", folder);
  const images = (await fetchLines(index)).map((line) => {
    const [height, width, pixels, png] = line.split(" ");
    return {
      height: Number(height),
      width: Number(width),
      pixels: new URL(pixels!, folder),
      png: new URL(png!, folder),
    };
  });
  if (images.length === 0) throw new Error(`${index.pathname}: names no image; copy the folder again`);
  return { folder, images };
}

/** PNG files give the golden pixels. Throws if a golden file is missing or of another size. */
export async function testDecoding(golden: Golden): Promise<Step> {
  let different = 0;
  for (const image of golden.images) {
    const decoded = await decodeImage(new Blob([await fetchBytes(image.png)]), image.png.pathname);
    const { data } = await goldenPixels(image);
    if (decoded.data.length !== data.length) {
      return { passed: false, found: `${image.png.pathname}: found ${decoded.width}×${decoded.height} pixels` };
    }
    different += countDifferent(decoded.data, data);
  }
  const colors = (await convertsColors()) ? "; colors that are not of sRGB are converted by this browser" : "";
  return { passed: different === 0, found: `${different} decoded values differ${colors}` };
}

/** Golden pixels give equal resized ones, and those normalized ones to 1e-6. Throws as `testDecoding`. */
export async function testPreprocessing(golden: Golden): Promise<Step> {
  const { height, width, resample, inputLayout } = contract;
  const values = height * width * 3;
  const resized = await goldenResized(golden);
  const planes = await fetchFloats(new URL("pixel_values.bin", golden.folder), golden.images.length * values);
  let different = 0;
  let worst = 0;
  for (const [index, image] of golden.images.entries()) {
    const expected = resized.subarray(index * values, (index + 1) * values);
    different += countDifferent(resize(await goldenPixels(image), height, width, resample).data, expected);
    const input = normalize(expected);
    if (!(input instanceof Float32Array)) continue; // the encoder normalizes by itself
    for (let value = 0; value < values; value++) {
      const [pixel, channel] = [value % (height * width), Math.floor(value / (height * width))];
      const found = input[inputLayout === "NCHW" ? value : pixel * 3 + channel]!;
      worst = Math.max(worst, Math.abs(found - planes[index * values + value]!));
    }
  }
  return {
    passed: different === 0 && worst <= 1e-6,
    found: `${different} resized values differ; largest error after normalization ${worst.toExponential(1)}`,
  };
}

/**
 * Golden inputs give outputs as near to FP32 as they may be: of each the first row of every image, which is the class
 * token where there are tokens, and all values together.
 *
 * @param encoder An `Encoder`, or one in the background.
 * @returns The step, and the median time of an image.
 * @throws Error as `testDecoding`.
 */
export async function testInference(
  encoder: { run: (input: Input) => Promise<Outputs> },
  golden: Golden,
): Promise<Step & { medianMs: number }> {
  const pixels = contract.height * contract.width * 3;
  const resized = await goldenResized(golden);
  const outputs: Distance[] = [];
  for (const [index, name] of contract.outputNames.entries()) {
    const size = golden.images.length * contract.outputSizes[index]!;
    const expected = await fetchFloats(new URL(`fp32/${name}.bin`, golden.folder), size);
    outputs.push(new Distance(index, expected));
  }
  const times: number[] = [];
  for (const index of golden.images.keys()) {
    const input = normalize(resized.subarray(index * pixels, (index + 1) * pixels));
    const start = performance.now();
    const found = await encoder.run(input);
    times.push(performance.now() - start);
    for (const output of outputs) output.add(index, found[output.name]!.values);
  }
  const steps = outputs.map((output) => output.judge());
  return {
    passed: steps.every((step) => step.passed),
    found: steps.map((step) => step.found).join("; "),
    medianMs: times.sort((one, other) => one - other)[times.length >> 1]!,
  };
}

/** How far one output is from FP32, over the images that were added. */
class Distance {
  readonly name: string;
  private signal = 0;
  private noise = 0;
  private cosine = 1;

  constructor(
    private readonly output: number,
    private readonly expected: Float32Array,
  ) {
    this.name = contract.outputNames[output]!;
  }

  add(image: number, found: Float32Array): void {
    const [size, width] = [contract.outputSizes[this.output]!, contract.outputWidths[this.output]!];
    const reference = this.expected.subarray(image * size, (image + 1) * size);
    reference.forEach((value, at) => {
      this.signal += value ** 2;
      this.noise += (value - found[at]!) ** 2;
    });
    this.cosine = Math.min(this.cosine, cosineOf(reference.subarray(0, width), found.subarray(0, width)));
  }

  judge(): Step {
    const [minCosine, minSqnrDb] = [contract.minCosines[this.output]!, contract.minSqnrsDb[this.output]!];
    const sqnrDb = 10 * Math.log10(Math.max(this.signal, 1e-30) / Math.max(this.noise, 1e-30));
    return {
      passed: this.cosine >= minCosine && sqnrDb >= minSqnrDb, // NaN is neither
      found:
        `${this.name}: cosine ${this.cosine.toFixed(5)} (at least ${minCosine.toFixed(5)}),` +
        ` SQNR ${sqnrDb.toFixed(1)} dB (at least ${minSqnrDb.toFixed(1)})`,
    };
  }
}

/** Cosine of two vectors of one length. */
export function cosineOf(one: Float32Array, other: Float32Array): number {
  let [product, first, second] = [0, 0, 0];
  one.forEach((value, index) => {
    product += value * other[index]!;
    first += value ** 2;
    second += other[index]! ** 2;
  });
  return product / Math.max(Math.sqrt(first * second), 1e-30);
}

async function goldenPixels({ pixels, height, width }: GoldenImage): Promise<Image> {
  return { data: await fetchExactly(pixels, height * width * 3), height, width };
}

function goldenResized(golden: Golden): Promise<Uint8Array> {
  const size = golden.images.length * contract.height * contract.width * 3;
  return fetchExactly(new URL("resized.bin", golden.folder), size);
}

function countDifferent(found: Uint8Array, expected: Uint8Array): number {
  return expected.reduce((count, value, index) => count + Number(value !== found[index]), 0);
}
