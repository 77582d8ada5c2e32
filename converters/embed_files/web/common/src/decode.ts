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
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
      imageOrientation: "from-image",
    });
  } catch (cause) {
    throw new Error(
      `${name}: expected an image, found ${file.size} bytes that this browser cannot decode; choose another file`,
      { cause },
    );
  }
  try {
    return pixelsOf(bitmap, name);
  } finally {
    bitmap.close();
  }
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
