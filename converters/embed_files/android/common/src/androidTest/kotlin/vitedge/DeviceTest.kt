package vitedge

import androidx.test.platform.app.InstrumentationRegistry
import org.junit.Assert.assertTrue
import org.junit.Test

/** On a phone: the folders golden/ and model/ are assets of the test. */
class DeviceTest {
    private val assets = InstrumentationRegistry.getInstrumentation().context.assets
    private val golden = Golden { assets.open(it) }

    @Test
    fun preprocessing() {
        val judgement = golden.preprocessing()
        assertTrue(judgement.found, judgement.passed)
    }

    @Test
    fun inference() {
        ViTEncoder(mapAsset(assets)).use { encoder ->
            val judgement = golden.inference(encoder)
            assertTrue(judgement.found, judgement.passed)
        }
    }
}
