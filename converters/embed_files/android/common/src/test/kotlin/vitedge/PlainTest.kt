package vitedge

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** What needs neither a device nor a runtime. */
class PlainTest {
    @Test
    fun preprocessing() {
        val judgement = Golden { File("golden", it).inputStream() }.preprocessing()
        println("preprocessing: ${judgement.found}")
        assertTrue(judgement.found, judgement.passed)
    }

    @Test
    fun aChangedModelIsRefused() {
        val bytes = File("model", Contract.MODEL_FILE).readBytes()
        bytes[bytes.size / 2] = (bytes[bytes.size / 2] + 1).toByte()
        val changed = ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder())
        changed.duplicate().put(bytes)
        val error = assertThrows(ModelException::class.java) { ViTEncoder(changed) }
        assertTrue(error.message, "expected SHA-256 ${Contract.MODEL_SHA256.take(12)}" in error.message.orEmpty())
    }

    @Test
    fun aMissingModelIsNamed() {
        val error = assertThrows(ModelException::class.java) { mapFile(File("model", "absent")) }
        assertTrue(error.message, "absent: cannot be read" in error.message.orEmpty())
    }

    @Test
    fun aModelOnTheHeapIsRefused() {
        val error = assertThrows(ModelException::class.java) { ViTEncoder(ByteBuffer.allocate(8)) }
        assertTrue(error.message, "expected a direct buffer" in error.message.orEmpty())
    }

    @Test
    fun anInputOfAnotherShapeIsRefused() {
        val swapped = preprocess(Image(ByteArray(3), 1, 1)).order(ByteOrder.BIG_ENDIAN)
        for (input in listOf(ByteBuffer.allocateDirect(12), swapped)) {
            val error = assertThrows(IllegalArgumentException::class.java) { checkInput(input) }
            assertTrue(error.message, "make it with preprocess(image)" in error.message.orEmpty())
        }
    }

    @Test
    fun anImageOfAnotherSizeIsRefused() {
        val error = assertThrows(IllegalArgumentException::class.java) { Image(ByteArray(11), 2, 2) }
        assertEquals("image: expected 3 bytes for each of 2 x 2 pixels, found 11 bytes", error.message)
    }

    @Test
    fun anUnknownFilterIsRefused() {
        val image = Image(ByteArray(3), 1, 1)
        val error = assertThrows(IllegalArgumentException::class.java) { resize(image, 2, 2, "cubic") }
        assertTrue(error.message, "found cubic" in error.message.orEmpty())
    }
}
