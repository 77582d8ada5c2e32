package org.tensorflow.lite;

public final class Tensor {
    private final int[] shape;
    private final int bytes;

    Tensor(int[] shape, int bytes) {
        this.shape = shape;
        this.bytes = bytes;
    }

    public int[] shape() {
        return shape;
    }

    public int numBytes() {
        return bytes;
    }
}
