package vitedge

import org.junit.Assert.assertEquals
import org.junit.Test

/** As on Android, whose setenv a stub has write properties. */
class TelemetryTest {
    @Test
    fun isOff() {
        System.setProperty("java.vm.vendor", "The Android Project")
        onnxRuntime
        assertEquals("1", System.getProperty("env.ORT_DISABLE_TELEMETRY"))
    }
}
