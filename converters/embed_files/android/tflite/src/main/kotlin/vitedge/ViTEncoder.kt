package vitedge

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

private const val SIGNATURE = "serving_default"

/**
 * The encoder over LiteRT (TensorFlow Lite), on the CPU by XNNPACK.
 *
 *     val encoder = ViTEncoder(mapAsset(context.assets))
 *     val features = encoder.encode(bitmap.toImage()).getValue("last_hidden_state")
 *
 * Calls from several threads take turns on one interpreter.
 *
 * @param model the bytes of the model file, from [mapAsset] or [mapFile].
 * @param threads of one inference; 0 leaves it to the runtime.
 * @throws ModelException if the model is not the one of the contract, or is too new for this LiteRT.
 */
class ViTEncoder(model: ByteBuffer, threads: Int = 0) : AutoCloseable {
    private val interpreter = open(verified(model), threads)

    /** Preprocesses one image of any size, and runs the encoder. */
    fun encode(image: Image): Map<String, Tensor> = run(preprocess(image))

    /**
     * Runs the encoder on an input that is preprocessed.
     *
     * @return the outputs by name.
     * @throws IllegalArgumentException if it is not what [preprocess] makes.
     */
    @Synchronized
    fun run(input: ByteBuffer): Map<String, Tensor> {
        checkInput(input)
        val tensors = Contract.OUTPUT_NAMES.associate { it to interpreter.getOutputTensorFromSignature(it, SIGNATURE) }
        val outputs = tensors.mapValues { (_, tensor) ->
            ByteBuffer.allocateDirect(tensor.numBytes()).order(ByteOrder.nativeOrder())
        }
        interpreter.runSignature(mapOf(Contract.INPUT_NAME to input), outputs, SIGNATURE)
        return tensors.mapValues { (name, tensor) ->
            val shape = tensor.shape()
            Tensor(LongArray(shape.size) { shape[it].toLong() }, OUTPUTS.getValue(name).read(outputs.getValue(name)))
        }
    }

    @Synchronized
    override fun close() = interpreter.close()

    private fun open(model: ByteBuffer, threads: Int): Interpreter {
        val options = Interpreter.Options()
        if (threads > 0) options.setNumThreads(threads)
        try {
            return Interpreter(model, options)
        } catch (error: IllegalArgumentException) {
            throw ModelException(
                "${Contract.MODEL_FILE}: refused by LiteRT (${error.message}); it needs" +
                    " ${Contract.MINIMUM_RUNTIME} or newer",
                error
            )
        }
    }
}
