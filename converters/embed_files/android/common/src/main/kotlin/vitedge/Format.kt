// Some encoders have integers as input and outputs. Apps see floats all the same: scale and zero point are applied here.
package vitedge

import java.nio.ByteBuffer
import kotlin.math.round

/**
 * How a tensor holds real values: float32 as they are, int8 and int16 as integers q that mean scale * (q - zeroPoint),
 * uint8 as pixels.
 */
class Format(val dtype: String, private val scale: Float, private val zeroPoint: Int) {
    /** Bytes of one value. */
    val bytes: Int = mapOf("float32" to 4, "int16" to 2, "int8" to 1, "uint8" to 1).getValue(dtype)

    /** Puts values into a buffer: as integers rounded to nearest, halves to even, and clipped. */
    fun write(values: FloatArray, buffer: ByteBuffer) {
        // In single precision, as Python does it.
        fun integer(value: Float, limit: Float): Int = (round(value / scale) + zeroPoint).coerceIn(-limit, limit - 1).toInt()
        when (dtype) {
            "int8" -> for (value in values) buffer.put(integer(value, 128f).toByte())
            "int16" -> for (value in values) buffer.putShort(integer(value, 32768f).toShort())
            "float32" -> for (value in values) buffer.putFloat(value)
            else -> error("values of $dtype are not written as numbers")
        }
    }

    /** The real values of a whole buffer, wherever its position is. */
    fun read(buffer: ByteBuffer): FloatArray {
        val count = buffer.capacity() / bytes
        return when (dtype) {
            "int8" -> FloatArray(count) { (buffer.get(it) - zeroPoint) * scale }
            "int16" -> FloatArray(count) { (buffer.getShort(it * 2) - zeroPoint) * scale }
            "float32" -> FloatArray(count) { buffer.getFloat(it * 4) }
            else -> error("values of $dtype are not read as numbers")
        }
    }
}

/** Of the input. */
val INPUT: Format = Format(Contract.INPUT_DTYPE, Contract.INPUT_SCALE, Contract.INPUT_ZERO_POINT)

/** Of the outputs, by name. */
val OUTPUTS: Map<String, Format> = Contract.OUTPUT_NAMES.withIndex().associate { (index, name) ->
    val scale = Contract.OUTPUT_SCALES[index].toFloat()
    name to Format(Contract.OUTPUT_DTYPES[index], scale, Contract.OUTPUT_ZERO_POINTS[index])
}
