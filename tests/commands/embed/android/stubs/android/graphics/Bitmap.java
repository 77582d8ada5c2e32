package android.graphics;

/** As Android's: getPixels throws for a hardware bitmap, which has to be copied first. */
public final class Bitmap {
    public enum Config { ARGB_8888, HARDWARE }

    private final int[] argb;
    private final int width;
    private final Config config;

    public Bitmap(int[] argb, int width, Config config) {
        this.argb = argb;
        this.width = width;
        this.config = config;
    }

    public int getWidth() {
        return width;
    }

    public int getHeight() {
        return argb.length / width;
    }

    public Config getConfig() {
        return config;
    }

    public Bitmap copy(Config config, boolean mutable) {
        return new Bitmap(argb.clone(), width, config);
    }

    public void getPixels(int[] pixels, int offset, int stride, int x, int y, int columns, int rows) {
        if (config == Config.HARDWARE) throw new IllegalStateException("unable to getPixels(), no access to hardware");
        for (int row = 0; row < rows; ++row) {
            System.arraycopy(argb, (y + row) * width + x, pixels, offset + row * stride, columns);
        }
    }
}
