package vitedge

import java.lang.reflect.InvocationTargetException
import java.nio.ByteBuffer

/** What the encoder says of a model that its runtime refuses. SHA-256 is checked before, so this reaches behind it. */
fun refusal(encoder: ViTEncoder): String {
    val open = ViTEncoder::class.java.getDeclaredMethod("open", ByteBuffer::class.java, Int::class.java)
    open.isAccessible = true
    try {
        open.invoke(encoder, ByteBuffer.allocateDirect(4), 1)
    } catch (error: InvocationTargetException) {
        return (error.targetException as ModelException).message.orEmpty()
    }
    throw AssertionError("was accepted")
}
