package vitedge

import android.content.res.AssetManager
import android.graphics.Bitmap
import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

/** Android.kt against stubs of Android's classes. */
class AndroidTest {
    @Test
    fun aBitmapBecomesRgb() {
        val argb = intArrayOf(0x7f010203, 0x00ff8040, -1, 0x10203040, 0x50607080, 0x0a0b0c0d)
        for (config in Bitmap.Config.values()) {
            val image = Bitmap(argb, 3, config).toImage()
            assertEquals(listOf(2, 3), listOf(image.height, image.width))
            val first = byteArrayOf(1, 2, 3, -1, -128, 64, -1, -1, -1)
            assertArrayEquals(first + byteArrayOf(32, 48, 64, 96, 112, -128, 11, 12, 13), image.rgb)
        }
    }

    @Test
    fun anAssetIsMapped() {
        val mapped = mapAsset(AssetManager())
        assertEquals(File("model", Contract.MODEL_FILE).length().toInt(), mapped.remaining())
        assertEquals(true, mapped.isDirect)
    }

    @Test
    fun aMissingAssetIsNamed() {
        val error = assertThrows(ModelException::class.java) { mapAsset(AssetManager(), "absent.onnx") }
        assertEquals("asset absent.onnx: is missing; add the folder model/ to the assets of the module", error.message)
    }

    @Test
    fun aCompressedAssetIsTold() {
        val error = assertThrows(ModelException::class.java) { mapAsset(AssetManager(), "index.txt") }
        val expected = "asset index.txt: is compressed in the APK; add noCompress for its extension"
        assertEquals(expected, error.message.orEmpty().take(expected.length))
    }
}
