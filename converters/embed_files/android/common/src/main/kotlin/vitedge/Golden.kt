// Does the artifact do here what it did on the host? Preprocessing and inference are judged apart.
package vitedge

import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.sqrt

/** Whether a step passed, and what was found. */
class Judgement(val passed: Boolean, val found: String)

/**
 * Golden vectors.
 *
 * @param open opens a file of the folder golden/ by its path in there: `assets::open`, or a file's `inputStream`.
 * @throws IOException if one is missing, or has another size than the index says, or that names none.
 */
class Golden(private val open: (String) -> InputStream) {
    private val images: List<Image> = String(bytes("index.txt")).lines().filter { it.isNotBlank() }.map { line ->
        val (height, width, pixels) = line.split(" ") // a line for each image: height, width, file of pixels, PNG
        Image(bytes(pixels, 3 * height.toInt() * width.toInt()), height.toInt(), width.toInt())
    }

    init {
        if (images.isEmpty()) throw IOException("index.txt: names no image; copy the folder again")
    }

    /** Resized pixels are equal, and so is what an input of integers holds; normalized floats are to 1e-6. */
    fun preprocessing(): Judgement {
        val size = 3 * Contract.HEIGHT * Contract.WIDTH
        val resized = different(ByteBuffer.wrap(bytes("resized.bin", images.size * size))) { image ->
            ByteBuffer.wrap(resize(image, Contract.HEIGHT, Contract.WIDTH, Contract.RESAMPLE))
        }
        val found = "$resized resized values differ"
        return when (Contract.INPUT_DTYPE) {
            "uint8" -> Judgement(resized == 0, found)
            "float32" -> {
                val worst = normalizationError()
                val more = "largest error after normalization %.1e".format(worst)
                Judgement(resized == 0 && worst <= 1e-6, "$found; $more")
            }
            else -> {
                val expected = bytes("quantized.bin", images.size * size * INPUT.bytes)
                val quantized = different(ByteBuffer.wrap(expected)) { preprocess(it) }
                Judgement(resized == 0 && quantized == 0, "$found; $quantized bytes of the quantized input differ")
            }
        }
    }

    /** How many bytes differ from what is expected of all images, one after the other. */
    private fun different(expected: ByteBuffer, found: (Image) -> ByteBuffer): Int = images.map { image ->
        val bytes = found(image)
        (0 until bytes.capacity()).count { bytes.get(it) != expected.get() }
    }.sum()

    private fun normalizationError(): Double {
        val area = Contract.HEIGHT * Contract.WIDTH
        val planes = floats("pixel_values.bin", images.size * area * 3)
        val planar = Contract.INPUT_LAYOUT == "NCHW"
        var worst = 0.0
        images.forEachIndexed { index, image ->
            val input = preprocess(image).asFloatBuffer()
            for (pixel in 0 until area) for (channel in 0 until 3) {
                val plane = channel * area + pixel
                val found = input[if (planar) plane else pixel * 3 + channel]
                worst = max(worst, abs(found.toDouble() - planes[index * area * 3 + plane]))
            }
        }
        return worst
    }

    /**
     * Every output is as near to FP32 as it may be: the first row of every image, which is the class token where there
     * are tokens, and all values together.
     */
    fun inference(encoder: ViTEncoder): Judgement {
        val outputs = Contract.OUTPUT_NAMES.indices.map { Distance(it) }
        images.forEachIndexed { index, image ->
            val found = encoder.encode(image)
            for (output in outputs) output.add(index, found.getValue(output.name).values)
        }
        val judgements = outputs.map { it.judge() }
        return Judgement(judgements.all { it.passed }, judgements.joinToString("; ") { it.found })
    }

    /** How far one output is from FP32, over the images that were added. */
    private inner class Distance(private val output: Int) {
        val name = Contract.OUTPUT_NAMES[output]
        private val size = Contract.OUTPUT_SIZES[output]
        private val expected = floats("fp32/$name.bin", images.size * size)
        private var signal = 0.0
        private var noise = 0.0
        private var worst = 1.0

        fun add(image: Int, found: FloatArray) {
            if (found.size != size) throw IOException("$name: expected $size values, found ${found.size}")
            val one = expected.copyOfRange(image * size, (image + 1) * size)
            for (at in 0 until size) {
                val error = found[at].toDouble() - one[at]
                signal += one[at].toDouble() * one[at]
                noise += error * error
            }
            val cosine = cosine(one, found, Contract.OUTPUT_WIDTHS[output])
            worst = if (cosine.isNaN()) -1.0 else minOf(worst, cosine)
        }

        fun judge(): Judgement {
            val sqnr = 10 * log10(max(signal, 1e-30) / max(noise, 1e-30))
            val (minCosine, minSqnr) = Contract.MIN_COSINES[output] to Contract.MIN_SQNRS_DB[output]
            val found = "%s: cosine %.5f (at least %.5f), SQNR %.1f dB (at least %.1f)"
                .format(name, worst, minCosine, sqnr, minSqnr)
            return Judgement(worst >= minCosine && sqnr >= minSqnr, found)
        }
    }

    private fun cosine(one: FloatArray, other: FloatArray, size: Int): Double {
        var product = 0.0
        var first = 0.0
        var second = 0.0
        for (index in 0 until size) {
            product += one[index].toDouble() * other[index]
            first += one[index].toDouble() * one[index]
            second += other[index].toDouble() * other[index]
        }
        return product / max(sqrt(first * second), 1e-30)
    }

    private fun bytes(path: String): ByteArray = open(path).use { it.readBytes() }

    private fun bytes(path: String, expected: Int): ByteArray {
        val found = bytes(path)
        if (found.size != expected) {
            throw IOException("golden/$path: expected $expected bytes, found ${found.size}; copy the folder again")
        }
        return found
    }

    private fun floats(path: String, expected: Int): FloatArray {
        val buffer = ByteBuffer.wrap(bytes(path, expected * 4)).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        return FloatArray(expected).also { buffer.get(it) }
    }
}
