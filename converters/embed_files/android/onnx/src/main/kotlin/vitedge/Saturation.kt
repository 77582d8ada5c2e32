package vitedge

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtSession
import java.nio.ByteBuffer
import java.nio.ByteOrder

private const val ROWS = 32
private const val INNER = 64

// A model: MatMulInteger of uint8 a [m, k] and int8 b [k, n], operator set 10.
private const val PRODUCT =
    "080512003a620a180a01610a0162120179220d4d61744d756c496e74656765721201675a150a016112100a0e0802120a0a0312016d0a" +
    "0312016b5a150a016212100a0e0803120a0a0312016b0a0312016e62150a017912100a0e0806120a0a0312016d0a0312016e42040a00" +
    "100a"

private val X86 = Regex("x86.*|amd64|i\\d86")

/**
 * Whether ONNX Runtime's kernels for uint8 times int8 saturate on this CPU, as those of x86 without VNNI do: there they
 * are asked for 255 * 127 + 255 * 127, once.
 */
internal val saturatesHere: Boolean by lazy { X86.matches(System.getProperty("os.arch").orEmpty()) && saturates() }

private fun saturates(): Boolean {
    val model = PRODUCT.chunked(2).map { it.toInt(16).toByte() }.toByteArray()
    val a = direct(ROWS * INNER) { if (it % INNER < 2) -1 else 0 } // 255, as an unsigned byte
    val b = direct(INNER * ROWS) { 127 }
    val options = OrtSession.SessionOptions().apply { setIntraOpNumThreads(1) }
    options.use { onnxRuntime.createSession(model, it) }.use { session ->
        OnnxTensor.createTensor(onnxRuntime, a, longArrayOf(ROWS.toLong(), INNER.toLong()), OnnxJavaType.UINT8).use { left ->
            OnnxTensor.createTensor(onnxRuntime, b, longArrayOf(INNER.toLong(), ROWS.toLong()), OnnxJavaType.INT8).use { right ->
                session.run(mapOf("a" to left, "b" to right)).use { result ->
                    val products = (result.get("y").get() as OnnxTensor).intBuffer
                    return (0 until products.remaining()).any { products.get(it) != 2 * 255 * 127 }
                }
            }
        }
    }
}

private fun direct(size: Int, value: (Int) -> Byte): ByteBuffer {
    val buffer = ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())
    for (index in 0 until size) buffer.put(index, value(index))
    return buffer
}
