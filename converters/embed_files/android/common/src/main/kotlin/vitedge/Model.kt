// The model file, which is checked before a runtime parses it.
package vitedge

import java.io.File
import java.io.FileInputStream
import java.io.FileNotFoundException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.security.MessageDigest
import vitedge.Contract.MODEL_FILE
import vitedge.Contract.MODEL_SHA256

/** The model is missing, is not the one of the contract, or is refused by the runtime; the message says what to do. */
class ModelException(message: String, cause: Throwable? = null) : Exception(message, cause)

/**
 * Maps a model file into memory, such as one that the app downloaded.
 *
 * @throws ModelException if it cannot be read.
 */
fun mapFile(file: File): ByteBuffer {
    val stream = try {
        FileInputStream(file)
    } catch (error: FileNotFoundException) {
        throw ModelException("$file: cannot be read (${error.message}); put $MODEL_FILE there", error)
    }
    return stream.use { it.channel.map(FileChannel.MapMode.READ_ONLY, 0, it.channel.size()) }
}

/**
 * The same bytes, if they are the model of the contract.
 *
 * @throws ModelException if they have another SHA-256, or are not in a direct buffer, which runtimes ask for.
 */
fun verified(model: ByteBuffer): ByteBuffer {
    if (!model.isDirect) {
        throw ModelException("$MODEL_FILE: expected a direct buffer, found an array; use mapAsset or mapFile")
    }
    val digest = MessageDigest.getInstance("SHA-256").apply { update(model.duplicate()) }.digest()
    val found = digest.joinToString("") { "%02x".format(it) }
    if (found != MODEL_SHA256) {
        throw ModelException(
            "$MODEL_FILE: expected SHA-256 ${MODEL_SHA256.take(12)}..., found ${found.take(12)}...; truncated," +
                " changed in transit, or of another build: copy it again, together with Contract.kt"
        )
    }
    return model
}
