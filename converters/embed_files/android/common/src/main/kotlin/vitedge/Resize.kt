// Pillow's Image.resize to the bit (Resample.c), which is what the encoder was trained behind. Resizing with another
// library's filter, Android's own among them, is the commonest cause of bad features on a phone.
package vitedge

import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.cos
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sin

/**
 * An image: 8-bit RGB, row by row, without padding.
 *
 * @throws IllegalArgumentException if it is empty, or [rgb] has another size.
 */
class Image(val rgb: ByteArray, val height: Int, val width: Int) {
    init {
        require(height > 0 && width > 0 && rgb.size.toLong() == 3L * height * width) {
            "image: expected 3 bytes for each of $height x $width pixels, found ${rgb.size} bytes"
        }
    }
}

private const val PRECISION_BITS = 32 - 8 - 2 // of Pillow's fixed point coefficients
private const val HALF = 1 shl (PRECISION_BITS - 1)

/** A filter of Resample.c: its weight by the distance in source pixels at scale 1, and how far it reaches. */
private class Filter(val support: Double, val weight: (Double) -> Double)

private fun sinc(x: Double): Double = if (x == 0.0) 1.0 else sin(PI * x) / (PI * x)

private fun bicubic(x: Double): Double {
    val a = -0.5
    return when {
        x < 1 -> ((a + 2) * x - (a + 3)) * x * x + 1
        x < 2 -> (((x - 5) * x + 8) * x - 4) * a
        else -> 0.0
    }
}

private fun hamming(x: Double): Double = // Pillow writes 0.54f and 0.46f: single precision
    if (abs(x) < 1) sinc(x) * (0.54f.toDouble() + 0.46f.toDouble() * cos(PI * x)) else 0.0

private val FILTERS = mapOf(
    "box" to Filter(0.5) { x -> if (x > -0.5 && x <= 0.5) 1.0 else 0.0 },
    "bilinear" to Filter(1.0) { x -> max(0.0, 1.0 - abs(x)) },
    "hamming" to Filter(1.0, ::hamming),
    "bicubic" to Filter(2.0) { x -> bicubic(abs(x)) },
    "lanczos" to Filter(3.0) { x -> if (x >= -3 && x < 3) sinc(x) * sinc(x / 3) else 0.0 }
)

/** The first input pixel that an output pixel reads, and fixed point weights from there on. */
private class Taps(val begin: Int, val weights: IntArray)

private fun taps(size: Int, newSize: Int, filter: Filter): List<Taps> {
    val scale = size.toDouble() / newSize
    val filterScale = max(scale, 1.0) // a filter widens when it shrinks
    val support = filter.support * filterScale
    return List(newSize) { output ->
        val center = (output + 0.5) * scale
        val begin = max((center - support + 0.5).toInt(), 0)
        val end = min((center + support + 0.5).toInt(), size)
        val weights = DoubleArray(end - begin) { filter.weight((begin + it - center + 0.5) * (1.0 / filterScale)) }
        var total = 0.0
        for (weight in weights) total += weight
        Taps(begin, IntArray(weights.size) { fixed(if (total == 0.0) weights[it] else weights[it] / total) })
    }
}

private fun fixed(weight: Double): Int = (weight * (1 shl PRECISION_BITS) + if (weight < 0) -0.5 else 0.5).toInt()

private fun rounded(sum: Int): Byte = min(max(sum shr PRECISION_BITS, 0), 255).toByte()

private fun resizeColumns(rgb: ByteArray, height: Int, width: Int, newWidth: Int, filter: Filter): ByteArray {
    val columns = taps(width, newWidth, filter)
    val result = ByteArray(height * newWidth * 3)
    var out = 0
    for (row in 0 until height) {
        for (column in columns) {
            var at = (row * width + column.begin) * 3
            var red = HALF
            var green = HALF
            var blue = HALF
            for (weight in column.weights) {
                red += weight * (rgb[at].toInt() and 0xff)
                green += weight * (rgb[at + 1].toInt() and 0xff)
                blue += weight * (rgb[at + 2].toInt() and 0xff)
                at += 3
            }
            result[out++] = rounded(red)
            result[out++] = rounded(green)
            result[out++] = rounded(blue)
        }
    }
    return result
}

private fun resizeRows(rgb: ByteArray, height: Int, width: Int, newHeight: Int, filter: Filter): ByteArray {
    val values = width * 3
    val result = ByteArray(newHeight * values)
    val sums = IntArray(values)
    taps(height, newHeight, filter).forEachIndexed { index, row ->
        sums.fill(HALF)
        row.weights.forEachIndexed { tap, weight ->
            val line = (row.begin + tap) * values
            for (at in 0 until values) sums[at] += weight * (rgb[line + at].toInt() and 0xff)
        }
        for (at in 0 until values) result[index * values + at] = rounded(sums[at])
    }
    return result
}

/** Source index of each output index, as Pillow's affine transform: pixel centers, stepped one by one. */
private fun nearest(size: Int, newSize: Int): IntArray {
    val step = size.toDouble() / newSize
    var center = step * 0.5
    return IntArray(newSize) { min(center.toInt(), size - 1).also { center += step } }
}

private fun resizeNearest(image: Image, height: Int, width: Int): ByteArray {
    val result = ByteArray(height * width * 3)
    val columns = nearest(image.width, width)
    var out = 0
    for (row in nearest(image.height, height)) {
        for (column in columns) {
            val at = (row * image.width + column) * 3
            for (channel in 0 until 3) result[out++] = image.rgb[at + channel]
        }
    }
    return result
}

/**
 * Resizes as Pillow's `Image.resize((width, height), resample)` does, to the bit.
 *
 * @return RGB, row by row.
 * @throws IllegalArgumentException if there is no such filter.
 */
fun resize(image: Image, height: Int, width: Int, resample: String): ByteArray {
    if (resample == "nearest") return resizeNearest(image, height, width)
    val filter = requireNotNull(FILTERS[resample]) {
        "resample: expected nearest or one of ${FILTERS.keys.joinToString()}, found $resample"
    }
    fun rows(rgb: ByteArray, columns: Int): ByteArray =
        if (image.height == height) rgb else resizeRows(rgb, image.height, columns, height, filter)

    fun columns(rgb: ByteArray, rows: Int): ByteArray =
        if (image.width == width) rgb else resizeColumns(rgb, rows, image.width, width, filter)

    // Pillow (13) runs the vertical pass first where that makes the horizontal one cheaper; rounding shows the order.
    val verticalFirst = image.height > height && image.height - height > 2 * (image.width - width)
    return if (verticalFirst) {
        columns(rows(image.rgb, image.width), height)
    } else {
        rows(columns(image.rgb, image.height), width)
    }
}
