package vitedge

import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/** The encoder over a stub of LiteRT: what it passes, and what it makes of the result. */
class FakeTest {
    private val encoder = ViTEncoder(mapFile(File("model", Contract.MODEL_FILE)), 2)

    @Test
    fun outputsHaveNamesAndShapes() {
        val input = preprocess(Image(byteArrayOf(1, 2, 3), 1, 1))
        val outputs = encoder.run(input)
        assertEquals(Contract.OUTPUT_NAMES, outputs.keys.toList())
        for (tensor in outputs.values) {
            val expected = FloatArray(6) { input.getFloat(0) + it }
            assertArrayEquals(longArrayOf(1, 2, 3), tensor.shape)
            assertArrayEquals(expected, tensor.values, 0f)
        }
    }

    @Test
    fun theRuntimeRefuses() {
        assertTrue(refusal(encoder), refusal(encoder).startsWith("model.tflite: refused by LiteRT (not a model)"))
    }
}
