// Files beside the page or module, read whole, and checked.

import { contract } from "./contract.js";

const ADVICE = "copy the folder again, as vitedge wrote it";

/** @throws Error that names the file, if it is not there. */
export async function fetchBytes(url: URL): Promise<Uint8Array<ArrayBuffer>> {
  let response: Response;
  try {
    response = await fetch(url);
  } catch (cause) {
    throw new Error(`${url.pathname}: cannot be fetched; is the server running?`, { cause });
  }
  if (!response.ok) throw new Error(`${url.pathname}: expected a file, found HTTP ${response.status}; ${ADVICE}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Float32 values of a little-endian file. Throws as `fetchExactly`. */
export async function fetchFloats(url: URL, expected: number): Promise<Float32Array> {
  return new Float32Array((await fetchExactly(url, expected * 4)).buffer); // browsers run on little-endian CPUs only
}

/** Throws as `fetchBytes`, and if the file has another size. */
export async function fetchExactly(url: URL, expected: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = await fetchBytes(url);
  if (bytes.length !== expected) {
    throw new Error(`${url.pathname}: expected ${expected} bytes, found ${bytes.length}; ${ADVICE}`);
  }
  return bytes;
}

/** Lines of a text file. Throws as `fetchBytes`. */
export async function fetchLines(url: URL): Promise<string[]> {
  return new TextDecoder()
    .decode(await fetchBytes(url))
    .split("\n")
    .slice(0, -1);
}

/**
 * The model, which must be the one of the contract.
 *
 * @param folder URL of the artifact, with a slash at its end.
 * @returns Its bytes, and whether they were checked: browsers have SHA-256 on https and localhost only.
 * @throws Error if it is missing or changed.
 */
export async function fetchModel(folder: URL): Promise<{ bytes: Uint8Array<ArrayBuffer>; checked: boolean }> {
  const url = new URL(contract.modelFile, folder);
  const bytes = await fetchBytes(url);
  if (!isSecureContext) return { bytes, checked: false };
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== contract.modelSha256) {
    throw new Error(`${url.pathname}: expected SHA-256 ${contract.modelSha256}, found ${found}; ${ADVICE}`);
  }
  return { bytes, checked: true };
}
