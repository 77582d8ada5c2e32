package vitedge

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import java.nio.ByteBuffer

/**
 * The encoder over ONNX Runtime.
 *
 *     val encoder = ViTEncoder(mapAsset(context.assets))
 *     val features = encoder.encode(bitmap.toImage()).getValue("last_hidden_state")
 *
 * One encoder may be called from several threads at once. Close it when no call is running.
 *
 * @param model the bytes of the model file, from [mapAsset] or [mapFile].
 * @param threads of one inference; 0 leaves it to the runtime.
 * @throws ModelException if the model is not the one of the contract, or is too new for this ONNX Runtime.
 */
class ViTEncoder(model: ByteBuffer, threads: Int = 0) : AutoCloseable {
    private val environment = onnxRuntime
    private val session = open(verified(model), threads)

    /** Preprocesses one image of any size, and runs the encoder. */
    fun encode(image: Image): Map<String, Tensor> = run(preprocess(image))

    /**
     * Runs the encoder on an input that is preprocessed.
     *
     * @return the outputs by name.
     * @throws IllegalArgumentException if it is not what [preprocess] makes.
     */
    fun run(input: ByteBuffer): Map<String, Tensor> {
        checkInput(input)
        val type = if (PIXELS_IN) OnnxJavaType.UINT8 else OnnxJavaType.FLOAT
        return OnnxTensor.createTensor(environment, input, INPUT_SHAPE, type).use { tensor ->
            session.run(mapOf(Contract.INPUT_NAME to tensor)).use { result ->
                Contract.OUTPUT_NAMES.associate { name -> name to copied(result.get(name).get() as OnnxTensor) }
            }
        }
    }

    override fun close() = session.close()

    private fun open(model: ByteBuffer, threads: Int): OrtSession = OrtSession.SessionOptions().use { options ->
        if (threads > 0) options.setIntraOpNumThreads(threads)
        try {
            // Kernels for uint8 times uint8: exact, and slower, for nothing on CPUs where those for int8 are exact too.
            if (!Contract.EXACT_ON_X86 && saturatesHere) options.addConfigEntry("session.x64quantprecision", "1")
            environment.createSession(model, options)
        } catch (error: OrtException) {
            throw ModelException(
                "${Contract.MODEL_FILE}: refused by ONNX Runtime ${environment.version} (${error.message}); it needs" +
                    " ${Contract.MINIMUM_RUNTIME} or newer",
                error
            )
        }
    }

    private fun copied(tensor: OnnxTensor): Tensor {
        val buffer = tensor.floatBuffer
        return Tensor(tensor.info.shape, FloatArray(buffer.remaining()).also { buffer.get(it) })
    }
}
