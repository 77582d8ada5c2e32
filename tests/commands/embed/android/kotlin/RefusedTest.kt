package vitedge

import java.io.File
import java.lang.reflect.InvocationTargetException
import java.nio.ByteBuffer
import org.junit.Assert.assertTrue
import org.junit.Test

/** What the encoder says of a model that its runtime refuses. SHA-256 is checked before, so this reaches behind it. */
class RefusedTest {
    @Test
    fun theRuntimeRefuses() {
        val said = ViTEncoder(mapFile(File("model", Contract.MODEL_FILE))).use(::refusal)
        assertTrue(said, Regex("""model\.(onnx: refused by ONNX Runtime 1\.|tflite: refused by LiteRT \().*""").matches(said))
    }

    private fun refusal(encoder: ViTEncoder): String {
        val open = ViTEncoder::class.java.getDeclaredMethod("open", ByteBuffer::class.java, Int::class.java)
        open.isAccessible = true
        try {
            open.invoke(encoder, ByteBuffer.allocateDirect(4), 1)
        } catch (error: InvocationTargetException) {
            return (error.targetException as ModelException).message.orEmpty()
        }
        throw AssertionError("was accepted")
    }
}
