package vitedge

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/**
 *     resize LIST     a line each: file of pixels, height, width, file to write, its height and width, filter
 *     encode OUT      last_hidden_state of all golden images
 */
fun main(words: Array<String>) = when (words[0]) {
    "resize" -> File(words[1]).forEachLine { line ->
        val (pixels, height, width, out, rest) = line.split(" ", limit = 5)
        val (newHeight, newWidth, resample) = rest.split(" ")
        val image = Image(File(pixels).readBytes(), height.toInt(), width.toInt())
        File(out).writeBytes(resize(image, newHeight.toInt(), newWidth.toInt(), resample))
    }
    else -> ViTEncoder(mapFile(File("model", Contract.MODEL_FILE)), 1).use { encoder ->
        File(words[1]).outputStream().use { out ->
            File("golden/index.txt").forEachLine { line ->
                val (height, width, pixels) = line.split(" ")
                val image = Image(File("golden", pixels).readBytes(), height.toInt(), width.toInt())
                val tensor = encoder.encode(image).getValue("last_hidden_state")
                assertEquals(listOf(1L, Contract.TOKENS.toLong(), Contract.HIDDEN.toLong()), tensor.shape.toList())
                val bytes = ByteBuffer.allocate(tensor.values.size * 4).order(ByteOrder.LITTLE_ENDIAN)
                bytes.asFloatBuffer().put(tensor.values)
                out.write(bytes.array())
            }
        }
    }
}

class RefusedTest {
    @Test
    fun theRuntimeRefuses() {
        ViTEncoder(mapFile(File("model", Contract.MODEL_FILE))).use {
            assertTrue(refusal(it), refusal(it).startsWith("model.onnx: refused by ONNX Runtime 1."))
        }
    }
}
