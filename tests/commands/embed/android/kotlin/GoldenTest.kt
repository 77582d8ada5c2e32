package vitedge

import java.io.ByteArrayInputStream
import java.io.IOException
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class GoldenTest {
    @Test
    fun noImageIsNoProof() {
        val error = assertThrows(IOException::class.java) { Golden { ByteArrayInputStream(ByteArray(0)) } }
        assertEquals("index.txt: names no image; copy the folder again", error.message)
    }
}
