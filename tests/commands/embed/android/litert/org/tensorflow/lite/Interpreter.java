package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.Map;

/** What the encoder uses of LiteRT's class. It computes nothing: every output counts up from the first input value. */
public final class Interpreter implements AutoCloseable {
    public static final class Options {
        public Options setNumThreads(int threads) {
            return this;
        }
    }

    public Interpreter(ByteBuffer model, Options options) {
        if (model.remaining() < 8) throw new IllegalArgumentException("not a model");
    }

    public Tensor getOutputTensorFromSignature(String name, String signature) {
        return new Tensor() {
            @Override
            public int[] shape() {
                return new int[] {1, 2, 3};
            }

            @Override
            public int numElements() {
                return 6;
            }
        };
    }

    public void runSignature(Map<String, Object> inputs, Map<String, Object> outputs, String signature) {
        if (!signature.equals("serving_default")) throw new IllegalArgumentException(signature);
        float first = ((ByteBuffer) inputs.get("pixel_values")).getFloat(0);
        for (Object output : outputs.values()) {
            FloatBuffer values = (FloatBuffer) output;
            while (values.hasRemaining()) values.put(first + values.position());
        }
    }

    @Override
    public void close() {}
}
