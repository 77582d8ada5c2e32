// Image files to RGB pixels, as Python's read_image gives them: no color conversion, the EXIF orientation applied, an
// alpha channel dropped. PNG gives equal pixels; decoders of JPEG may differ by a step or two of 255.

import type { Image } from "./preprocess.js";

const STRIP_PIXELS = 1 << 22; // copied at a time: browsers limit the area of a canvas, phones most of all

export interface Decoded extends Image {
  /** Pixels that are not opaque: a canvas keeps their colors only roughly, so that features differ from Python's. */
  transparent: number;
}

/**
 * Decodes an image file.
 *
 * @param file A format that the browser knows: JPEG, PNG, WebP, BMP and others.
 * @param name What error messages call it.
 * @throws Error if it is not an image, or damaged.
 */
export async function decodeImage(file: Blob, name: string): Promise<Decoded> {
  await refuseTruncated(file, name);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
      imageOrientation: "from-image",
    });
  } catch (cause) {
    throw new Error(`${name}: expected an image, found ${file.size} bytes that this browser cannot decode`, { cause });
  }
  try {
    return pixelsOf(bitmap, name);
  } finally {
    bitmap.close();
  }
}

/** Browsers fill what is missing of a truncated file with gray; JPEG and PNG say where they end. */
async function refuseTruncated(file: Blob, name: string): Promise<void> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const starts = (...magic: number[]) => magic.every((byte, index) => bytes[index] === byte);
  const jpeg = starts(0xff, 0xd8, 0xff);
  const png = starts(0x89, 0x50, 0x4e, 0x47);
  const end = jpeg ? [0xff, 0xd9] : png ? [0x49, 0x45, 0x4e, 0x44] : []; // EOI marker, IEND chunk
  for (let at = bytes.length - end.length; at >= 0; at--) {
    if (end.every((byte, index) => bytes[at + index] === byte)) return;
  }
  throw new Error(`${name}: a truncated ${jpeg ? "JPEG" : "PNG"} file, found no end in its ${bytes.length} bytes`);
}

function pixelsOf(bitmap: ImageBitmap, name: string): Decoded {
  const { height, width } = bitmap;
  const rows = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const context = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error(`${name}: this browser has no canvas of ${width}×${rows} pixels`);
  const data = new Uint8Array(height * width * 3);
  let out = 0;
  let transparent = 0;
  for (let top = 0; top < height; top += rows) {
    context.clearRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const rgba = context.getImageData(0, 0, width, Math.min(rows, height - top)).data;
    for (let pixel = 0; pixel < rgba.length; pixel += 4) {
      data[out++] = rgba[pixel]!;
      data[out++] = rgba[pixel + 1]!;
      data[out++] = rgba[pixel + 2]!;
      if (rgba[pixel + 3] !== 255) transparent++;
    }
  }
  return { data, height, width, transparent };
}
