package vitedge

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 *     resize LIST                          a line each: file of pixels, height, width, file to write, its height and
 *                                          width, filter
 *     format DTYPE SCALE ZERO_POINT FILE   floats of a file to integers, FILE.integers, and back, FILE.floats
 *     encode FOLDER                        of all golden images the input, input.bin, and the outputs, NAME.bin
 */
fun main(words: Array<String>) = when (words[0]) {
    "resize" -> File(words[1]).forEachLine { line ->
        val (pixels, height, width, out, rest) = line.split(" ", limit = 5)
        val (newHeight, newWidth, resample) = rest.split(" ")
        val image = Image(File(pixels).readBytes(), height.toInt(), width.toInt())
        File(out).writeBytes(resize(image, newHeight.toInt(), newWidth.toInt(), resample))
    }
    "format" -> {
        val format = Format(words[1], words[2].toDouble().toFloat(), words[3].toInt())
        val floats = ByteBuffer.wrap(File(words[4]).readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        val values = FloatArray(floats.remaining()).also { floats.get(it) }
        val integers = ByteBuffer.allocate(values.size * format.bytes).order(ByteOrder.LITTLE_ENDIAN)
        format.write(values, integers)
        File(words[4] + ".integers").writeBytes(integers.array())
        File(words[4] + ".floats").writeBytes(bytesOf(format.read(integers)))
    }
    else -> ViTEncoder(mapFile(File("model", Contract.MODEL_FILE)), 1).use { encoder ->
        File("golden/index.txt").forEachLine { line ->
            val (height, width, pixels) = line.split(" ")
            val image = Image(File("golden", pixels).readBytes(), height.toInt(), width.toInt())
            val input = preprocess(image)
            File(words[1], "input.bin").appendBytes(ByteArray(input.capacity()) { input.get(it) })
            for ((name, tensor) in encoder.encode(image)) {
                check(tensor.shape.fold(1L, Long::times) == tensor.values.size.toLong()) { "$name: ${tensor.shape.toList()}" }
                File(words[1], "$name.bin").appendBytes(bytesOf(tensor.values))
            }
        }
    }
}

private fun bytesOf(values: FloatArray): ByteArray {
    val bytes = ByteBuffer.allocate(values.size * 4).order(ByteOrder.LITTLE_ENDIAN)
    bytes.asFloatBuffer().put(values)
    return bytes.array()
}
