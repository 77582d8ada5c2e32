// What goes into the encoder, and what comes out.
package vitedge

import java.nio.ByteBuffer
import java.nio.ByteOrder

private val PLANAR = Contract.INPUT_LAYOUT == "NCHW"

/** Shape of the input: one image. */
val INPUT_SHAPE: LongArray =
    if (PLANAR) longArrayOf(1, 3, Contract.HEIGHT.toLong(), Contract.WIDTH.toLong())
    else longArrayOf(1, Contract.HEIGHT.toLong(), Contract.WIDTH.toLong(), 3)

/** Whether the encoder takes pixels as they are, and normalizes them by itself. */
val PIXELS_IN: Boolean = Contract.INPUT_DTYPE == "uint8"

private val INPUT_BYTES = 3 * Contract.HEIGHT * Contract.WIDTH * INPUT.bytes

/**
 * Float values in row-major order: last_hidden_state [1, tokens, hidden], class token first, and, where the artifact
 * has them, pooler_output [1, hidden] and logits [1, classes].
 */
class Tensor(val shape: LongArray, val values: FloatArray)

/** One image of any size to the encoder's input: resized and, unless that takes pixels, normalized. */
fun preprocess(image: Image): ByteBuffer {
    val pixels = resize(image, Contract.HEIGHT, Contract.WIDTH, Contract.RESAMPLE)
    val input = ByteBuffer.allocateDirect(INPUT_BYTES).order(ByteOrder.nativeOrder())
    val start = input.duplicate().order(ByteOrder.nativeOrder())
    if (PIXELS_IN) start.put(pixels) else INPUT.write(normalized(pixels), start)
    return input
}

private fun normalized(pixels: ByteArray): FloatArray {
    val area = Contract.HEIGHT * Contract.WIDTH
    val result = FloatArray(area * 3)
    for (channel in 0 until 3) {
        val table = FloatArray(256) { (it * Contract.RESCALE_FACTOR - Contract.MEAN[channel]) / Contract.STD[channel] }
        val first = if (PLANAR) channel * area else channel
        val step = if (PLANAR) 1 else 3
        for (pixel in 0 until area) result[first + pixel * step] = table[pixels[pixel * 3 + channel].toInt() and 0xff]
    }
    return result
}

/**
 * Refuses what is not an input of this encoder before the runtime reads it.
 *
 * @throws IllegalArgumentException if it has another size, or is not a direct buffer in native order.
 */
fun checkInput(input: ByteBuffer) {
    require(input.remaining() == INPUT_BYTES && input.capacity() == INPUT_BYTES) { // on parts of one runtimes differ
        "input: expected $INPUT_BYTES bytes of ${Contract.INPUT_DTYPE} ${INPUT_SHAPE.toList()}, found" +
            " ${input.remaining()} of ${input.capacity()}; make it with preprocess(image)"
    }
    require(input.isDirect && input.order() == ByteOrder.nativeOrder()) {
        "input: expected a direct buffer in native order, found direct ${input.isDirect} and ${input.order()};" +
            " make it with preprocess(image)"
    }
}
