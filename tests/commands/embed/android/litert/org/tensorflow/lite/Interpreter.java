package org.tensorflow.lite;

import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * What the encoder uses of LiteRT's class, by LiteRT's Python package in a process of its own (litert_process.py). Buffers
 * are held to what LiteRT's own TensorImpl asks of them.
 */
public final class Interpreter implements AutoCloseable {
    public static final class Options {
        private int threads = 1;

        public Options setNumThreads(int threads) {
            this.threads = threads;
            return this;
        }
    }

    private final Process process;
    private final DataInputStream answers;
    private final int inputBytes;
    private final Map<String, Tensor> outputs = new LinkedHashMap<>();

    public Interpreter(ByteBuffer model, Options options) {
        try {
            Path file = Files.createTempFile("model", ".tflite");
            byte[] bytes = new byte[model.remaining()];
            model.duplicate().get(bytes);
            Files.write(file, bytes);
            List<String> command = new ArrayList<>(Arrays.asList(System.getProperty("litert.command").split("\n")));
            command.addAll(List.of(file.toString(), String.valueOf(options.threads)));
            process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
            answers = new DataInputStream(process.getInputStream());
            String first = line();
            Files.delete(file);
            if (!first.startsWith("input ")) throw new IllegalArgumentException(first);
            inputBytes = Integer.parseInt(first.substring(6));
            for (String next = line(); !next.isEmpty(); next = line()) {
                String[] words = next.split(" ");
                int[] shape = Arrays.stream(words[2].split(",")).mapToInt(Integer::parseInt).toArray();
                outputs.put(words[0], new Tensor(shape, Integer.parseInt(words[1])));
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    public Tensor getOutputTensorFromSignature(String name, String signature) {
        check(signature);
        return outputs.get(name);
    }

    public void runSignature(Map<String, Object> inputs, Map<String, Object> results, String signature) {
        check(signature);
        ByteBuffer input = (ByteBuffer) inputs.get("pixel_values");
        if (inputs.size() != 1 || input.capacity() != inputBytes) throw new IllegalArgumentException("input");
        byte[] given = new byte[inputBytes];
        input.duplicate().get(given);
        try {
            process.getOutputStream().write(given);
            process.getOutputStream().flush();
            for (Map.Entry<String, Tensor> output : outputs.entrySet()) {
                byte[] found = new byte[output.getValue().numBytes()];
                answers.readFully(found);
                ((ByteBuffer) results.get(output.getKey())).put(found);
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    @Override
    public void close() {
        process.destroy();
    }

    private void check(String signature) {
        if (!signature.equals("serving_default")) throw new IllegalArgumentException(signature);
    }

    private String line() throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        for (int next = answers.read(); next != '\n'; next = answers.read()) {
            if (next < 0) throw new IOException("LiteRT's process ended");
            bytes.write(next);
        }
        return bytes.toString();
    }
}
