// What both encoders share: outputs, options, and checks.

import { contract } from "./contract.js";
import type { Input } from "./preprocess.js";

export interface Tensor {
  shape: readonly number[];
  values: Float32Array;
}

/** By name, as `contract.outputNames` lists them; `last_hidden_state` is [1, tokens, hidden], class token first. */
export type Outputs = Record<string, Tensor>;

export interface Options {
  /** Threads to run on; more than one needs a page that is cross-origin isolated. Default: up to 4 where it is. */
  threads?: number;
  /** URL of the folder of the engine's own files. Default: where `npm run build` puts them. */
  engine?: string | URL;
}

/** Shape of the input, a batch of one. */
export const INPUT_SHAPE: readonly number[] =
  contract.inputLayout === "NCHW" ? [1, 3, contract.height, contract.width] : [1, contract.height, contract.width, 3];

/** @throws RangeError if an input is not of the type and size that the encoder takes. */
export function checkInput(input: Input): void {
  const expected = 3 * contract.height * contract.width;
  const dtype = input instanceof Float32Array ? "float32" : "uint8";
  if (dtype !== contract.inputDtype || input.length !== expected) {
    throw new RangeError(
      `input: expected ${expected} values of ${contract.inputDtype}, found ${input.length} of ${dtype}`,
    );
  }
}

/**
 * How many threads to run on.
 *
 * @param threads What was asked for.
 * @param possible Whether the browser lets WebAssembly have threads here.
 * @throws RangeError if that cannot be had.
 */
export function chooseThreads(threads: number | undefined, possible: boolean): number {
  if (threads === undefined) return possible ? Math.min(navigator.hardwareConcurrency, 4) : 1;
  if (!Number.isInteger(threads) || threads < 1) throw new RangeError(`threads: expected 1 or more, found ${threads}`);
  if (threads > 1 && !possible) {
    throw new RangeError(
      `threads: found ${threads}, but this page may have one: serve it on https or localhost with the headers` +
        " Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp",
    );
  }
  return threads;
}
