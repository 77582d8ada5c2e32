// Assets and bitmaps, which need Android. Nearly everything else is plain Kotlin, and is tested on a JVM.
package vitedge

import android.content.res.AssetManager
import android.graphics.Bitmap
import android.os.Build
import java.io.FileInputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

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
 * The pixels of a bitmap, in sRGB and without alpha. Turn it upright first: BitmapFactory leaves that to you, while
 * ImageDecoder follows the EXIF orientation.
 */
fun Bitmap.toImage(): Image {
    val hardware = Build.VERSION.SDK_INT >= 26 && config == Bitmap.Config.HARDWARE // whose pixels are not in memory
    val copied = if (hardware) copy(Bitmap.Config.ARGB_8888, false) else this
    val readable = checkNotNull(copied) { "bitmap: expected a readable one, found one that cannot be copied" }
    val rgb = ByteArray(height * width * 3)
    val line = IntArray(width)
    var out = 0
    for (row in 0 until height) {
        readable.getPixels(line, 0, width, 0, row, width, 1)
        for (argb in line) {
            rgb[out++] = (argb shr 16).toByte()
            rgb[out++] = (argb shr 8).toByte()
            rgb[out++] = argb.toByte()
        }
    }
    return Image(rgb, height, width)
}
