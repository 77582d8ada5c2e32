package vitedge

import ai.onnxruntime.OrtEnvironment
import android.system.Os

/**
 * ONNX Runtime, told not to tell Microsoft of the app, the device and the model, as it does from 1.29 on. On Android that
 * takes a variable, set before the runtime is loaded; your app's own setting of it stays.
 */
internal val onnxRuntime: OrtEnvironment by lazy {
    if (System.getProperty("java.vm.vendor") == "The Android Project") Os.setenv("ORT_DISABLE_TELEMETRY", "1", false)
    OrtEnvironment.getEnvironment()
}
