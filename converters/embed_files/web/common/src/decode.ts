// Image files to RGB pixels, as Python's read_image gives them: no color conversion, the EXIF orientation applied, an
// alpha channel dropped. PNG gives equal pixels; decoders of JPEG may differ by a step or two of 255. Safari converts
// colors all the same (its createImageBitmap does not read the option).

import type { Image } from "./preprocess.js";

const STRIP_PIXELS = 1 << 22; // copied at a time: browsers limit the area of a canvas, phones most of all

// A PNG file of one red pixel, in a color space whose red is the green of sRGB.
const TAGGED_RED =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAABdmlDQ1BJQ0MgUHJvZmlsZQAAeJx1kTlLA1EUhT+zEDGRFFqIWqSIYqEgCmKp" +
  "sUgTJMQIRm2SySZkGWYSJNgKNhYBC9HGrfAfaCvYKgiCIohYW7o1Esb7TCBBkje8uR/nvXO5cwZsoZyWNx1zkC+UjEgw4FuJrfpcb7gZwosD" +
  "Z1wz9flwOETH9f1Al6r3E6pX53ttlzuZMjXo6hae0XSjJCzTENos6Yp3hfu1bDwpfCw8bsiAwjdKT9T5VXGmzp+KjWhkAWyqpy/TwokW1rJG" +
  "XnhM2J/PlbXGPOpLPKnC8pLUQdnDmEQIEsBHgjIb5CgxIbUgmbX3Tf75FimKR5O3TgVDHBmy4h0XtSxdU1LToqfkyVFRuf/P00xPT9W7ewLg" +
  "fLGsjxFw7UGtalk/J5ZVOwX7M1wVmv7EPlzuwMBTU/MfgXcbLq6bWlHynP0Sf1WPG/E/yS7blk7D+zn0xqDvDnrW6lk1zjl7hOiW/KJbODiE" +
  "UbnvXf8Fzt9n7HCHfqwAAAAMSURBVHjaY/jPwAAAAwEBAPcDQUMAAAAASUVORK5CYII=";

export interface Decoded extends Image {
  /** Pixels that are not opaque: a canvas keeps their colors only roughly, so that features differ from Python's. */
  transparent: number;
}

/**
 * Decodes an image file.
 *
 * @param file A format that the browser knows: JPEG, PNG, WebP, BMP and others.
 * @param name What error messages call it.
 * @throws Error if it is not an image, or damaged; or if the browser is too old to decode without conversion.
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
    if (cause instanceof TypeError) {
      throw new Error(`this browser is too old: expected Chrome 112, Firefox 111, Safari 16.4 or newer`, { cause });
    }
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

/** Whether this browser converts colors that are not of sRGB, so that features of such images differ from Python's. */
export async function convertsColors(): Promise<boolean> {
  const file = Uint8Array.from(atob(TAGGED_RED), (character) => character.charCodeAt(0));
  const { data } = await decodeImage(new Blob([file]), "a tagged pixel");
  return data[0] !== 255 || data[1] !== 0;
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
