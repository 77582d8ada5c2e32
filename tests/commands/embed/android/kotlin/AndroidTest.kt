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
    private val opaque = intArrayOf(0xff010203.toInt(), 0xffff8040.toInt(), -1, 0xff203040.toInt(), 0xff607080.toInt(), 0xff0b0c0d.toInt())
    private val rgb = byteArrayOf(1, 2, 3, -1, -128, 64, -1, -1, -1, 32, 48, 64, 96, 112, -128, 11, 12, 13)
    private val inverted = rgb.map { it.toInt().inv().toByte() }.toByteArray()

    private fun check(expected: ByteArray, bitmap: Bitmap) {
        val image = bitmap.toImage()
        assertEquals(listOf(2, 3), listOf(image.height, image.width))
        assertArrayEquals(expected, image.rgb)
    }

    @Test
    fun aBitmapBecomesRgb() {
        for (config in Bitmap.Config.values()) check(rgb, Bitmap(opaque, 3, config, false))
    }

    @Test
    fun colorsAreNotConverted() {
        for (config in listOf(Bitmap.Config.ARGB_8888, Bitmap.Config.HARDWARE)) check(rgb, Bitmap(opaque, 3, config, true))
    }

    @Test
    fun whereTheyCannotBeHadTheyAreInSrgb() {
        val transparent = opaque.clone().also { it[4] = 0x50607080 }
        check(rgb, Bitmap(transparent, 3, Bitmap.Config.ARGB_8888, false))
        check(inverted, Bitmap(transparent, 3, Bitmap.Config.ARGB_8888, true))
        check(inverted, Bitmap(opaque, 3, Bitmap.Config.RGB_565, true))
    }

    @Test
    fun aLargeBitmapIsReadInStrips() {
        val (height, width) = listOf(1500, 1400)
        val pixels = IntArray(height * width) { it or (0xff shl 24) }
        val image = Bitmap(pixels, width, Bitmap.Config.ARGB_8888, false).toImage()
        for (pixel in pixels.indices) {
            for (channel in 0 until 3) assertEquals((pixel shr (16 - 8 * channel)).toByte(), image.rgb[3 * pixel + channel])
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
