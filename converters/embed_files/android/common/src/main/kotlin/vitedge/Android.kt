// Assets and bitmaps, which need Android. Nearly everything else is plain Kotlin, and is tested on a JVM.
package vitedge

import android.content.res.AssetManager
import android.graphics.Bitmap
import android.os.Build
import java.io.FileInputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import kotlin.math.max
import kotlin.math.min

/**
 * Maps an asset into memory, without a copy on the heap.
 *
 * @throws ModelException if it is missing, or is compressed in the APK.
 */
fun mapAsset(assets: AssetManager, name: String = Contract.MODEL_FILE): ByteBuffer {
    val descriptor = try {
        assets.openFd(name)
    } catch (error: IOException) {
        // Android reports both in the same words.
        val present = name in assets.list("").orEmpty()
        val what = if (present) {
            "is compressed in the APK; add noCompress for its extension to androidResources of the app"
        } else {
            "is missing; add the folder model/ to the assets of the module"
        }
        throw ModelException("asset $name: $what", error)
    }
    return descriptor.use {
        val channel = FileInputStream(it.fileDescriptor).channel
        channel.map(FileChannel.MapMode.READ_ONLY, it.startOffset, it.declaredLength)
    }
}

/**
 * The pixels of a bitmap, without alpha and without conversion of colors, as Python decodes: a photograph in Display P3
 * keeps its values. Those of a bitmap with an alpha channel, or of other than 8 bits, Android gives in sRGB only. Turn it
 * upright first: BitmapFactory leaves that to you, while ImageDecoder follows the EXIF orientation.
 */
fun Bitmap.toImage(): Image {
    val hardware = Build.VERSION.SDK_INT >= 26 && config == Bitmap.Config.HARDWARE // whose pixels are not in memory
    val copied = if (hardware) copy(Bitmap.Config.ARGB_8888, false) else this
    val readable = checkNotNull(copied) { "bitmap: expected a readable one, found one that cannot be copied" }
    val plain = readable.config == Bitmap.Config.ARGB_8888 && !readable.hasAlpha()
    return Image(if (plain) ownColors(readable) else colorsInSrgb(readable), height, width)
}

private const val STRIP_PIXELS = 1 shl 20

/** In memory a pixel is red, green, blue and alpha; strips, because a copy of all would not fit for large photographs. */
private fun ownColors(bitmap: Bitmap): ByteArray {
    val rgb = ByteArray(bitmap.height * bitmap.width * 3)
    val rows = max(1, STRIP_PIXELS / bitmap.width)
    var out = 0
    for (top in 0 until bitmap.height step rows) {
        val strip = Bitmap.createBitmap(bitmap, 0, top, bitmap.width, min(rows, bitmap.height - top))
        val rgba = ByteArray(strip.byteCount).also { strip.copyPixelsToBuffer(ByteBuffer.wrap(it)) }
        if (strip !== bitmap) strip.recycle()
        for (pixel in 0 until rgba.size / 4) {
            for (channel in 0 until 3) rgb[out++] = rgba[4 * pixel + channel]
        }
    }
    return rgb
}

private fun colorsInSrgb(bitmap: Bitmap): ByteArray {
    val rgb = ByteArray(bitmap.height * bitmap.width * 3)
    val line = IntArray(bitmap.width)
    var out = 0
    for (row in 0 until bitmap.height) {
        bitmap.getPixels(line, 0, bitmap.width, 0, row, bitmap.width, 1)
        for (argb in line) {
            rgb[out++] = (argb shr 16).toByte()
            rgb[out++] = (argb shr 8).toByte()
            rgb[out++] = argb.toByte()
        }
    }
    return rgb
}
