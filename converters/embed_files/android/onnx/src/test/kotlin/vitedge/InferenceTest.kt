package vitedge

import java.io.File
import org.junit.Assert.assertTrue
import org.junit.Test

/** Inference on the build machine, by ONNX Runtime for the JVM; DeviceTest does the same on a phone. */
class InferenceTest {
    @Test
    fun inference() {
        ViTEncoder(mapFile(File("model", Contract.MODEL_FILE))).use { encoder ->
            val judgement = Golden { File("golden", it).inputStream() }.inference(encoder)
            println("inference: ${judgement.found}")
            assertTrue(judgement.found, judgement.passed)
        }
    }
}
